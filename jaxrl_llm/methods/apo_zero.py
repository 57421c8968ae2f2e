"""APO-zero, anchored (D'Oosterlinck et al., 2024), https://arxiv.org/abs/2408.06266.

  loss = E_pair[ 1 - sigmoid(r_chosen) + sigmoid(r_rejected) ]

r as in dpo. Differs from dpo: each completion is held against the reference, not
against the other: the chosen gets likelier and the rejected less likely. For chosen
completions that are better than the policy's own.
"""

import jax

from jaxrl_llm.methods.dpo import log_ratio, rewarded
from jaxrl_llm.types import Method


def apo_zero(*, beta: float = 0.1) -> Method:
  """For pairs. Half of it is kto with a baseline of 0."""

  def loss(reward):
    value = jax.nn.sigmoid(reward)
    return 1 - value[:, 0] + value[:, 1]

  return rewarded(loss, log_ratio(beta))
