"""Ratings of attributes as arrays: what of them is there, and what is not."""

import jax.numpy as jnp

from jaxrl_llm.ops import extras
from jaxrl_llm.types import Array, Batch, InputError


def named(attributes: str) -> list[str]:
  """'a, b' as ['a', 'b']."""
  found = [name.strip() for name in attributes.split(',') if name.strip()]
  if not found or len(found) != len(set(found)):
    raise InputError(
      f'config.method: attributes={attributes!r}; name each once, with commas between.'
    )
  return found


def weights(names: list[str], said: str, where: str) -> Array:
  """'a=0.7,b=-0.1' as an array [A], 0 for those that are not named."""
  parts = [part.partition('=') for part in said.split(',') if part.strip()]
  try:
    given = {name.strip(): float(x) for name, _, x in parts}
  except ValueError:
    given = {}
  if not given or not given.keys() <= {*names}:
    raise InputError(f"{where}={said!r}; give some of {names}, as in '{names[0]}=1.0'.")
  return jnp.array([given.get(name, 0.0) for name in names])


def told(batch: Batch, names: list[str]) -> tuple[Array, Array]:
  """Ratings [B, G, A], and 1 where there is one; data/kinds.py says where they are."""
  if missing := [n for n in names if f'rating/{n}' not in batch.extra]:
    there = sorted(k.partition('/')[2] for k in batch.extra if k.startswith('rating/'))
    raise InputError(
      f'config.method.attributes: the data rate {there} and not {missing}. Give '
      "config.data.kind='ratings', and attributes that it has."
    )
  groups = lambda x: jnp.broadcast_to(x.reshape(len(x), -1), batch.mask.shape[:2])
  of = lambda kind: jnp.stack([groups(batch.extra[f'{kind}/{n}']) for n in names], -1)
  return of('rating'), of('rated')


def per_rating(batch: Batch, rated: Array) -> Array:
  """Weights [B, G, A] of the ratings that are there, as of one of them each.

  extra['rated_share'] [B], the mean number of them in a row, is `measured`.
  """
  share = jnp.maximum(batch.extra['rated_share'], 1e-6)[:, None, None]
  return batch.seq_weight[..., None] * rated / share


def measured(batch: Batch, rated: Array) -> Batch:
  """The batch with how many ratings a row has, the mean over the whole minibatch."""
  w = batch.seq_weight
  share = jnp.sum(w[..., None] * rated) / jnp.maximum(jnp.sum(w), 1e-6)
  return extras.carried(batch, {'rated_share': share})


def scaled(score: Array, low: Array, span: Array) -> Array:
  """Scores between 0 and 1; all 0 where they are equal."""
  return jnp.where(span > 0, (score - low) / jnp.where(span > 0, span, 1.0), 0.0)


def extent(score: Array, there: Array) -> tuple[Array, Array]:
  """The least score where `there`, and how far up the others reach; 0 of none."""
  low = jnp.min(jnp.where(there > 0, score, jnp.inf))
  span = jnp.max(jnp.where(there > 0, score, -jnp.inf)) - low
  return tuple(jnp.where(there.any(), x, 0.0) for x in (low, span))


def boundaries(p: Array, y: Array, there: Array, classes: int) -> Array:
  """b [classes + 1]: between class i - 1 and i stands the p at the number of y below i.

  A class without any y gets no room: its two boundaries are one.
  """
  order = jnp.sort(jnp.where(there > 0, p, jnp.inf).ravel())
  below = y.ravel()[None] < jnp.arange(1, classes)[:, None]
  count = jnp.sum(below * there.ravel()[None], 1).astype(jnp.int32)
  inner = jnp.where(count > 0, order[jnp.maximum(count - 1, 0)], 0.0)
  return jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])


def class_logits(p: Array, bounds: Array, k: float) -> Array:
  """- k (p - b_i)(p - b_{i+1}): [...] and [..., n + 1] to [..., n]."""
  p = p[..., None]
  return -k * (p - bounds[..., :-1]) * (p - bounds[..., 1:])


def lexical(rating: Array, there: Array, delta: float) -> Array:
  """1, -1 or 0 for pairs [B, 2, A]: who is ahead by the first attribute that tells.

  One tells where both are rated and are more than `delta` standard deviations apart.
  """
  count = jnp.maximum(there.sum((0, 1), keepdims=True), 1.0)
  middle = (rating * there).sum((0, 1), keepdims=True) / count
  square = jnp.square(rating - middle) * there
  std = jnp.sqrt(square.sum((0, 1), keepdims=True) / count)[0]
  gap = rating[:, 0] - rating[:, 1]
  tells = (jnp.abs(gap) > delta * std) & (there.min(1) > 0)
  first = jnp.take_along_axis(gap, tells.argmax(-1)[:, None], -1)[:, 0]
  return jnp.where(tells.any(-1), jnp.sign(first), 0.0)
