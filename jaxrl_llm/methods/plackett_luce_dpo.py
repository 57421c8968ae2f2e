"""Plackett-Luce DPO (Rafailov et al., 2023, app. A.3), https://arxiv.org/abs/2305.18290.

  s = beta sum_t log(pi / ref)
  loss = - E_list[ sum_i (s_i - log sum_j exp(s_j)) ],  j is i, or ranked below i

Differs from dpo: a ranking of any number of completions, of two it is dpo. The highest
reward is the first rank. The model knows no ties: equal rewards are not compared, which
is our choice.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import preferences, sequences, weights
from jaxrl_llm.types import Method


def plackett_luce_dpo(*, beta: float = 0.1) -> Method:
  """Lists may be ragged: what is not valid has no rank."""

  def loss(out, batch):
    score = beta * sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    among = preferences.ranked(batch.reward, batch.mask.sum(-1))
    logit = jnp.broadcast_to(score[:, None], among.shape)
    gain = preferences.log_first(logit, among).sum(1)
    w = batch.weight.sum((1, 2))
    return -jnp.sum(w * gain), preferences.compared(score, among, w)

  return Method(loss, ('logp', 'ref_logp'), aggregate=weights.lists, whole=True)
