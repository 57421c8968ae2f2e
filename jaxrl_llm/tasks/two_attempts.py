"""Any task, answered twice: SCoRe's setting (2024), https://arxiv.org/abs/2409.12917.

After the first attempt the policy hears, whatever it said, that there may be an error.
"""

from typing import Any

from jaxrl_llm import build
from jaxrl_llm.tasks.records import Env, Record, Task, checked

PROMPT = 'There may be an error in the answer above. Look for it, and answer once more.'


def two_attempts(*, of: dict[str, Any], prompt: str = PROMPT) -> Task:
  """The task `of` ({name, options}) with a second attempt; the words are ours.

  The score is that of the second attempt, 0 where there is none. Parts: `first` and
  `second`; `mended` and `spoiled` are 1 where the second alone, or the first alone, is
  wholly right.
  """
  task = build.made('jaxrl_llm.tasks', of, 'config.task.of')
  check = checked(task)

  def start(record: Record):
    return record.messages, (record, ())

  def step(state, said: str):
    record, scores = state
    scores = (*scores, float(check(said, record)))
    return (record, scores), prompt if len(scores) == 1 else None

  def score(state) -> tuple[float, dict[str, float]]:
    first, second = (*state[1], 0.0, 0.0)[:2]
    parts = {'first': first, 'second': second}
    parts['mended'] = float(first < 1 <= second)
    parts['spoiled'] = float(second < 1 <= first)
    return second, parts

  return task._replace(name='two_attempts', env=Env(start, step, score))
