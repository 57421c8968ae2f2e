"""Safe-RLHF, or PPO-Lagrangian (Dai et al., 2023), https://arxiv.org/abs/2310.12773.

  max E[R]  subject to  E[C] <= threshold
  r_t = -beta log(pi_old / ref) + [t is last] R,  c_t = beta log(pi_old / ref) + [..] C
  A = (GAE of r - lambda GAE of c) / (1 + lambda),  and then the loss of ppo
  log lambda <- min(log lambda + rate lambda (mean C - threshold), log multiplier_max)

Differs from ppo: a second critic, for costs (config.costs), and a multiplier that grows
while the mean of the last `window` costs is above the threshold. KL is in both streams,
so the policy pays beta of it whatever lambda is. Defaults are the script's of the
HC-RLHF fork; value_coef, lam and delay are ours, discount is left at 1, and A is not
whitened unless asked. The pretraining mix is left out.
"""

import jax.numpy as jnp

from jaxrl_llm import controllers
from jaxrl_llm.methods import ppo
from jaxrl_llm.ops import advantages, extras, kl, metrics, sequences, surrogates
from jaxrl_llm.ops.weights import token_mean
from jaxrl_llm.types import Method


def safe_rlhf(
  *,
  threshold: float = 0.0,
  multiplier: float = 1.0,
  rate: float = 0.01,
  multiplier_max: float = 1e6,
  window: int = 128,
  delay: int = 0,
  beta: float = 0.1,
  score_clip: float = 50.0,
  clip: float = 0.1,
  value_clip: float = 5.0,
  value_coef: float = 0.1,
  whiten: bool = False,
  lam: float = 0.95,
) -> Method:
  """`multiplier` is where lambda starts, which rests for `delay` steps; 0 stays 0.

  Needs two critics. With `beta` 0 the reference is neither needed nor run.
  """
  moved, start = controllers.multiplier(
    multiplier, rate, most=multiplier_max, threshold=threshold, size=window, delay=delay
  )

  def prepare(state, batch):
    cost = extras.read(batch, 'cost', 'safe_rlhf')
    state, found = moved(state, cost, extras.fresh(batch))
    paid, batch = kl.paid(batch) if beta else (0.0, batch)
    end = lambda x: sequences.at_last(jnp.clip(x, -score_clip, score_clip), batch.mask)
    of = lambda x, v: advantages.gae_targets(x, v, batch.mask, lam=lam)
    gain, target = of(end(batch.reward) - beta * paid, batch.old_value)
    price, cost_target = of(end(cost) + beta * paid, batch.old_cost_value)
    adv = (gain - found.multiplier * price) / (1.0 + found.multiplier)
    adv = advantages.whiten(adv, batch.mask) if whiten else adv
    batch = extras.carried(batch, {'multiplier': found.multiplier})
    extra = batch.extra | {'cost_target': cost_target}
    return state, batch.replace(advantage=adv, target=target, extra=extra)

  loss = make_loss(clip, value_clip, value_coef, beta)
  before = ('old_logp', 'old_value', 'old_cost_value') + (('ref_logp',) if beta else ())
  needs = ('logp', 'value', 'cost_value', *before)
  return Method(loss, needs, prepare, before, aggregate=token_mean, extra=start)


def make_loss(clip: float, value_clip: float, value_coef: float, beta: float):
  """ppo's, and the same critic's loss again for costs."""
  plain = ppo.make_loss(clip, value_clip, value_coef, beta)

  def loss(out, batch):
    value, found = plain(out, batch)
    w, target = batch.weight, batch.extra['cost_target']
    error = surrogates.value_error(
      out.cost_value, batch.old_cost_value, target, clip=value_clip
    )
    found |= metrics.told(batch, 'multiplier') | {
      'cost_value_loss': metrics.average(error, w)
    }
    return value + value_coef * jnp.sum(w * error), found

  return loss
