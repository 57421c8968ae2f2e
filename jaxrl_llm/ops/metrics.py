"""Metrics as (sum, weight) pairs, so that pieces add up to the whole exactly."""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import extras, sequences
from jaxrl_llm.types import BG, Array, Batch, Metrics

# Two programs sum a completion's log-probs with float32's rounding each: of 100 nats
# 2^-23 * 100 = 1.2e-5 lies between them. So close a policy at its birth is to the same
# reference.
NOISE = 1e-5


def average(x: Array, weight: Array) -> tuple[Array, Array]:
  """The weighted mean of x, as a pair. `weight` has the shape of x."""
  return jnp.sum(x * weight), jnp.sum(weight)


def kl_paid(batch: Batch) -> Metrics:
  """The KL that `prepare` put into the reward, extra['kl'] [B, G], where it did."""
  if 'kl' not in batch.extra:
    return {}
  return {
    'kl_ref_seq': average(batch.extra['kl'], batch.seq_weight * extras.fresh(batch))
  }


def told(batch: Batch, *names: str) -> Metrics:
  """What `prepare` put into extra, [B], for all of a step."""
  weight = batch.seq_weight.sum(1)
  return {name: average(batch.extra[name], weight) for name in names}


def ratios(ratio: Array, hit: Array, weight: Array) -> Metrics:
  """pi / pi_old, of tokens or of completions, and where a clip `hit` it."""
  return {
    'ratio': average(ratio, weight),
    'max/ratio': jnp.max(jnp.where(weight > 0, ratio, 0.0)),
    'clipped': average(hit.astype(weight.dtype), weight),
  }


def wins(margin: Array, weight: Array) -> tuple[Array, Array]:
  """The weighted share of margins above 0, as a pair; one within NOISE is half."""
  ahead = jnp.where(jnp.abs(margin) > NOISE, jnp.sign(margin), 0.0)
  return average((1 + ahead) / 2, weight)


def pairs(reward: BG, weight: Array) -> Metrics:
  """How far the chosen is ahead of the rejected: rewards [B, 2], weights [B]."""
  margin = sequences.margin(reward)
  return {
    'margin': average(margin, weight),
    'accuracy': wins(margin, weight),
    'reward_chosen': average(reward[:, 0], weight),
    'reward_rejected': average(reward[:, 1], weight),
  }


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
  """Pairs to numbers; a metric of no weight is 0. Of gap/... comes their sum, `ece`."""
  ratio = lambda total, weight: total / jnp.where(weight == 0, 1.0, weight)
  found = {k: x if is_max(k) else ratio(*x) for k, x in metrics.items()}
  gaps = [jnp.abs(found.pop(k)) for k in [*found] if k.startswith('gap/')]
  return found | ({'ece': sum(gaps)} if gaps else {})
