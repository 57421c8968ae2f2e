"""SimPO (Meng et al., 2024), https://arxiv.org/abs/2405.14734.

  loss = - E_pair[ log sigmoid(r_chosen - r_rejected - gamma) ],  r = beta mean_t log pi

Differs from dpo: no reference; averaged over tokens; a target margin gamma. The
authors tune beta in 2 to 10 and gamma / beta in 0.1 to 0.8.
"""

from jaxrl_llm.methods.dpo import paired
from jaxrl_llm.ops import pair_losses, sequences
from jaxrl_llm.types import Method


def simpo(*, beta: float = 2.0, gamma: float = 1.0) -> Method:
  """`gamma` is the paper's (not gamma / beta)."""
  return paired(
    lambda margin: pair_losses.logistic(margin - gamma),
    lambda out, batch: beta * sequences.seq_mean(out.logp, batch.mask),
    ('logp',),
  )
