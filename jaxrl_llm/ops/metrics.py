"""Metrics as (sum, weight) pairs, so that pieces add up to the whole exactly."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array, Batch, Metrics


def average(x: Array, weight: Array) -> tuple[Array, Array]:
  """The weighted mean of x, as a pair. `weight` has the shape of x."""
  return jnp.sum(x * weight), jnp.sum(weight)


def kl_paid(batch: Batch) -> Metrics:
  """The KL that `prepare` put into the reward, extra['kl'] [B, G], where it did."""
  if 'kl' not in batch.extra:
    return {}
  return {'kl_ref_seq': average(batch.extra['kl'], batch.seq_weight)}


def multiplier(batch: Batch) -> Metrics:
  """The multiplier of a constraint, which `prepare` put into extra, [B]."""
  return {'multiplier': average(batch.extra['multiplier'], batch.seq_weight.sum(1))}


def ratios(ratio: Array, hit: Array, weight: Array) -> Metrics:
  """pi / pi_old, of tokens or of completions, and where a clip `hit` it."""
  return {
    'ratio': average(ratio, weight),
    'max/ratio': jnp.max(jnp.where(weight > 0, ratio, 0.0)),
    'clipped': average(hit.astype(weight.dtype), weight),
  }


def wins(margin: Array, weight: Array) -> tuple[Array, Array]:
  """The weighted share of margins above 0, as a pair; a margin of 0 is half a win."""
  return average((1 + jnp.sign(margin)) / 2, weight)


def is_max(name: str) -> bool:
  """Whether a metric reduces by max; its value is then a scalar, not a pair."""
  return name.startswith('max/')


def reduce(stacked: Metrics) -> Metrics:
  """Metrics stacked on a leading axis as one."""
  return {
    k: x.max(0) if is_max(k) else jax.tree.map(lambda y: y.sum(0), x)
    for k, x in stacked.items()
  }


def finish(metrics: Metrics) -> dict[str, Array]:
  """Pairs to numbers; a metric of no weight is 0."""
  ratio = lambda total, weight: total / jnp.where(weight == 0, 1.0, weight)
  return {k: x if is_max(k) else ratio(*x) for k, x in metrics.items()}
