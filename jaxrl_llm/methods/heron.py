"""HERON, comparisons by a hierarchy (2023, https://arxiv.org/abs/2309.02632).

  side = sign(z_1 - z_2) of the first factor z with |z_1 - z_2| > delta * std(z)
  loss = E_decided[ - log sigmoid(side (s_1 - s_2)) ]

Differs from bradley_terry: nobody says which completion is the better one; factors do,
the most important one first. A pair that none decides is left out. The deviation is of
all completions of the minibatch; the paper's data are trajectories of control.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import extras, metrics, ratings, sequences
from jaxrl_llm.types import Method


def heron(*, factors: str = 'correct,format,length', delta: float = 0.5) -> Method:
  """Trains the role reward on pairs with ratings. The value of delta is ours."""
  names = ratings.named(factors)

  def measure(out, batch):
    rating, rated = ratings.told(batch, names)
    there = rated * (batch.seq_weight > 0)[..., None]
    side = ratings.lexical(rating, there, delta)
    w = batch.prompt_weight
    share = jnp.sum(w * jnp.abs(side)) / jnp.maximum(jnp.sum(w), 1e-6)
    batch = batch.replace(extra=batch.extra | {'side': side})
    return extras.carried(batch, {'decided_share': share})

  def loss(out, batch):
    side, share = batch.extra['side'], batch.extra['decided_share']
    logit = side * sequences.margin(out.score)
    decided = batch.prompt_weight * jnp.abs(side)
    w = decided / jnp.maximum(share, 1e-6)
    nll = -jax.nn.log_sigmoid(logit)
    return jnp.sum(w * nll), {
      'nll': metrics.average(nll, decided),
      'margin': metrics.average(logit, decided),
      'accuracy': metrics.wins(logit, decided),
      'decided': metrics.average(jnp.abs(side), batch.prompt_weight),
    }

  return Method(loss, ('score',), measure=measure)
