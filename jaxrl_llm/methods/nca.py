"""NCA (Chen et al., 2024), https://arxiv.org/abs/2402.05369.

  loss = - E_group[ sum (p log sigmoid(r) + 1 / G log sigmoid(-r)) ]

p and r as in infonca. Differs from infonca: each completion is held against the
reference: r has an optimum of its own, log(G p), where infonca fixes differences
alone, so that the chosen does not get less likely with the rest.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.infonca import listed, scored
from jaxrl_llm.types import Method


def nca(*, beta: float = 0.01, temperature: float = 1e-4) -> Method:
  """`temperature` divides the rewards."""

  def loss(reward, goal):
    up = jnp.exp(goal) * jax.nn.log_sigmoid(reward)
    return -jnp.sum(up + jax.nn.log_sigmoid(-reward) / reward.shape[1], 1)

  return listed(loss, beta, scored(temperature))
