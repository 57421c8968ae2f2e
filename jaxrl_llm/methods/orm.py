"""Outcome-supervised reward model (Cobbe et al., 2021, https://arxiv.org/abs/2110.14168).

  loss = E_token[ cross-entropy(sigmoid(s_t), the solution is right) ]

Every token of a solution foretells its outcome; the score is the last one's. A reward
above 0 is right. Differs from prm: one label for all tokens. The paper's second loss,
of the language model, is left out, as in https://arxiv.org/abs/2305.20050. Solutions
count alike, whatever their length: our choice.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import binary, metrics, sequences
from jaxrl_llm.types import Method


def orm() -> Method:
  """Trains the role reward."""

  def loss(out, batch):
    right = (batch.reward > 0).astype(out.token_score.dtype)
    nll = binary.cross_entropy(out.token_score, right[..., None])
    w, seq_w = batch.weight, batch.seq_weight
    ends = sequences.at_last(jnp.ones_like(right), batch.mask)
    said = sequences.seq_sum(out.token_score, ends)
    return jnp.sum(w * nll), {
      'nll': metrics.average(nll, w),
      'accuracy': metrics.wins(binary.sided(said, right), seq_w),
      **binary.calibration(said, right, seq_w),
    }

  return Method(loss, ('token_score',))
