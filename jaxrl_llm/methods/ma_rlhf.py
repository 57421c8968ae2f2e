"""MA-RLHF (2024), https://arxiv.org/abs/2410.02743, fixed n-grams.

  macro action: n tokens; the last one of a completion is an action of its own
  V and r of a macro action: the mean over its tokens;  A, target = GAE over actions

Differs from ppo: every token of a macro action has its advantage and its target; n=1
is ppo. The reward is averaged over an action, as the official code has it (the paper
sums), so the KL penalty in it counts 1 / n. Ratio, clip and loss are of tokens.
"""

import functools

from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.ops import advantages
from jaxrl_llm.types import Method


def ma_rlhf(
  *,
  n: int = 5,
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_coef: float = 0.1,
  beta: float = 0.05,
  reward_clip: float = 2.5,
  discount: float = 1.0,
  lam: float = 0.95,
) -> Method:
  """The defaults are the official code's, but value_coef, which is ours."""
  return ppo(
    clip=clip,
    value_clip=value_clip,
    value_coef=value_coef,
    beta=beta,
    reward_clip=reward_clip,
    discount=discount,
    lam=lam,
    estimate=functools.partial(advantages.macro_gae, n=n),
  )
