"""GSPO (Zheng et al., 2025), https://arxiv.org/abs/2507.18071.

  s = exp( mean_t log(pi / pi_old) )
  loss = - E_seq[ min(s A, clip(s, 1 - low, 1 + high) A) ]
  token=True, GSPO-token: s_t = stop_gradient(s) pi_t / stop_gradient(pi_t)
  loss = - E_seq E_token[ min(s_t A_t, clip(s_t, 1 - low, 1 + high) A_t) ]

Differs from grpo: one ratio per completion, the geometric mean of its tokens' ratios,
clipped in a much narrower band (grpo's 0.2 would never clip it); no KL. GSPO-token is
the same, value and gradient, where A is the completion's, and takes an A of tokens too.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, sequences, surrogates
from jaxrl_llm.types import Method


def gspo(
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  token: bool = False,
  advantage=advantages.group_norm,
) -> Method:
  """The clip widths are the paper's, for four minibatches per rollout."""

  def prepare(state, batch):
    adv = advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None] if token else adv)

  def loss(out, batch):
    w, adv = batch.weight if token else batch.seq_weight, batch.advantage
    logp = sequences.seq_mean(out.logp, batch.mask)
    ratio = surrogates.ratio(logp, sequences.seq_mean(batch.old_logp, batch.mask))
    if token:
      fixed = jax.lax.stop_gradient
      ratio = fixed(ratio)[..., None] * surrogates.ratio(out.logp, fixed(out.logp))
    gain = jnp.sum(w * surrogates.clipped(ratio, adv, low=clip_low, high=clip_high))
    hit = surrogates.clip_fraction(ratio, adv, low=clip_low, high=clip_high)
    return -gain, {'gain': (gain, jnp.sum(w)), **metrics.ratios(ratio, hit, w)}

  return Method(loss, ('logp', 'old_logp'), prepare)
