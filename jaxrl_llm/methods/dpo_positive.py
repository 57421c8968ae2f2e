"""DPO-Positive (Pal et al., 2024, Smaug), https://arxiv.org/abs/2402.13228.

  rho = sum_t log(pi / ref) of each completion
  loss = E_pair[ - log sigmoid(beta (rho_chosen - lam max(0, - rho_chosen)
                                     - rho_rejected)) ]

Differs from dpo: a chosen completion that is less likely than to the reference is
pushed up 1 + lam times as hard. At the kink, rho_chosen 0, its slope is dpo's.
beta 0.3 could not be confirmed.
"""

import jax

from jaxrl_llm.methods.dpo import log_ratio, rewarded
from jaxrl_llm.ops import pair_losses, sequences
from jaxrl_llm.types import Method


def dpo_positive(*, beta: float = 0.3, lam: float = 50.0) -> Method:
  """`lam` is the strength of the penalty, which no metric but the loss counts."""

  def loss(reward):
    fallen = jax.nn.relu(-reward[:, 0])
    return pair_losses.logistic(sequences.margin(reward) - lam * fallen)

  return rewarded(loss, log_ratio(beta))
