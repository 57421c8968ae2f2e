"""2-GRPO, "It Takes Two" (2025), https://arxiv.org/abs/2510.00977.

  A = sign(R_1 - R_2) and its negative: +-1, or 0 for a tie
  loss = - E_seq E_token[ min(r A, clip(r, 1 - low, 1 + high) A) ]

Differs from grpo: groups of two. Its advantage is grpo's for such a group (population
standard deviation, eps 0); of a binary reward its mean given R is R - p, without
grpo's 1 / sqrt(p (1 - p)). No KL. The clip widths are the paper's; it multiplies the
learning rate by as much as there are fewer updates in an epoch (8 against groups of
16).
"""

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages
from jaxrl_llm.types import Method


def two_grpo(*, clip_low: float = 0.2, clip_high: float = 0.28) -> Method:
  """For config.source.group=2."""
  return grpo(
    clip_low=clip_low, clip_high=clip_high, beta=0.0, advantage=advantages.pair_sign
  )
