"""DAPO (Yu et al., 2025), https://arxiv.org/abs/2503.14476.

  loss = - E_token[ min(r A, clip(r, 1 - low, 1 + high) A) ]

Differs from grpo: the upper clip is wider, so that rare tokens can grow; tokens rather
than completions are averaged (over the minibatch, as the official code; the paper's
text averages per group); there is no KL. Its other two parts are not losses: overlong
shaping is rewards/overlong.py, dynamic sampling is sources.until_mixed.
"""

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import weights
from jaxrl_llm.types import Method


def dapo(*, clip_low: float = 0.2, clip_high: float = 0.28) -> Method:
  """The clip widths are the paper's."""
  return grpo(
    clip_low=clip_low, clip_high=clip_high, beta=0.0, aggregate=weights.token_mean
  )
