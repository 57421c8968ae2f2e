"""MiniLLM (Gu et al., 2023), https://arxiv.org/abs/2306.08543, reverse KL on policy.

  A_t = mean over the tokens s > t of log(teacher / pi_old)_s
  loss = E_token[ KL(pi || teacher)_t - min(r A, clip(r, 1 - clip, 1 + clip) A) ]

The gradient of the sequence's KL(pi || teacher), in two parts: the present token's by
the whole distribution, and the later tokens' by the policy gradient. Exactly so where
A_t is the sum (length_norm=False) and nothing is clipped; their mean keeps long
completions from weighing more. Differs from gkd at beta 1, which has the first part
alone. Without the paper's sampling from a mixture with the teacher and its term of
pretraining text (config.pretrain has that). The clip's 0.2 is the libraries'.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.gkd import gkd
from jaxrl_llm.ops import sequences, surrogates, weights
from jaxrl_llm.types import Method


def minillm(
  *, clip: float = 0.2, length_norm: bool = True, aggregate=weights.token_mean
) -> Method:
  """The teacher is config.model.teacher."""
  single = gkd(beta=1.0, aggregate=aggregate)

  def prepare(state, batch):
    gain = (batch.teacher_logp - batch.old_logp) * batch.mask
    later = sequences.to_go(gain) - gain
    if length_norm:
      left = sequences.to_go(batch.mask) - batch.mask
      later /= jnp.maximum(left, 1.0)
    return single.prepare(state, batch.replace(advantage=later * batch.mask))

  def loss(out, batch):
    value, found = single.loss(out, batch)
    w, adv = batch.weight, batch.advantage
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    gain = jnp.sum(w * surrogates.clipped(ratio, adv, low=clip, high=clip))
    return value - gain, found | {'gain': (gain, jnp.sum(w))}

  needs = ('logp', 'old_logp', *single.needs)
  before = ('old_logp', 'teacher_logp')
  return single._replace(loss=loss, needs=needs, prepare=prepare, prepare_needs=before)
