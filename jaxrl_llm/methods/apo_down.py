"""APO-down, anchored (D'Oosterlinck et al., 2024), https://arxiv.org/abs/2408.06266.

  loss = E_pair[ sigmoid(r_chosen) + 1 - sigmoid(r_chosen - r_rejected) ]

r as in dpo. Differs from apo_zero: both completions get less likely, the rejected
faster. For pairs of which even the chosen is worse than the policy's own. At the
reference the slope in the chosen is exactly 0.
"""

import jax

from jaxrl_llm.methods.dpo import log_ratio, rewarded
from jaxrl_llm.ops import sequences
from jaxrl_llm.types import Method


def apo_down(*, beta: float = 0.1) -> Method:
  """For pairs."""

  def loss(reward):
    ahead = jax.nn.sigmoid(sequences.margin(reward))
    return jax.nn.sigmoid(reward[:, 0]) + 1 - ahead

  return rewarded(loss, log_ratio(beta))
