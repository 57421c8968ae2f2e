"""SAPO (2025), https://arxiv.org/abs/2511.20347.

  loss = - E_seq E_token[ A (4 / tau) sigmoid(tau (r - 1)) ],  r = pi / pi_old

Differs from grpo: a smooth gate in place of the clip, steeper where A <= 0; on policy
its slope is grpo's. No KL. The temperatures are the libraries' defaults.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, surrogates, weights
from jaxrl_llm.types import Method


def sapo(
  *,
  tau_positive: float = 1.0,
  tau_negative: float = 1.05,
  advantage=advantages.group_norm,
  aggregate=weights.seq_mean,
) -> Method:
  """The temperatures are of tokens with advantage above 0, and of the others."""

  def prepare(state, batch):
    adv = advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  def loss(out, batch):
    w, adv = batch.weight, batch.advantage
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    tau = jnp.where(adv > 0, tau_positive, tau_negative)
    gate = 4 / tau * jax.nn.sigmoid(tau * (ratio - 1))
    gain = jnp.sum(w * adv * gate)
    return -gain, {
      'gain': (gain, jnp.sum(w)),
      'ratio': metrics.average(ratio, w),
      'max/ratio': jnp.max(ratio * batch.mask),
    }

  return Method(loss, ('logp', 'old_logp'), prepare, aggregate=aggregate)
