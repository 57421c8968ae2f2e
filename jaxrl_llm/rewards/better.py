"""A judge of two completions: which of them the task's checker scores higher."""

from collections.abc import Callable

from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks.records import Task, checked


def better(*, task: Task) -> Callable[[Sample, Sample], float]:
  """1 where the first is better, -1 where the second is, 0 for a tie."""
  check = checked(task)

  def judge(one: Sample, other: Sample) -> float:
    first, second = (check(s.completion, s.record) for s in (one, other))
    return float(first > second) - float(first < second)

  return judge
