"""PPO for language models (Schulman et al., 2017, https://arxiv.org/abs/1707.06347;
Ouyang et al., 2022, https://arxiv.org/abs/2203.02155).

  r_t = -beta log(pi_old / ref) + [t is last] reward,  A = GAE,  target = A + V_old
  loss = - E_token[ min(ratio A', clip(ratio) A') ] + value_coef value_loss
  value_loss = 1/2 E_token[ max((V - target)^2, (near - target)^2) ],
  near = V_old + clip(V - V_old, -value_clip, value_clip);  A' is A whitened

`target` is built before whitening. clip, value_clip, discount and lam are the common
library settings, beta that of the DeepSpeed-Chat family; value_coef is ours. PPO-max
(2023, https://arxiv.org/abs/2307.04964) is reward_scale='norm',
reward_clip, advantage_clip=0.5 and critic_steps; the critic's gradient has a clip of
its own, config.optimizer.critic.clip. PPO-ptx is config.pretrain beside this.
Rewards of single tokens are added where the batch has them, as extra['token_reward']
[B, G, T]. The score is clipped to +-10 in the libraries; here reward_clip is off, so
that rewards on another scale are not cut unseen.
"""

import jax.numpy as jnp

from jaxrl_llm import controllers
from jaxrl_llm.ops import advantages, metrics, sequences, surrogates, weights
from jaxrl_llm.ops import kl as kls
from jaxrl_llm.types import Method


def ppo(
  *,
  clip: float = 0.2,
  dual_clip: float = 0.0,
  value_clip: float = 0.2,
  value_coef: float = 0.1,
  beta: float = 0.05,
  kl_target: float = 0.0,
  kl_horizon: float = 10000.0,
  reward_scale: str = 'none',
  reward_clip: float = 0.0,
  advantage_clip: float = 0.0,
  critic_steps: int = 0,
  discount: float = 1.0,
  lam: float = 0.95,
  estimate=advantages.gae_targets,
  aggregate=weights.token_mean,
) -> Method:
  """Needs a critic. Only k1 in the reward has the gradient of KL(pi || ref).

  Args:
    dual_clip: bound of the ratio where A' < 0, such as 3; 0 is none.
    beta: where 0, the reference is neither needed nor run.
    kl_target: nats per completion; above 0 it moves beta (controllers.adaptive_kl).
    reward_scale: 'scale' or 'norm' by running moments (controllers.reward_scaler).
    reward_clip, advantage_clip: bounds of the scaled score and of A'; 0 is none.
    critic_steps: the policy rests for so many steps.
    estimate: (reward, value, mask, discount=, lam=) to (A, target).
  """
  scaled, moments = controllers.reward_scaler(reward_scale, reward_clip)
  moved, start = controllers.adaptive_kl(beta, kl_target, kl_horizon)

  def prepare(state, batch):
    mask = batch.mask
    state, score = scaled(state, batch)
    reward = sequences.at_last(score, mask) + batch.extra.get('token_reward', 0.0)
    if beta:
      paid, batch = kls.paid(batch)
      reward -= (state.extra['beta'] if kl_target else beta) * paid
    adv, target = estimate(reward, batch.old_value, mask, discount=discount, lam=lam)
    bound = advantage_clip or jnp.inf
    white = jnp.clip(advantages.whiten(adv, mask), -bound, bound)
    white *= (state.step >= critic_steps) if critic_steps else 1.0
    return state, batch.replace(advantage=white, target=target)

  needs = ('logp', 'value', 'old_logp', 'old_value') + (('ref_logp',) if beta else ())
  loss = make_loss(clip, value_clip, value_coef, beta, dual_clip)
  carried = dict(aggregate=aggregate, extra=moments | start, after=moved)
  return Method(loss, needs, prepare, prepare_needs=needs[2:], **carried)


def make_loss(clip: float, value_clip: float, value_coef: float, beta, dual=0.0):
  """Policy and critic together; `beta` only says whether there is a KL to show."""
  band = surrogates.band(clip, clip, dual)

  def loss(out, batch):
    w = batch.weight
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    gain = jnp.sum(w * surrogates.clipped(ratio, batch.advantage, **band))
    hit = surrogates.clip_fraction(ratio, batch.advantage, **band)
    error = surrogates.value_error(
      out.value, batch.old_value, batch.target, clip=value_clip
    )
    found = metrics.kl_paid(batch) | {
      'gain': (gain, jnp.sum(w)),
      'value_loss': metrics.average(error, w),
      **metrics.ratios(ratio, hit, w),
    }
    if beta:
      found['kl_ref'] = metrics.average(kls.k3(out.logp, batch.ref_logp), w)
    return value_coef * jnp.sum(w * error) - gain, found

  return loss
