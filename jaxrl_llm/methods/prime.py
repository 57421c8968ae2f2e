"""PRIME (2025), https://arxiv.org/abs/2502.01456.

  q_t = log(prm / ref)_t, prm a policy of its own
  A_t = sum_{s >= t} of [s is last] leave-one-out of R, and of process (K q_s - sum over
        the group of mean q) / (K - 1);  whitened over all tokens
  loss = - E_token[ min(r A', clip(r, 1 - clip, 1 + clip) A') ]
         - E_seq[ o log p + (1 - o) log(1 - p) ],  p = sigmoid(prm_beta sum_t q_t)

Differs from rloo: a reward of every token, learned online from outcomes alone: o is 1
where R, or the part of it that config.source.accuracy names, is above 0.5. The rewards
are of the prm before this step. prm_beta and process are the official code's. Its
filter of prompts by accuracy is a source's affair.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, metrics, sequences, weights
from jaxrl_llm.types import Method


def prime(*, process: float = 5.0, prm_beta: float = 0.05, clip: float = 0.2) -> Method:
  """Trains the roles policy and prm. `process` 0 leaves the outcome alone."""
  policy = grpo(clip_low=clip, clip_high=clip, beta=0.0, aggregate=weights.token_mean)

  def prepare(state, batch):
    outcome = advantages.leave_one_out(batch.reward, batch.valid)
    adv = sequences.at_last(outcome, batch.mask)
    q = (batch.old_prm_logp - batch.ref_logp) * batch.mask
    each = sequences.seq_mean(q, batch.mask) * batch.valid
    count = batch.valid.sum(1)[:, None, None]
    others = count * q - each.sum(1)[:, None, None]
    adv += process * others / jnp.maximum(count - 1, 1.0) * batch.mask
    adv = sequences.to_go(adv) * batch.mask
    return state, batch.replace(advantage=advantages.whiten(adv, batch.mask))

  def loss(out, batch):
    gained, found = policy.loss(out, batch)
    logit = prm_beta * sequences.seq_sum(out.prm_logp - batch.ref_logp, batch.mask)
    right = batch.extra.get('accuracy', batch.reward)
    side = jnp.where(right > 0.5, 1.0, -1.0)
    w = batch.seq_weight
    error = jnp.sum(w * -jax.nn.log_sigmoid(side * logit))
    return gained + error, found | {
      'prm_loss': (error, jnp.sum(w)),
      'prm_accuracy': metrics.wins(side * logit, w),
    }

  needs = (*policy.needs, 'prm_logp', 'ref_logp')
  before = ('old_prm_logp', 'ref_logp')
  carried = dict(aggregate=policy.aggregate, reads=('accuracy',))
  return Method(loss, needs, prepare, before, **carried)
