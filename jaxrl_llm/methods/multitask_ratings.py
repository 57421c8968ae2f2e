"""Ratings as classes and as numbers at once (Wu et al., 2025,
https://arxiv.org/abs/2506.09183; the classes: RbRL, https://arxiv.org/abs/2307.16348).

  p = (s - min s) / (max s - min s), and b_i the order statistic of p at the number of
      ratings below i, b_0 = 0 and b_n = 1, over the minibatch
  L_0 = - log softmax_i( - k (p - b_i) (p - b_{i+1}) ) at the rating y
  L_1 = (s - log(1 + alpha y))^2
  loss = sum_j exp(-v_j) L_j / 2 + v_j / 2,   v learned, in the role own, from 0

Differs from regression: one attribute, on a scale that saturates. Experimental: both
papers are of control, and no formula of the weights was found; this one is ours, as is
alpha. No gradient goes through min, max and b; the official code's goes through the
first two.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import extras, metrics, ratings
from jaxrl_llm.types import Method


def multitask_ratings(
  *,
  attribute: str = 'overall',
  classes: int = 5,
  lowest: float = 0.0,
  k: float = 30.0,
  alpha: float = 1.0,
  learned: bool = True,
) -> Method:
  """Trains reward, whose score it is. Ratings are `lowest`, `lowest` + 1, ..."""
  levels = lambda batch: [x[..., 0] for x in ratings.told(batch, [attribute])]

  def measure(out, batch):
    rating, rated = levels(batch)
    there = rated * (batch.seq_weight > 0)
    low, span = ratings.extent(out.score, there)
    p = ratings.scaled(out.score, low, span)
    bounds = ratings.boundaries(p, rating - lowest, there, classes)
    batch = ratings.measured(batch, rated[..., None])
    return extras.carried(batch, {'low': low, 'span': span, 'bounds': bounds})

  def loss(out, batch):
    rating, rated = levels(batch)
    y, w = rating - lowest, ratings.per_rating(batch, rated[..., None])[..., 0]
    low, span = (batch.extra[k][:, None] for k in ('low', 'span'))
    bounds = batch.extra['bounds'][:, None]
    logits = ratings.class_logits(ratings.scaled(out.score, low, span), bounds, k)
    chance = jax.nn.log_softmax(logits)
    at = jnp.clip(y, 0, classes - 1).astype(jnp.int32)
    nll = -jnp.take_along_axis(chance, at[..., None], -1)[..., 0]
    square = jnp.square(out.score - jnp.log1p(alpha * y))
    v = out.own['uncertainty'] if learned else jnp.zeros(2)
    total = jnp.array([jnp.sum(w * nll), jnp.sum(w * square)])
    right, there = (logits.argmax(-1) == at).astype(w.dtype), batch.seq_weight * rated
    return jnp.sum(jnp.exp(-v) * total + v * jnp.sum(w)) / 2, {
      'nll': metrics.average(nll, there),
      'squared_error': metrics.average(square, there),
      'right_class': metrics.average(right, there),
    }

  needs = ('score', 'own') if learned else ('score',)
  own = (lambda key, width: {'uncertainty': jnp.zeros(2)}) if learned else None
  return Method(loss, needs, measure=measure, measure_needs=('score',), own=own)
