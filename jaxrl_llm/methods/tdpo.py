"""TDPO (Zeng et al., 2024), https://arxiv.org/abs/2404.11999.

  D = sum_t KL(ref || pi) of the whole distributions at the completion's tokens
  tdpo2: loss = - E[ log sigmoid(beta (h - alpha (D_rejected - sg(D_chosen)))) ]
  tdpo1: alpha=1, detach=False

h as in dpo. Differs from dpo: the KL to the reference is held at each token, forward
and exact over the vocabulary. At the reference D and its slope are 0, so the first
update is dpo's. The reference runs at every update beside the policy.
"""

import jax

from jaxrl_llm.ops import divergences, metrics, sequences
from jaxrl_llm.types import Method


def tdpo(*, beta: float = 0.1, alpha: float = 0.5, detach: bool = True) -> Method:
  """`detach` leaves the chosen completion's KL without a gradient."""

  def prepare(state, batch):
    return state, divergences.asked(batch, 0.0)

  def loss(out, batch):
    h = sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    drift = sequences.seq_sum(out.ref_divergence, batch.mask)
    margin, w = sequences.margin(h), batch.prompt_weight
    chosen = jax.lax.stop_gradient(drift[:, 0]) if detach else drift[:, 0]
    logit = beta * (margin - alpha * (drift[:, 1] - chosen))
    return -(w * jax.nn.log_sigmoid(logit)).sum(), {
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(beta * margin, w),
      'reward_chosen': metrics.average(beta * h[:, 0], w),
      'reward_rejected': metrics.average(beta * h[:, 1], w),
      'divergence': metrics.average(out.ref_divergence, batch.weight),
    }

  return Method(loss, ('logp', 'ref_logp', 'ref_divergence'), prepare)
