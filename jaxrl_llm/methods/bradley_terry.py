"""A reward model from comparisons (Bradley & Terry, 1952; Ouyang et al., 2022,
https://arxiv.org/abs/2203.02155).

  loss = E[ - log sigmoid(s_chosen - s_rejected)
            + center (s_chosen + s_rejected)^2 + l2 (s_chosen^2 + s_rejected^2) / 2 ]
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import Method


def bradley_terry(*, center: float = 0.0, l2: float = 0.0) -> Method:
  """`center` and `l2` fix the free offset of the scores (0.01 and 0.001 are common)."""

  def loss(out, batch):
    logit = sequences.margin(out.score)
    w, nll = batch.prompt_weight, -jax.nn.log_sigmoid(logit)
    drift = center * jnp.square(out.score.sum(1))
    drift += l2 * 0.5 * jnp.square(out.score).sum(1)
    return jnp.sum(w * (nll + drift)), {
      'nll': metrics.average(nll, w),
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit, w),
    }

  return Method(loss, ('score',))
