"""CPL (Hejna et al., 2023), https://arxiv.org/abs/2310.13639.

  A = alpha sum_t discount^t log pi(y_t),  t counts the tokens that the policy chose
  loss = E_pair[ log(1 + exp(lam A_rejected - A_chosen)) ]
  anchored: log(pi / ref) in the place of log pi (CPL-KL)

A preference compares regrets, and with an entropy bonus alpha log pi is the optimal
advantage. Differs from dpo: no reference, and lam < 1 keeps the log-probs of both up;
lam=1, anchored and without a discount it is dpo with beta alpha. alpha 0.1 and lam 0.5
are the paper's; CPL-KL has 0.2 and 0.75.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import InputError, Method


def cpl(
  *,
  alpha: float = 0.1,
  lam: float = 0.5,
  discount: float = 1.0,
  anchored: bool = False,
) -> Method:
  """`lam` is the paper's conservative bias."""
  if not 0 < lam <= 1 or not 0 < discount <= 1:
    raise InputError(f'cpl: lam={lam}, discount={discount}; both are above 0, up to 1.')

  def loss(out, batch):
    logp = out.logp - batch.ref_logp if anchored else out.logp
    fade = discount ** jnp.maximum(jnp.cumsum(batch.mask, -1) - 1, 0.0)
    regret = alpha * sequences.seq_sum(fade * logp, batch.mask)
    logit = sequences.margin(regret * jnp.array([[1.0, lam]]))
    w = batch.prompt_weight
    return -jnp.sum(w * jax.nn.log_sigmoid(logit)), {
      'margin': metrics.average(sequences.margin(regret), w),
      'accuracy': metrics.wins(sequences.margin(regret), w),
    }

  return Method(loss, ('logp', 'ref_logp') if anchored else ('logp',))
