"""The task's own verdict on the completion."""

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.tasks.records import Task, checked


def checker(*, task: Task, binary: bool = False) -> Reward:
  """`task.check` as a reward in [0, 1].

  Args:
    binary: pays 0 for partial credit. Some verifiers pay part of the score for an
      answer that is near, or that contains the right one.
  """
  check = checked(task)

  def reward(sample: Sample) -> float:
    score = check(sample.completion, sample.record)
    return float(score >= 1) if binary else score

  return reward
