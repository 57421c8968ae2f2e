"""Scores of several reward models [..., K] as one that none of them fools: [...].

Coste et al., 2024, https://arxiv.org/abs/2310.02743. They repair variance, not what all
models have in common.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def mean(score: Array) -> Array:
  """The average."""
  return jnp.sum(score, -1) / score.shape[-1]


def worst(score: Array) -> Array:
  """WCO: the lowest."""
  return jnp.min(score, -1)


def cautious(score: Array, *, coef: float = 0.5, ddof: int = 0) -> Array:
  """UWO: mean - coef variance. The paper's code has 0.5 and ddof 0 for best of n, 0.1
  and ddof 1 for PPO.
  """
  return mean(score) - coef * jnp.var(score, -1, ddof=ddof)


def entropic(score: Array, *, beta: float = 1.0) -> Array:
  """- beta log mean exp(- score / beta): the mean for large beta, the lowest for small,
  and mean - variance / (2 beta) between.
  """
  total = jax.nn.logsumexp(-score / beta, axis=-1)
  return -beta * (total - jnp.log(score.shape[-1]))
