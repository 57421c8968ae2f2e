"""Importance-weighted policy objectives, to be *maximised*; errors of critics."""

import jax.numpy as jnp
import optax

from jaxrl_llm.ops import kl
from jaxrl_llm.types import BGT, Array, InputError


def ratio(logp: Array, old_logp: Array) -> Array:
  """pi / pi_old, its logarithm held within +-20 nats."""
  return jnp.exp(kl.log_ratio(logp, old_logp))


def clipped(
  ratio: Array, advantage: Array, *, low: float, high: float, dual: float = 0.0
) -> Array:
  """PPO's pessimistic bound: min(r A, clip(r, 1 - low, 1 + high) A).

  With `dual` above 0 it is at least dual A where A < 0, so that one token which has
  become far likelier cannot outweigh the others (dual clip, 3 in veRL; TRL's delta).
  """
  bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high)
  gain = jnp.minimum(ratio * advantage, bounded * advantage)
  if not dual:
    return gain
  return jnp.where(advantage < 0, jnp.maximum(gain, dual * advantage), gain)


def band(low: float, high: float, dual: float) -> dict[str, float]:
  """The options of `clipped`, where a ratio within the clip keeps its gradient."""
  if dual and not dual > 1.0 + high:
    raise InputError(
      f'dual_clip={dual!r} bounds the ratio where the advantage is negative: give more '
      f'than 1 + the upper clip, {1.0 + high:g}, such as 3, or 0 for none.'
    )
  return {'low': low, 'high': high, 'dual': dual}


def value_error(value: BGT, old: BGT, target: BGT, *, clip: float) -> BGT:
  """Half the squared error, the larger of that of V and of V within `clip` of V_old."""
  near = old + jnp.clip(value - old, -clip, clip)
  return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(near - target))


def huber_error(value: Array, old: Array, target: Array, *, clip: float, delta: float):
  """The mean of Huber's errors, linear from `delta`, of V and of V near V_old."""
  near = old + jnp.clip(value - old, -clip, clip)
  huber = optax.losses.huber_loss
  return (huber(value, target, delta=delta) + huber(near, target, delta=delta)) / 2


def soft_minimum(one: Array, other: Array, *, alpha: float) -> Array:
  """The lesser of two as alpha goes to 0, their mean as it goes to infinity."""
  return -alpha * (jnp.logaddexp(-one / alpha, -other / alpha) - jnp.log(2.0))


def clip_fraction(
  ratio: Array, advantage: Array, *, low: float, high: float, dual: float = 0.0
) -> BGT:
  """1.0 where the clip removes the gradient."""
  up = (advantage > 0) & (ratio > 1.0 + high)
  down = (advantage < 0) & ((ratio < 1.0 - low) | (ratio > (dual or jnp.inf)))
  return (up | down).astype(ratio.dtype)
