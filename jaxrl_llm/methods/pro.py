"""PRO (Song et al., 2023), https://arxiv.org/abs/2306.17492.

  s = mean_t log pi,  T_ij = reward_i - reward_j,  T_ii = max_j T_ij
  loss = E_list[ sum_i (log sum_j exp(T_ij s_j) - T_ii s_i) + sft (n - 1)^2 nll ]

where j is i, or ranked below i, n is the length of the list and nll = - sum_t log pi of
the best completion. Differs from plackett_luce_dpo: no reference, averaged over tokens,
and each log-prob times the gap of the rewards, the code's form of the paper's
temperature. Equal rewards rank as they come. That the best completion is the one to
imitate is our reading.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, preferences, sequences, weights
from jaxrl_llm.types import Method


def pro(*, sft: float = 0.05) -> Method:
  """`sft` weighs the imitation of the best, in nats of the whole completion."""

  def loss(out, batch):
    there = batch.mask.sum(-1)
    score = sequences.seq_mean(out.logp, batch.mask)
    among = preferences.ranked(batch.reward, there, ties=True)
    gap = batch.reward[:, :, None] - batch.reward[:, None]
    most = jnp.where(among, gap, 0.0).max(-1, keepdims=True)
    gap = jnp.where(jnp.eye(gap.shape[1], dtype=bool)[None], most, gap)
    gain = preferences.log_first(gap * score[:, None], among).sum(1)
    w, size = batch.weight.sum((1, 2)), (there > 0).sum(1)
    best = sequences.best(batch.reward, (there > 0).astype(w.dtype))
    nll = -(best * sequences.seq_sum(out.logp, batch.mask)).sum(1)
    value = sft * jnp.square(size - 1) * nll - gain
    found = preferences.compared(score, among, w)
    return jnp.sum(w * value), found | {
      'nll': metrics.average(-out.logp, best[..., None] * batch.mask)
    }

  return Method(loss, ('logp',), aggregate=weights.lists)
