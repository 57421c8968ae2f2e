"""Pearson's correlation over a minibatch, as a sum over its rows.

rho couples all rows, and pieces of a minibatch must add up. So mean, deviation and rho
are measured first, without gradient, and `terms` are numbers of single rows whose sum
has the value and the slope of rho there.
"""

import jax.numpy as jnp

from jaxrl_llm.types import Array

ROUNDING = 1e-5  # A deviation below this share of the root mean square is none.


def moments(x: Array, weight: Array) -> tuple[Array, Array]:
  """Mean and deviation over rows [B, G, ...], as [1, 1, ...]; a deviation of 0 where x
  is the same everywhere but for rounding, or no row counts.
  """
  middle, size = weighted(x, weight), jnp.sqrt(weighted(jnp.square(x), weight))
  std = jnp.sqrt(weighted(jnp.square(x - middle), weight))
  return middle, jnp.where(std > ROUNDING * size, std, 0.0)


def weighted(x: Array, weight: Array) -> Array:
  """The mean over rows; 0 where none counts."""
  over = lambda y: jnp.sum(y, (0, 1), keepdims=True)
  return over(x * weight) / jnp.maximum(over(weight), 1e-6)


def standard(x: Array, middle: Array, std: Array) -> Array:
  """(x - mean) / deviation, and 0 where that is 0."""
  return jnp.where(std > 0, (x - middle) / jnp.where(std > 0, std, 1.0), 0.0)


def terms(z: Array, other: Array, rho: Array) -> Array:
  """z' z - rho (z^2 - 1) / 2 of each row, z' the `other`.

  With mean, deviation and rho held, the mean over rows is rho, and its slope in x is
  (z' - rho z) / (rows deviation), which is that of rho.
  """
  return other * z - rho * (jnp.square(z) - 1) / 2
