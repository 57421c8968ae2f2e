"""Process-supervised reward model (Lightman et al., 2023,
https://arxiv.org/abs/2305.20050; Math-Shepherd, 2023, https://arxiv.org/abs/2312.08935).

  loss = E_step[ cross-entropy(sigmoid(s_t), y_t) ],  t the last token of a step

Labels 'signed' are -1, 0 and 1, and 0 counts as right with `neutral` 1. 'soft' ones
are the share of completions from there that end right, 'hard' ones 1 where any does.
Differs from orm: a label of every step. Both papers have the label as a token of the
language model; here it is a head of scores.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import binary, metrics, step_scores
from jaxrl_llm.types import InputError, Method


def prm(*, labels: str = 'soft', neutral: float = 1.0) -> Method:
  """Trains the role reward. Solutions count alike, and the steps within one."""
  if labels not in ('soft', 'hard', 'signed'):
    raise InputError(f"prm: labels is 'soft', 'hard' or 'signed', not {labels!r}.")

  def target(label):
    positive = (label > 0).astype(label.dtype)
    signed = jnp.where(label == 0, neutral, positive)
    return {'soft': label, 'hard': positive, 'signed': signed}[labels]

  def loss(out, batch):
    if 'step_label' not in batch.extra:
      raise InputError("prm: no labels of steps; set config.data.kind='steps'.")
    w, right = batch.weight, target(batch.extra['step_label'])
    nll = binary.cross_entropy(out.token_score, right)
    sound = jnp.all((right > 0.5) | (batch.mask == 0), -1)
    worst = step_scores.least(out.token_score, batch.mask) - 0.5
    return jnp.sum(w * nll), {
      'nll': metrics.average(nll, w),
      'accuracy': metrics.wins(binary.sided(out.token_score, right), w),
      'solution_accuracy': metrics.wins(worst * (2 * sound - 1), batch.seq_weight),
      **binary.calibration(out.token_score, right, w),
    }

  return Method(loss, ('token_score',))
