"""GMPO (2025), https://arxiv.org/abs/2507.20673.

  d_t = log(pi / pi_old), held below log_clip where A > 0, above -log_clip where A < 0
  loss = - E_seq[ A exp( mean_t d_t ) ]

Differs from gspo: each token is clipped before the geometric mean, not the mean after
it. The clip is a width of the logarithm; 0.4 is the libraries'. No KL.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, kl, metrics, sequences
from jaxrl_llm.types import Method


def gmpo(*, log_clip: float = 0.4, advantage=advantages.group_norm) -> Method:
  """`log_clip` bounds a token's log ratio on the side where it would gain."""

  def prepare(state, batch):
    return state, batch.replace(advantage=advantage(batch.reward, batch.valid))

  def loss(out, batch):
    w, side = batch.seq_weight, jnp.sign(batch.advantage)[..., None]
    gained = side * kl.log_ratio(out.logp, batch.old_logp)
    held = side * jnp.minimum(gained, log_clip)
    ratio = jnp.exp(sequences.seq_mean(held, batch.mask))
    gain = jnp.sum(w * batch.advantage * ratio)
    return -gain, {
      'gain': (gain, jnp.sum(w)),
      'ratio': metrics.average(ratio, w),
      'max/ratio': jnp.max(ratio),
      'clipped': metrics.average((gained > log_clip).astype(w.dtype), batch.weight),
    }

  return Method(loss, ('logp', 'old_logp'), prepare)
