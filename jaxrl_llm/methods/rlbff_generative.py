"""RLBFF's generative reward model (2025), https://arxiv.org/abs/2509.21319.

  y: reasons, and then Yes or No, whether an answer keeps a principle
  m = log pi_old(Yes | x, y before the verdict) - log pi_old(No | same)
  paid = clip(m, -bound, bound) where Yes is right, clip(-m, -bound, bound) where No is,
         failed where y has no verdict at its end
  R = reward + scale paid;  A = (R - group mean) / (group std + 1e-4), and then as grpo

Differs from rlbff: no word is imitated, the policy reasons first and is paid by how
sure it then is of what is right, whichever it says. So the paper's R, which is `paid`
alone, chooses among reasons and moves the verdict after given ones by chance only. For
that a small scale beside a reward of 1 for a right verdict is ours; the paper's is
scale 1 and config.rewards of weight 0. Bound, failed, beta and clip are ours too: its
values were not found. With this eps equal margins do not differ by their rounding.
"""

import functools

import jax.numpy as jnp

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, metrics, sequences
from jaxrl_llm.types import InputError, Method


def rlbff_generative(
  *,
  scale: float = 1.0,
  bound: float = 10.0,
  failed: float = -10.0,
  beta: float = 1e-4,
  clip: float = 0.2,
) -> Method:
  """Takes config.source.verdict, which says where a completion's verdict stands."""
  norm = functools.partial(advantages.group_norm, eps=1e-4)
  plain = grpo(clip_low=clip, clip_high=clip, beta=beta, advantage=norm)

  def prepare(state, batch):
    if 'verdict' not in batch.extra:
      raise InputError(
        'rlbff_generative: where does the verdict stand? Set config.source.verdict to '
        "True, with config.task.name='principles'."
      )
    where = batch.extra['verdict'] * batch.mask
    there = where.sum(-1)
    odds = sequences.seq_sum(batch.old_odds, where)
    right = odds * batch.extra['verdict_side'][:, None]
    paid = jnp.where(there > 0, jnp.clip(right, -bound, bound), failed)
    total = batch.reward + scale * paid
    state, found = plain.prepare(state, batch.replace(reward=total))
    extra = batch.extra | {'judged': there, 'right': right}
    return state, found.replace(extra=extra)

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    w, right = batch.seq_weight, batch.extra['right']
    judged = batch.extra['judged']
    return value, found | {
      'judged': metrics.average(judged, w),
      'verdict_margin': metrics.average(right, w * judged),
      'verdict_accuracy': metrics.wins(right, w * judged),
    }

  asked = dict(prepare_needs=('old_odds',), reads=('verdict',))
  return plain._replace(loss=loss, prepare=prepare, **asked)
