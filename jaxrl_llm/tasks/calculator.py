"""Any task with numbers, and a calculator: what stands in <calc>...</calc> is computed.

The policy's text is parsed (rewards/expression.py) and never run.
"""

from typing import Any, NamedTuple

from jaxrl_llm import build
from jaxrl_llm.rewards import expression
from jaxrl_llm.tasks.records import Env, Record, Task, checked

OPEN, CLOSE = '<calc>', '</calc>'
HINT = f' To compute, write for example {OPEN}2 * (3 + 4){CLOSE} and wait.'


class Desk(NamedTuple):
  """An episode so far."""

  record: Record
  calls: int = 0
  score: float = 0.0


def calculator(*, of: dict[str, Any], hint: str = HINT) -> Task:
  """The task `of` ({name, options}); `hint` is appended to its question.

  A turn with a call is answered with its result; one without is the answer, which the
  task's own check scores. Parts: `calls`. Stop strings end a turn at its call:
  config.source.stop_strings=('</calc>',).
  """
  task = build.made('jaxrl_llm.tasks', of, 'config.task.of')
  check = checked(task)

  def start(record: Record):
    *rest, last = record.messages
    return [*rest, last | {'content': last['content'] + hint}], Desk(record)

  def step(desk: Desk, said: str) -> tuple[Desk, str | None]:
    if (asked := call(said)) is None:
      return desk._replace(score=float(check(said, desk.record))), None
    found = expression.evaluate(asked)
    reply = 'error' if found is None else str(found[0])
    return desk._replace(calls=desk.calls + 1), reply

  def score(desk: Desk) -> tuple[float, dict[str, float]]:
    return desk.score, {'calls': float(desk.calls)}

  return task._replace(name='calculator', env=Env(start, step, score))


def call(said: str) -> str | None:
  """What stands in the last call of a turn, or None."""
  end = said.rfind(CLOSE)
  start = said.rfind(OPEN, 0, max(end, 0))
  return said[start + len(OPEN) : end] if start >= 0 else None
