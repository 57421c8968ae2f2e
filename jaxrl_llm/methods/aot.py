"""AOT, paired (Melnyk et al., 2024), https://arxiv.org/abs/2406.05882.

  d_i = the i-th smallest log pi_chosen - log pi_rejected of the minibatch
        minus the i-th smallest of the reference
  loss = E_i[ - log sigmoid(beta d_i) ]

Differs from dpo: a pair's margin is held against the reference's margin of the same
rank, not against the reference's own of this pair: the whole distribution of margins
moves ahead of the reference's. Of a minibatch of one pair it is dpo. It takes one more
forward pass, which finds the ranks.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.dpo import smoothed
from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def aot(*, beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
  """`label_smoothing` as in dpo."""
  of = smoothed(pair_losses.logistic, label_smoothing)

  def margin(logp, batch):
    return sequences.margin(sequences.seq_sum(logp, batch.mask))

  def measure(out, batch):
    mine, other = margin(out.logp, batch), margin(batch.ref_logp, batch)
    target = sequences.at_rank(mine, other, batch.prompt_weight)
    return batch.replace(extra=batch.extra | {'target': target})

  def loss(out, batch):
    logit = beta * (margin(out.logp, batch) - batch.extra['target'])
    rho, w = out.logp - batch.ref_logp, batch.prompt_weight
    reward = beta * sequences.seq_sum(rho, batch.mask)
    return jnp.sum(w * of(logit)), metrics.pairs(reward, w)

  return Method(loss, ('logp', 'ref_logp'), measure=measure, measure_needs=('logp',))
