"""A judge's grade of the completion, from 0 to 1.

Zheng et al. (2023), https://arxiv.org/abs/2306.05685: single-answer and
reference-guided grading. The words of the questions and the form of the verdict are
ours (judges/verdicts.py).
"""

from jaxrl_llm.judges import asked, verdicts
from jaxrl_llm.rewards.sample import Batched, Sample


def judge(
  *,
  by: dict,
  low: int = 1,
  high: int = 10,
  reference: bool = False,
  rubric: str = '',
  votes: int = 1,
  unreadable: float = 0.0,
) -> Batched:
  """The mean of `votes` grades, as a share of the scale.

  Args:
    by: dict(name='server', url=..., model=...) or dict(name='local', model=...), with
      the options of judges/server.py and judges/local.py.
    low, high: the scale that the judge is asked for.
    reference: the judge sees the record's answer too.
    rubric: what to look for.
    votes: replies to each question; with a temperature of 0 they are the same.
    unreadable: the reward of a completion whose verdicts cannot be read.
  """
  ask = asked.make(by)

  def question(s: Sample) -> verdicts.Question:
    known = asked.reference(s.record, reference)
    scale = dict(low=low, high=high)
    return verdicts.graded(
      s.prompt, s.completion, **scale, reference=known, rubric=rubric
    )

  def score(samples) -> list[float]:
    read = lambda text, mark: verdicts.grade(text, mark, low=low, high=high)
    found = asked.means(ask, [question(s) for s in samples], read, votes)
    return [unreadable if x is None else x for x in found]

  return Batched(score)
