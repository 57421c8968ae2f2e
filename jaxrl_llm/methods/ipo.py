"""IPO (Azar et al., 2023), https://arxiv.org/abs/2310.12036.

  loss = E_pair[ (h - 1 / (2 tau))^2 ]

h is the margin of dpo at beta 1, averaged over each completion's tokens. Differs from
dpo: a squared loss to a finite margin in place of a logistic one. The authors say that
their results average log-probs per token; `average=False` sums them, as some
repositories do (tau then scales with the length).
"""

import functools

from jaxrl_llm.methods.dpo import log_ratio, paired
from jaxrl_llm.ops import pair_losses, sequences
from jaxrl_llm.types import Method


def ipo(*, tau: float = 0.1, average: bool = True) -> Method:
  """`tau` is the strength of the pull to the reference."""
  loss = functools.partial(pair_losses.squared, target=1 / (2 * tau))
  reduce = sequences.seq_mean if average else sequences.seq_sum
  return paired(loss, log_ratio(1.0, reduce))
