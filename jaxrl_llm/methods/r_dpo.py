"""R-DPO, length-regularised (Park et al., 2024), https://arxiv.org/abs/2403.19159.

  loss = E_pair[ - log sigmoid(u + alpha (n_chosen - n_rejected)) ]

u is the margin of dpo, n the length of a completion. Differs from dpo: the reward that
it fits pays alpha for every token less. A chosen completion that is the longer one is
ahead by its length, and so is pushed less. alpha 0.01 is from code of others; the paper
tunes it.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.dpo import log_ratio
from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def r_dpo(*, beta: float = 0.1, alpha: float = 0.01) -> Method:
  """`alpha` is in nats per token. The metrics but the loss leave the lengths out."""
  fitted = log_ratio(beta)

  def loss(out, batch):
    r, w = fitted(out, batch), batch.prompt_weight
    ahead = alpha * sequences.margin(batch.mask.sum(-1))
    each = pair_losses.logistic(sequences.margin(r) + ahead)
    return jnp.sum(w * each), metrics.pairs(r, w)

  return Method(loss, ('logp', 'ref_logp'))
