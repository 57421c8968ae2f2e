"""Intuitive fine-tuning (IFT), 2024, https://arxiv.org/abs/2405.11870.

  e'_t = (1 - mix) e(y_t) + mix e(best_t),  best_t the likeliest token after y_<t
  l_t = - log pi(y_t | x, e'_<t),  c_t = sum_{i >= t} discount^(i - t) l_i
  loss = E[ mean_t w_t l_t ],  w_t = n c_t / sum_t c_t

Differs from sft: the past that a token follows is partly the model's own, and an early
token carries the loss of what follows. e is the embedding, to which e' has no gradient;
the official code keeps a copy of it. As there, w_t has a gradient; whether the paper's
has one is not known. With mix=0 and discount=0, where w_t is 1, it is sft by seq_mean.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, extras, metrics
from jaxrl_llm.types import InputError, Method


def ift(*, mix: float = 0.2, discount: float = 0.95) -> Method:
  """Needs demonstrations. With a mix above 0 the policy runs twice."""
  if not 0 <= mix <= 1 or not 0 <= discount <= 1:
    raise InputError(f'ift: mix={mix}, discount={discount}; both are from 0 to 1.')

  def prepare(state, batch):
    return state, extras.carried(batch, {'mixed': jnp.float32(mix)})

  def loss(out, batch):
    nll, w = -(out.mixed_logp if mix else out.logp), batch.weight
    share = led(nll, batch.mask, discount) if discount else 1.0
    return jnp.sum(w * share * nll), {'nll': metrics.average(nll, w)}

  return Method(loss, ('mixed_logp' if mix else 'logp',), prepare)


def led(nll, mask, discount: float):
  """w_t of the losses l_t, both [B, G, T]; they have the mean 1 over a completion."""
  ahead = advantages.gae(nll, jnp.zeros_like(nll), mask, discount=discount, lam=1.0)
  total = jnp.maximum(ahead.sum(-1, keepdims=True), 1e-9)
  return mask.sum(-1, keepdims=True) * ahead / total
