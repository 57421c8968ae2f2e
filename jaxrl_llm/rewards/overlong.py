"""DAPO's soft penalty on length (Yu et al., 2025), https://arxiv.org/abs/2503.14476.

Equation 13, L the completion's length in tokens:
  0                                  where L <= max_length - cache
  ((max_length - cache) - L) / cache  up to max_length: 0 down to -1
  -1                                 beyond
"""

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def overlong(*, max_length: int, cache: int) -> Reward:
  """A penalty in [-1, 0], in tokens, the stop token included.

  Args:
    max_length: tokens at which the penalty is -1 (20480 in the paper).
    cache: tokens before it over which the penalty grows (4096 in the paper).

  Raises:
    InputError: not 0 < cache <= max_length.
  """
  if not 0 < cache <= max_length:
    raise InputError(
      f'overlong: cache is {cache} and max_length {max_length}; '
      'cache has to be above 0 and at most max_length.'
    )

  def reward(sample: Sample) -> float:
    over = sample.tokens - (max_length - cache)
    return max(min(-over / cache, 0.0), -1.0)

  return reward
