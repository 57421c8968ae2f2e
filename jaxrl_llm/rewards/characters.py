"""The completion's length in characters: the baseline that a reward has to beat."""

from jaxrl_llm.rewards.sample import Reward, Sample


def characters(*, sign: float = 1.0) -> Reward:
  """With a `sign` of -1 the shorter completion is the better one."""

  def reward(sample: Sample) -> float:
    return sign * len(sample.completion)

  return reward
