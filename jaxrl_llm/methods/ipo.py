"""IPO (Azar et al., 2023), https://arxiv.org/abs/2310.12036.

  loss = E[ (h - 1 / (2 tau))^2 ],  h as in dpo, averaged over each completion's tokens

Differs from dpo: a squared loss to a finite margin in place of a logistic one. The
authors say that their results average log-probs per token; `average=False` sums them,
as some repositories do (tau then scales with the length).
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import Method


def ipo(*, tau: float = 0.1, average: bool = True) -> Method:
  """`tau` is the strength of the pull to the reference."""
  reduce = sequences.seq_mean if average else sequences.seq_sum

  def loss(out, batch):
    h = sequences.margin(reduce(out.logp - batch.ref_logp, batch.mask))
    w = batch.prompt_weight
    return jnp.sum(w * jnp.square(h - 1 / (2 * tau))), {
      'margin': metrics.average(h, w),
      'accuracy': metrics.wins(h, w),
    }

  return Method(loss, ('logp', 'ref_logp'))
