"""The share of a completion's characters that are one letter, less what is allowed.

A toy's cost: above 0 where the letter takes more than its part.
"""

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def letter_share(*, letter: str, allowed: float = 0.0) -> Reward:
  """An empty completion has a share of 0.

  Raises:
    InputError: `letter` is not one character.
  """
  if len(letter) != 1:
    raise InputError(f'letter_share: letter={letter!r}; give one character.')

  def reward(sample: Sample) -> float:
    text = sample.completion
    return text.count(letter) / max(len(text), 1) - allowed

  return reward
