"""AOT, unpaired (Melnyk et al., 2024), https://arxiv.org/abs/2406.05882.

  d_i = the i-th smallest r of the minibatch's chosen completions
        minus the i-th smallest of its rejected ones,  r = beta sum_t log(pi / ref)
  loss = E_i[ - log sigmoid(d_i) ]

Differs from aot: two bags of completions, as many in each, and who was paired with whom
does not matter. Each side is pulled from the other's number of its rank, as one more
forward pass has found it; what that counts twice is taken off as a constant.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.dpo import log_ratio, smoothed
from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def aot_unpaired(*, beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
  """For pairs, of which each side is a bag; `label_smoothing` as in dpo."""
  of, fitted = smoothed(pair_losses.logistic, label_smoothing), log_ratio(beta)

  def twice(r, partner):
    return of(r[:, 0] - partner[:, 0]) + of(partner[:, 1] - r[:, 1])

  def measure(out, batch):
    r, w = fitted(out, batch), batch.prompt_weight
    sides = (r[:, 0], r[:, 1]), (r[:, 1], r[:, 0])
    partner = jnp.stack([sequences.at_rank(*x, w) for x in sides], 1)
    found = {'partner': partner, 'counted': twice(r, partner) / 2}
    return batch.replace(extra=batch.extra | found)

  def loss(out, batch):
    r, w = fitted(out, batch), batch.prompt_weight
    each = twice(r, batch.extra['partner']) - batch.extra['counted']
    return jnp.sum(w * each), metrics.pairs(r, w)

  return Method(loss, ('logp', 'ref_logp'), measure=measure, measure_needs=('logp',))
