"""OPO (2025), https://arxiv.org/abs/2505.23585.

  b = sum_g L_g R_g / sum_g L_g,  A = R - b,  L_g the length of completion g
  loss = - E_seq[ A sum_t log pi(y_t) ]

Differs from reinforce with the group's mean: the baseline weighs completions by their
length. No ratio, no clip, no KL. The aggregation is ours: the completion as the action.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.reinforce import reinforce
from jaxrl_llm.ops import advantages, weights
from jaxrl_llm.types import Method


def opo(*, aggregate=weights.seq_sum) -> Method:
  """Strictly on policy: there is no ratio."""

  def prepare(state, batch):
    advantages.check_group(batch.reward)
    length = batch.mask.sum(-1) * batch.valid
    share = length / jnp.maximum(length.sum(1, keepdims=True), 1.0)
    centred = batch.reward - (share * batch.reward).sum(1, keepdims=True)
    tied = advantages.tied(batch.reward, batch.valid)
    adv = jnp.where(tied, 0.0, centred * batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  return reinforce(aggregate=aggregate)._replace(prepare=prepare)
