"""SimPO (Meng et al., 2024), https://arxiv.org/abs/2405.14734.

  loss = - E[ log sigmoid(beta (mean log pi of chosen - of rejected) - gamma) ]

Differs from dpo: no reference; averaged over tokens; a target margin gamma. The
authors tune beta in 2 to 10 and gamma / beta in 0.1 to 0.8.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import Method


def simpo(*, beta: float = 2.0, gamma: float = 1.0) -> Method:
  """`gamma` is the paper's (not gamma / beta)."""

  def loss(out, batch):
    logp = sequences.seq_mean(out.logp, batch.mask)
    logit = beta * sequences.margin(logp) - gamma
    w = batch.prompt_weight
    return -jnp.sum(w * jax.nn.log_sigmoid(logit)), {
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit + gamma, w),
    }

  return Method(loss, ('logp',))
