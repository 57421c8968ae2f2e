"""DPO (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290.

r = beta sum_t log(pi / ref) of each completion
loss = E_pair[ - log sigmoid(r_chosen - r_rejected) ]
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def dpo(
  *, beta: float = 0.1, label_smoothing: float = 0.0, loss=pair_losses.logistic
) -> Method:
  """`loss` is of the margin; `label_smoothing` is the share of pairs that it takes to
  be turned round.
  """
  return paired(smoothed(loss, label_smoothing), log_ratio(beta))


def paired(loss, reward, needs=('logp', 'ref_logp')) -> Method:
  """Of `reward(out, batch)`, [B, 2], and `loss(margin)`, [B]."""
  return rewarded(lambda r: loss(sequences.margin(r)), reward, needs)


def rewarded(loss, reward, needs=('logp', 'ref_logp')) -> Method:
  """Of `reward(out, batch)`, [B, 2], and `loss(reward)`, [B]."""

  def total(out, batch):
    r, w = reward(out, batch), batch.prompt_weight
    found = metrics.pairs(r, w)
    return jnp.sum(w * loss(r)), found

  return Method(total, needs)


def log_ratio(beta: float, reduce=sequences.seq_sum):
  """beta sum_t log(pi / ref) of each completion."""
  return lambda out, batch: beta * reduce(out.logp - batch.ref_logp, batch.mask)


def smoothed(loss, share: float):
  """The mean of `loss` where a share of the pairs is turned round."""
  if not share:
    return loss
  return lambda margin: (1 - share) * loss(margin) + share * loss(-margin)
