"""A reward model from comparisons (Bradley & Terry, 1952; Ouyang et al., 2022,
https://arxiv.org/abs/2203.02155).

  m = s_chosen - s_rejected - margin * the strength that the data give
  loss = E[ - log P(win | m) + center (s_chosen + s_rejected)^2
            + l2 (s_chosen^2 + s_rejected^2) / 2 ],   P(win) = sigmoid(m)

A pair that the data call a tie has loss - log P(tie); `ties` says how likely one is.
Of K > 2 completions of a prompt all comparisons are one group, of weight 1 together;
two of one reward are not compared.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, preferences, sequences
from jaxrl_llm.types import InputError, Method


def bradley_terry(
  *,
  center: float = 0.0,
  l2: float = 0.0,
  margin: float = 0.0,
  label_smoothing: float = 0.0,
  ties=preferences.half,
) -> Method:
  """Trains the role reward.

  Args:
    center, l2: fix the free offset of the scores (0.01 and 0.001 are common).
    margin: weight of the data's `margin` (Llama 2 had four sizes of it, at 1).
    label_smoothing: the share of flipped labels.
    ties: of pairs; half, rao_kupper or davidson: the last two learn how common they
      are, from softplus(0), in the role own. Where it starts is our choice.
  """
  learns = ties is not preferences.half

  def loss(out, batch):
    often = jax.nn.softplus(out.own['tie']) if learns else 0.0
    best, rest, share = sequences.compared(out.score, batch.reward)
    ahead = best - rest
    if learns:
      sequences.margin(out.score)  # Refuses other groups than pairs.
    win, lost, tie = ties(ahead - margin * strength(batch, margin), often)
    tied = batch.extra.get('tie', jnp.zeros(len(ahead)))[:, None] > 0
    nll = -(1 - label_smoothing) * win - label_smoothing * lost
    w, nll = batch.prompt_weight[:, None] * share, jnp.where(tied, -tie, nll)
    drift = center * jnp.square(best + rest)
    drift += l2 * 0.5 * (jnp.square(best) + jnp.square(rest))
    return jnp.sum(w * (nll + drift)), {
      'nll': metrics.average(nll, w),
      'margin': metrics.average(ahead, w * ~tied),
      'accuracy': metrics.wins(ahead, w * ~tied),
    }

  if not learns:
    return Method(loss, ('score',))
  return Method(
    loss, ('score', 'own'), own=lambda key, width: {'tie': jnp.float32(0.0)}
  )


def strength(batch, margin: float):
  """The data's margins [B, 1]; 0 where nobody asks."""
  if not margin:
    return 0.0
  if 'margin' not in batch.extra:
    raise InputError(
      f'config.method.margin={margin}: the data have no margin. Add the field to every '
      'pair, or set it to 0.'
    )
  return batch.extra['margin'][:, None]
