"""Supervised fine-tuning: maximum likelihood on demonstrations (a group of one).

loss = - E_token[ log pi(y_t | x, y_<t) ]
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, weights
from jaxrl_llm.types import Method


def sft(*, aggregate=weights.token_mean) -> Method:
  """Needs: demonstrations [B, 1, T]; a larger group is more demonstrations."""

  def loss(out, batch):
    w = batch.weight
    return -jnp.sum(w * out.logp), {'nll': metrics.average(-out.logp, w)}

  return Method(loss, ('logp',), aggregate=aggregate)
