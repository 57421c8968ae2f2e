"""f-DPO (Wang et al., 2023), https://arxiv.org/abs/2309.16240.

  rho = sum_t log(pi / ref) of each completion
  loss = E_pair[ - log sigmoid(beta (f'(e^rho_chosen) - f'(e^rho_rejected))) ]

Differs from dpo: the divergence to the reference may be another than KL(pi || ref),
by its f', `link` (ops/links.py): reverse_kl is dpo; forward_kl, jensen_shannon and
alpha(alpha=...) spread the policy wider.
"""

from jaxrl_llm.methods.dpo import log_ratio, paired
from jaxrl_llm.ops import links, pair_losses
from jaxrl_llm.types import Method


def f_dpo(*, beta: float = 0.1, link=links.reverse_kl) -> Method:
  """`link` maps log(pi / ref) [B, 2] to f', up to a constant."""
  rho = log_ratio(1.0)
  return paired(pair_losses.logistic, lambda out, batch: beta * link(rho(out, batch)))
