"""Yes or no from a logit: its loss, and whether its probabilities can be believed."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array, Metrics

BINS = 10


def cross_entropy(logit: Array, target: Array) -> Array:
  """-(y log p + (1 - y) log(1 - p)), p = sigmoid(logit); y may be any share."""
  return jax.nn.softplus(logit) - target * logit


def sided(logit: Array, target: Array) -> Array:
  """Above 0 where the logit is on the target's side of 1/2, 0 where there is none."""
  return logit * jnp.sign(target - 0.5)


def calibration(logit: Array, target: Array, weight: Array) -> Metrics:
  """What p says too much, bin by bin of p: gap/i is the sum of w (p - y) there.

  Their sizes add up to the expected calibration error, `ece` (metrics.finish).
  """
  p, total = jax.nn.sigmoid(logit), jnp.sum(weight)
  here = jnp.minimum((p * BINS).astype(jnp.int32), BINS - 1)
  over = weight * (p - target)
  return {f'gap/{i}': (jnp.sum(over * (here == i)), total) for i in range(BINS)}
