"""DiscoPOP (Lu et al., 2024), https://arxiv.org/abs/2406.08414.

  loss = E_pair[ (1 - s) (- log sigmoid(u)) + s exp(-u) ],  s = sigmoid(u / tau)

u is the margin of dpo. Differs from dpo: another loss of the margin, which a language
model found. It has two basins: at the reference it pulls u down, to a minimum at
-0.119 (for tau 0.05), and up only from 0.072 on; noise and large steps take it there.
"""

import functools

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.ops import pair_losses
from jaxrl_llm.types import Method


def discopop(*, beta: float = 0.05, tau: float = 0.05) -> Method:
  """`tau` is the width of the blend of the two losses, in nats of u; below 1."""
  return dpo(beta=beta, loss=functools.partial(pair_losses.discopop, tau=tau))
