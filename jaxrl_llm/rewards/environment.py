"""What the environment of an episode says of it."""

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError


def environment(*, part: str = '') -> Reward:
  """The episode's score, or one part of it by name."""

  def reward(sample: Sample) -> float:
    if not part:
      return sample.score
    if part not in sample.parts:
      raise InputError(f'part={part!r}; the environment has {sorted(sample.parts)}.')
    return sample.parts[part]

  return reward
