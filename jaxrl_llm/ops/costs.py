"""Bounds on a mean cost that hold with high confidence."""

import jax.numpy as jnp
from scipy import stats

from jaxrl_llm.types import Array, InputError


def margin(n: int, delta: float) -> float:
  """t_{1 - delta, n - 1} / sqrt(n): from a mean of n to its bound, in deviations."""
  if n < 2 or not 0 < delta < 1:
    raise InputError(
      f'A bound of {n} costs at delta={delta}: give at least two costs, and delta '
      'between 0 and 1.'
    )
  return float(stats.t.ppf(1.0 - delta, n - 1)) / n**0.5


def inflated(cost: Array, mean: Array, std: Array, kappa: float) -> Array:
  """c + kappa (c^2 - 2 c mean) / (2 std), 0 in the second part where std is.

  Under the policy that it was drawn from, its score-function gradient is the gradient
  of mean + kappa std.
  """
  slope = (jnp.square(cost) - 2.0 * cost * mean) / (2.0 * jnp.maximum(std, 1e-6))
  return cost + kappa * jnp.where(std > 1e-6, slope, 0.0)
