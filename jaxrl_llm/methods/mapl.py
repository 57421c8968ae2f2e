"""MAPL (2025), https://arxiv.org/abs/2505.12845: which prompt a completion fits better.

  rho(y | x) = sum_t log(pi / ref)
  loss = - E[ log sigmoid(beta (rho(y | x_better) - rho(y | x_worse))) ]

The loss is dpo's; what differs is what a pair is: one completion after two prompts
(kind prompt_pairs). Experimental: this is the paper's intra-sample term alone, from
sources about it; the formula of the other one, between samples, was not found. Across
prompts log Z does not cancel: the margin is that of the rewards less beta (log Z_better
- log Z_worse), which the loss takes for 0. beta is dpo's.
"""

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.types import Method


def mapl(*, beta: float = 0.1) -> Method:
  """For one completion after two prompts."""
  return dpo(beta=beta)
