"""REINFORCE (Williams, 1992), one reward per completion.

loss = - E[ A log pi(y | x) ]

No ratio: on policy.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, weights
from jaxrl_llm.types import Method


def reinforce(*, advantage=advantages.none, aggregate=weights.token_mean) -> Method:
  """`advantage` maps (reward, valid) to [B, G]; `aggregate` maps a mask to weights."""

  def prepare(state, batch):
    adv = advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  def loss(out, batch):
    gain = jnp.sum(batch.weight * batch.advantage * out.logp)
    found = {'gain': (gain, jnp.sum(batch.weight))}
    return -gain, found | metrics.kl_paid(batch)

  return Method(loss, ('logp',), prepare, aggregate=aggregate)
