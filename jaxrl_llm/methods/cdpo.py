"""Conservative DPO (Mitchell, 2023, a note beside the code of dpo,
https://github.com/eric-mitchell/direct-preference-optimization).

  loss = E_pair[ - (1 - flipped) log sigmoid(u) - flipped log sigmoid(-u) ]

u is the margin of dpo. Differs from dpo: the margin has a finite optimum, log((1 -
flipped) / flipped), where dpo's grows without end. It bounds what is learned of a wrong
label; it does not correct for it, as robust_dpo does.
"""

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.types import Method


def cdpo(*, beta: float = 0.1, flipped: float = 0.1) -> Method:
  """`flipped` is the share of wrong labels, below 1/2."""
  return dpo(beta=beta, label_smoothing=flipped)
