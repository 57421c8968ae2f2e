"""DPO (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290.

h = sum_t log(pi / ref) of chosen minus that of rejected
loss = - E[ log sigmoid(beta h) ]
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import Method


def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Method:
  """`label_smoothing` > 0 is cDPO (Mitchell, 2023): the share of flipped labels."""

  def loss(out, batch):
    h = sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    logit = beta * sequences.margin(h)
    nll = -(1 - label_smoothing) * jax.nn.log_sigmoid(logit)
    nll -= label_smoothing * jax.nn.log_sigmoid(-logit)
    w = batch.prompt_weight
    return jnp.sum(w * nll), {
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit, w),
      'reward_chosen': metrics.average(beta * h[:, 0], w),
      'reward_rejected': metrics.average(beta * h[:, 1], w),
    }

  return Method(loss, ('logp', 'ref_logp'))
