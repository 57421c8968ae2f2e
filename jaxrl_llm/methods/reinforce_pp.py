"""REINFORCE++ (Hu et al., 2025), https://arxiv.org/abs/2501.03262.

  A_t = R - beta sum_{s >= t} log(pi_old / pi_ref)_s,  whitened over all tokens
  loss = - E_token[ min(r A', clip(r, 1 - clip, 1 + clip) A') ]

Differs from ppo: no critic; from grpo: the baseline is the whole batch's, so a group
may be one completion. KL is in the reward (k1, what is still to come). Small batches
whiten badly. beta and clip are OpenRLHF's for PPO.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, kl, sequences, weights
from jaxrl_llm.types import Method


def reinforce_pp(*, clip: float = 0.2, beta: float = 0.01) -> Method:
  """With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    adv = batch.reward[..., None] * jnp.ones_like(batch.mask)
    if beta:
      paid, batch = kl.paid(batch)
      adv -= beta * sequences.to_go(paid)
    return state, batch.replace(advantage=advantages.whiten(adv, batch.mask))

  plain = grpo(clip_low=clip, clip_high=clip, beta=0.0, aggregate=weights.token_mean)
  needs = ('old_logp', 'ref_logp') if beta else ()
  return plain._replace(prepare=prepare, prepare_needs=needs)
