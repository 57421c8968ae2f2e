"""A reward model from rankings (Plackett, 1975; Luce, 1959).

  P(y_1 > ... > y_K) = prod_k exp(s_k) / sum_{j >= k} exp(s_j),   k = 1 .. K - 1
  loss = E[ - log P ]

Of two it is bradley_terry. `top` stops the product early: 1 is the cross-entropy of the
winner. A completion that ties with another has no factor of its own, only a part in
those of the ones above it; that is our choice, as ties have no closed form here.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics
from jaxrl_llm.types import Method


def plackett_luce(*, top: int = 0) -> Method:
  """Trains the role reward. `top` is of how many places a ranking tells, 0 all."""

  def loss(out, batch):
    w = batch.prompt_weight
    order = jnp.argsort(-batch.reward, axis=1)
    score, rank = (jnp.take_along_axis(x, order, 1) for x in (out.score, batch.reward))
    beaten = jax.lax.cumlogsumexp(score, axis=1, reverse=True)
    above = rank[:, :-1] > rank[:, 1:]
    alone = above & jnp.pad(above[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    told = jnp.arange(alone.shape[1])[None] < (top or alone.shape[1])
    nll = jnp.sum((beaten - score)[:, :-1] * alone * told, 1)
    pair = w[:, None, None] * (rank[:, :, None] > rank[:, None])
    return jnp.sum(w * nll), {
      'nll': metrics.average(nll, w),
      'accuracy': metrics.wins(score[:, :, None] - score[:, None], pair),
    }

  return Method(loss, ('score',))
