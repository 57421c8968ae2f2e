"""RTO, stage 2 (2024), https://arxiv.org/abs/2404.18922.

  r_t = clip(beta1 log(dpo / ref), -dpo_clip, dpo_clip) - beta2 log(pi_old / ref)
        + [t is last] reward,  and then as ppo

Differs from ppo: a policy trained by dpo (stage 1; config.model.dpo) rewards each
token. All defaults are the official code's, the clip after scaling among them;
dpo_clip=0 leaves it out. The paper's beta3 is the weight of the reward in the config.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.types import Method


def rto(
  *,
  beta1: float = 0.05,
  dpo_clip: float = 0.05,
  beta2: float = 0.01,
  reward_clip: float = 10.0,
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_coef: float = 0.1,
  discount: float = 1.0,
  lam: float = 0.95,
) -> Method:
  """`beta2` is ppo's beta; value_coef is ours."""
  plain = ppo(
    clip=clip,
    value_clip=value_clip,
    value_coef=value_coef,
    beta=beta2,
    reward_clip=reward_clip,
    discount=discount,
    lam=lam,
  )

  def prepare(state, batch):
    told = beta1 * (batch.dpo_logp - batch.ref_logp) * batch.mask
    if dpo_clip:
      told = jnp.clip(told, -dpo_clip, dpo_clip)
    extra = batch.extra | {'token_reward': told}
    return plain.prepare(state, batch.replace(extra=extra))

  needs = (*plain.prepare_needs, 'dpo_logp', 'ref_logp')
  return plain._replace(prepare=prepare, prepare_needs=needs)
