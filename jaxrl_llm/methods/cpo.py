"""CPO (Xu et al., 2024), https://arxiv.org/abs/2401.08417.

  loss = E_pair[ - log sigmoid(r_chosen - r_rejected) + alpha nll ]

r = beta sum_t log pi, nll the mean of - log pi over the chosen completion's tokens.
Differs from dpo: no reference, and the chosen is imitated in its place.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def cpo(*, beta: float = 0.1, alpha: float = 1.0) -> Method:
  """`alpha` weighs the imitation."""

  def loss(out, batch):
    r = beta * sequences.seq_sum(out.logp, batch.mask)
    nll = -sequences.seq_mean(out.logp, batch.mask)[:, 0]
    each = pair_losses.logistic(sequences.margin(r)) + alpha * nll
    w = batch.prompt_weight
    return jnp.sum(w * each), metrics.pairs(r, w) | {'nll': metrics.average(nll, w)}

  return Method(loss, ('logp',))
