"""RLBFF's generative reward model (Wang et al., 2025), https://arxiv.org/abs/2509.21319.

  y: reasons, and then Yes or No, whether an answer keeps a principle
  m = log pi_old(Yes | x, y before the verdict) - log pi_old(No | same)
  R = clip(m, -bound, bound) where Yes is right, clip(-m, -bound, bound) where No is
  R = failed where y has no verdict at its end;  and then as grpo

Differs from rlbff: no word is imitated, the policy reasons first and is paid by how
sure it then is of what is right, whichever it says. R stands in the place of
config.rewards. That failed pays as little as the worst verdict, the bound of 10, beta
1e-4 and the clip are ours: the paper's values were not found.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import InputError, Method


def rlbff_generative(
  *,
  bound: float = 10.0,
  failed: float = -10.0,
  beta: float = 1e-4,
  clip: float = 0.2,
) -> Method:
  """Takes config.source.verdict, which says where a completion's verdict stands."""
  plain = grpo(clip_low=clip, clip_high=clip, beta=beta)

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
    state, found = plain.prepare(state, batch.replace(reward=paid))
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

  return plain._replace(loss=loss, prepare=prepare, prepare_needs=('old_odds',))
