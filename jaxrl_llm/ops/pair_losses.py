"""Losses of a margin: how far the chosen of two completions is ahead, in nats, [B].

`dpo(loss=...)` takes each; the margin is beta times the difference of log-ratios.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def logistic(margin: Array) -> Array:
  """-log sigmoid(margin): dpo's."""
  return jax.nn.softplus(-margin)


def robust(margin: Array, *, flipped: float) -> Array:
  """Its mean over labels of which a share is `flipped` is `logistic` of the clean ones.

  [(1 - flipped) logistic(m) - flipped logistic(-m)] / (1 - 2 flipped): may be negative.
  """
  kept, turned = (1 - flipped) * logistic(margin), flipped * logistic(-margin)
  return (kept - turned) / (1 - 2 * flipped)


def hinge(margin: Array, *, target: float = 1.0) -> Array:
  """max(0, target - m)."""
  return jax.nn.relu(target - margin)


def squared(margin: Array, *, target: float) -> Array:
  """(m - target)^2: ipo's, with target 1 / (2 tau)."""
  return jnp.square(margin - target)


def discopop(margin: Array, *, tau: float = 0.05) -> Array:
  """(1 - s) logistic(m) + s exp(-m), s = sigmoid(m / tau), for tau below 1.

  s exp(-m) is one exponential, of what is never above 0 by much.
  """
  blend = margin / tau
  steep = jnp.exp(jax.nn.log_sigmoid(blend) - margin)
  return jax.nn.sigmoid(-blend) * logistic(margin) + steep
