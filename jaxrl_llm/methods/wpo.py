"""WPO (Zhou et al., 2024), https://arxiv.org/abs/2406.11827.

  w = exp(mean_t (log pi - log sum_v pi(v)^2)) of each completion, detached
  loss = E_pair[ w_chosen w_rejected (- log sigmoid(u)) ]

u is the margin of dpo. Differs from dpo: a pair counts by how likely the policy would
write it itself. Of the policy's own text pi / sum_v pi(v)^2 is 1 in the mean. beta 0.01
is from code of others.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.dpo import log_ratio
from jaxrl_llm.ops import metrics, pair_losses, sequences
from jaxrl_llm.types import Method


def wpo(*, beta: float = 0.01) -> Method:
  """For pairs."""
  fitted = log_ratio(beta)

  def loss(out, batch):
    r, w = fitted(out, batch), batch.prompt_weight
    own = jax.lax.stop_gradient(out.logp - out.collision)
    own = jnp.exp(sequences.seq_mean(own, batch.mask).sum(1))
    each = own * pair_losses.logistic(sequences.margin(r))
    found = metrics.pairs(r, w) | {'pair_weight': metrics.average(own, w)}
    return jnp.sum(w * each), found

  return Method(loss, ('logp', 'collision', 'ref_logp'))
