"""InfoNCA (Chen et al., 2024), https://arxiv.org/abs/2402.05369.

  r = beta sum_t log(pi / ref) of each completion of a group
  p = softmax(reward / temperature),  q = softmax(r), over the group
  loss = E_group[ - sum p log q ]

Differs from dpo: any number of completions, and rewards in place of a choice. With a
reward that singles out one of two it is dpo. beta and temperature, which all but
singles out the best, are those of the authors' released runs.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.dpo import log_ratio
from jaxrl_llm.ops import preferences
from jaxrl_llm.types import Method


def infonca(*, beta: float = 0.01, temperature: float = 1e-4) -> Method:
  """`temperature` divides the rewards."""

  def loss(reward, goal):
    return -jnp.sum(jnp.exp(goal) * jax.nn.log_softmax(reward), 1)

  return listed(loss, beta, scored(temperature))


def listed(loss, beta: float, goal) -> Method:
  """Of `goal(reward)`, log p, and `loss(r, log p)`, [B]; both are of [B, G].

  A group of which a completion is not valid has a weight of 0.
  """
  fitted = log_ratio(beta)

  def total(out, batch):
    r, w = fitted(out, batch), batch.prompt_weight
    each = loss(r, goal(batch.reward))
    return jnp.sum(w * each), preferences.graded(r, batch.reward, batch.valid, w)

  return Method(total, ('logp', 'ref_logp'), whole=True)


def scored(temperature: float):
  """log p of a group's rewards."""
  return lambda reward: jax.nn.log_softmax(reward / temperature)
