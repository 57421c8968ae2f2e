"""PPO for language models (Schulman et al., 2017, https://arxiv.org/abs/1707.06347;
Ouyang et al., 2022, https://arxiv.org/abs/2203.02155).

  r_t = -beta log(pi_old / ref) + [t is last] reward,  A = GAE,  target = A + V_old
  loss = - E_token[ min(ratio A', clip(ratio) A') ] + value_coef value_loss
  value_loss = 1/2 E_token[ max((V - target)^2, (near - target)^2) ],
  near = V_old + clip(V - V_old, -value_clip, value_clip);  A' is A whitened

`target` is built before whitening. clip, value_clip, discount and lam are the common
library settings, beta that of the DeepSpeed-Chat family; value_coef is ours.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, sequences, surrogates, weights
from jaxrl_llm.ops import kl as kls
from jaxrl_llm.types import Method


def ppo(
  *,
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_coef: float = 0.1,
  beta: float = 0.05,
  discount: float = 1.0,
  lam: float = 0.95,
  aggregate=weights.token_mean,
) -> Method:
  """Needs a critic. Only k1 in the reward has the gradient of KL(pi || ref).

  With `beta` 0 the reference is neither needed nor run.
  """
  ref = ('ref_logp',) if beta else ()

  def prepare(state, batch):
    mask = batch.mask
    reward = sequences.at_last(batch.reward, mask)
    if beta:
      reward -= beta * mask * kls.k1(batch.old_logp, batch.ref_logp)
    adv = advantages.gae(reward, batch.old_value, mask, discount=discount, lam=lam)
    target, white = adv + batch.old_value, advantages.whiten(adv, mask)
    return state, batch.replace(advantage=white, target=target)

  def loss(out, batch):
    w = batch.weight
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    gain = jnp.sum(w * surrogates.clipped(ratio, batch.advantage, low=clip, high=clip))
    hit = surrogates.clip_fraction(ratio, batch.advantage, low=clip, high=clip)
    change = jnp.clip(out.value - batch.old_value, -value_clip, value_clip)
    errors = [out.value - batch.target, batch.old_value + change - batch.target]
    value_error = 0.5 * jnp.maximum(*map(jnp.square, errors))
    found = {
      'gain': (gain, jnp.sum(w)),
      'value_loss': metrics.average(value_error, w),
      'ratio': metrics.average(ratio, w),
      'max/ratio': jnp.max(ratio * batch.mask),
      'clipped': metrics.average(hit, w),
    }
    if beta:
      found['kl_ref'] = metrics.average(kls.k3(out.logp, batch.ref_logp), w)
    return value_coef * jnp.sum(w * value_error) - gain, found

  needs = ('logp', 'value', 'old_logp', 'old_value', *ref)
  before = ('old_logp', 'old_value', *ref)
  return Method(loss, needs, prepare, before, aggregate=aggregate)
