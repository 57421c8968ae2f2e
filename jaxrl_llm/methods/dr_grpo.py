"""Dr. GRPO (Liu et al., 2025), https://arxiv.org/abs/2503.20783.

  A = R - group mean
  loss = - E_seq[ (1 / max_length) sum_t min(r A, clip(r) A) ]

Differs from grpo: no division by the group's standard deviation, and a fixed length in
place of each completion's own, so that neither easy prompts nor long wrong answers are
favoured; no KL. Changing `max_length` rescales the learning rate.
"""

import functools

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, weights
from jaxrl_llm.types import Method


def dr_grpo(
  *, max_length: int, clip_low: float = 0.2, clip_high: float = 0.2
) -> Method:
  """`max_length`: the generation budget in tokens."""
  return grpo(
    clip_low=clip_low,
    clip_high=clip_high,
    beta=0.0,
    advantage=advantages.group_mean,
    aggregate=functools.partial(weights.constant_length, length=max_length),
  )
