"""CISPO (MiniMax-M1, 2025), https://arxiv.org/abs/2506.13585.

  loss = - E_token[ stop_gradient(min(r, ratio_max)) A log pi(y_t) ]

Differs from dapo: the ratio is clipped and detached and multiplies log pi, so that no
token loses its gradient. The paper tunes the bound; 5 is a later recipe's. The lower
bound is left out, as the paper leaves it unused.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, surrogates, weights
from jaxrl_llm.types import Method


def cispo(
  *,
  ratio_max: float = 5.0,
  advantage=advantages.group_norm,
  aggregate=weights.token_mean,
) -> Method:
  """`ratio_max` bounds the weight of a token."""

  def prepare(state, batch):
    adv = advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  def loss(out, batch):
    w = batch.weight
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    bounded = jax.lax.stop_gradient(jnp.minimum(ratio, ratio_max))
    gain = jnp.sum(w * bounded * batch.advantage * out.logp)
    found = metrics.ratios(ratio, ratio > ratio_max, w)
    return -gain, found | {'gain': (gain, jnp.sum(w))}

  return Method(loss, ('logp', 'old_logp'), prepare, aggregate=aggregate)
