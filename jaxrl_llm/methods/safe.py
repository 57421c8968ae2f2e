"""SAFE (2026), https://arxiv.org/abs/2602.04651. Experimental: from its code alone.

  V = -alpha (logsumexp(-V_1 / alpha, -V_2 / alpha) - log 2), before the first token
  A = whitened R - V_old, one per completion
  loss = - E_token[ min(ratio A, clip(ratio) A) ] + price KL
         + value_coef E_seq[ (huber(V - R) + huber(near - R)) / 2 ],
  near = V_old + clip(V - V_old, -value_clip, value_clip)

Differs from ppo: a completion is one action, and its baseline the soft minimum of two
critics, the second of which starts at random; KL costs something only above a threshold
that follows reward and phase, and more where entropy is low (controllers.kl_gate).

The released code takes its penalty from a number without a gradient: penalty=0 is what
it trains. Here the penalty's slope is in the loss. The code also reads V at the end of
the padded completion, which the action moves; here V is the prompt's. Its KL preview is
never called, and left out. R by running moments, and KL by k2, which has the gradient
of KL(pi || ref), are ours. Its entropy bonus is config.plan.entropy_coef=0.01, its two
epochs config.plan.epochs, its clip of the critics config.optimizer's clip=0.5.
"""

import jax.numpy as jnp

from jaxrl_llm import controllers
from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, metrics, sequences, surrogates, weights
from jaxrl_llm.ops import kl as kls
from jaxrl_llm.types import Method


def safe(
  *,
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_coef: float = 0.5,
  penalty: float = 0.1,
  alpha: float = 0.3,
  delta: float = 0.5,
  reward_scale: str = 'norm',
  kl=kls.k2,
) -> Method:
  """`delta` is where huber turns linear. Needs two critics.

  With `penalty` 0 the reference is neither needed nor run.
  """
  kls.check_in_loss(kl, False)
  scaled, moments = controllers.reward_scaler(reward_scale, 0.0)
  gated, charged, start = controllers.kl_gate(penalty, kl)
  plain = grpo(clip_low=clip, clip_high=clip, beta=0.0, aggregate=weights.token_mean)
  bounds = dict(clip=value_clip, delta=delta)

  def baseline(mask, *values):
    first = (sequences.at_first(x, mask) for x in values)
    return surrogates.soft_minimum(*first, alpha=alpha)

  def prepare(state, batch):
    state, score = scaled(state, batch)
    old = baseline(batch.mask, batch.old_value, batch.old_twin_value)
    adv = advantages.whiten(score - old, batch.valid)
    extra = batch.extra | {'score': score, 'baseline': old}
    return gated(state, batch.replace(advantage=adv[..., None], extra=extra))

  def loss(out, batch):
    total, found = plain.loss(out, batch)
    cost, more = charged(out, batch)
    value = baseline(batch.mask, out.value, out.twin_value)
    old, score = batch.extra['baseline'], batch.extra['score']
    error = surrogates.huber_error(value, old, score, **bounds)
    more['baseline_loss'] = metrics.average(error, batch.seq_weight)
    critics = value_coef * jnp.sum(batch.seq_weight * error)
    return total + cost + critics, found | more

  priced = ('ref_logp',) if penalty else ()
  before = ('old_logp', 'old_value', 'old_twin_value', *priced)
  before += ('old_entropy',) if penalty else ()
  needs = (*plain.needs, 'value', 'twin_value', *priced)
  found = dict(loss=loss, needs=needs, prepare=prepare, prepare_needs=before)
  return plain._replace(**found, extra=moments | start)
