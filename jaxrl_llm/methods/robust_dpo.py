"""Robust DPO (Chowdhury et al., 2024), https://arxiv.org/abs/2403.00409.

  loss = E_pair[ (- (1 - flipped) log sigmoid(u) + flipped log sigmoid(-u))
                 / (1 - 2 flipped) ]

u is the margin of dpo. Differs from cdpo: the sign of the second term, and the divisor.
Over labels of which a share is flipped, the loss is in the mean dpo's of the clean
ones. It falls without bound as the margin grows, so on few data it wants an early end.
"""

import functools

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.ops import pair_losses
from jaxrl_llm.types import Method


def robust_dpo(*, beta: float = 0.1, flipped: float = 0.1) -> Method:
  """`flipped` is the share of wrong labels, below 1/2."""
  loss = functools.partial(pair_losses.robust, flipped=flipped)
  return dpo(beta=beta, loss=loss)
