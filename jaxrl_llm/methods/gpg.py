"""GPG (2025), https://arxiv.org/abs/2504.02546.

  A = B / (B - M) (R - group mean),  B groups, M of them with all rewards equal
  loss = - E_token[ A log pi(y_t) ]

Differs from reinforce with the group's mean: groups that teach nothing do not shrink
the step. No ratio, no clip, no KL. The paper's F_norm is 1. Its threshold, to sample on
until enough groups are mixed, is sources.until_mixed.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.reinforce import reinforce
from jaxrl_llm.ops import advantages, weights
from jaxrl_llm.types import Method


def gpg(*, advantage=advantages.group_mean, aggregate=weights.token_mean) -> Method:
  """`advantage='group_norm'` divides by the group's deviation too, as an ablation."""

  def prepare(state, batch):
    there = batch.valid.any(1, keepdims=True)
    mixed = there & ~advantages.tied(batch.reward, batch.valid)
    scale = there.sum() / jnp.maximum(mixed.sum(), 1)
    adv = scale * advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  return reinforce(aggregate=aggregate)._replace(prepare=prepare)
