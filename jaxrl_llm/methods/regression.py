"""A reward model of several attributes (HelpSteer2, 2024, https://arxiv.org/abs/2406.08673;
SteerLM, 2023, https://arxiv.org/abs/2310.05344).

  loss = sum over the ratings that are there of (s_a - y_a)^2 / their number

Differs from bradley_terry: a number for each attribute of one completion, on the scale
of the ratings. A rating of null has no part in it.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, ratings
from jaxrl_llm.types import Method

HELPSTEER = 'helpfulness,correctness,coherence,complexity,verbosity'


def regression(*, attributes: str = HELPSTEER) -> Method:
  """Trains the role reward, whose head has a column for each of the attributes."""
  names = ratings.named(attributes)

  def measure(out, batch):
    return ratings.measured(batch, ratings.told(batch, names)[1])

  def loss(out, batch):
    rating, rated = ratings.told(batch, names)
    w, error = ratings.per_rating(batch, rated), out.attributes - rating
    there = batch.seq_weight[..., None] * rated
    square, near = jnp.square(error), (jnp.abs(error) < 0.5).astype(w.dtype)
    each = {
      f'squared_error/{n}': metrics.average(square[..., a], there[..., a])
      for a, n in enumerate(names)
    }
    return jnp.sum(w * square), each | {
      'squared_error': metrics.average(square, there),
      'within_half': metrics.average(near, there),
    }

  return Method(loss, ('attributes',), measure=measure, heads={'reward': len(names)})
