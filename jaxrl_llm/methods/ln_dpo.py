"""Length-normalised DPO (Lambert et al., 2024, Tulu 3),
https://arxiv.org/abs/2411.15124.

  loss = E_pair[ - log sigmoid(r_chosen - r_rejected) ],  r = beta mean_t log(pi / ref)

Differs from dpo: the mean over a completion's tokens in place of the sum, and so a
larger beta: at equal lengths n it is dpo with beta / n.
"""

from jaxrl_llm.methods.dpo import log_ratio, paired
from jaxrl_llm.ops import pair_losses, sequences
from jaxrl_llm.types import Method


def ln_dpo(*, beta: float = 5.0) -> Method:
  """`beta` is of a mean, in nats per token."""
  return paired(pair_losses.logistic, log_ratio(beta, sequences.seq_mean))
