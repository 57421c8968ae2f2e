"""SLiC-HF (Zhao et al., 2023), https://arxiv.org/abs/2305.10425.

  loss = E_pair[ max(0, delta - l_chosen + l_rejected) - lam l_chosen ]

l = sum_t log pi. Differs from cpo: a hinge, which lets go of a pair once it is delta
apart, and a sum in the imitation too. The paper imitates the demonstration, or the best
of its own samples; here it is the chosen completion. lam is ours.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def slic(*, delta: float = 1.0, lam: float = 0.1) -> Method:
  """`lam` weighs the imitation."""

  def loss(out, batch):
    l = sequences.seq_sum(out.logp, batch.mask)
    each = pair_losses.hinge(sequences.margin(l), target=delta) - lam * l[:, 0]
    w = batch.prompt_weight
    return jnp.sum(w * each), metrics.pairs(l, w)

  return Method(loss, ('logp',))
