"""Questions of a table that cannot be asked: found before training."""

from collections.abc import Callable, Sequence

from jaxrl_llm.data.tables import located
from jaxrl_llm.tasks.records import Cycle, Record, Task
from jaxrl_llm.types import InputError

POLICIES = ('error', 'drop')


def fitted(task: Task, encode: Callable[..., list[int]], room: int) -> Task:
  """The task without the questions that are too long, if its `long_prompt` is 'drop'.

  Every question is worded and encoded once; the report says how many are left out. A
  task that makes its questions up, without a table, stays as it is.

  Args:
    encode: messages and what else the chat template reads, to ids.
    room: tokens of a prompt (config.source.max_prompt).

  Raises:
    InputError: names file and line of a question that the chat template refuses, or
      that is too long; or none is left.
  """
  if task.long_prompt not in POLICIES:
    raise InputError(
      f'config.task.long_prompt={task.long_prompt!r}; there are {POLICIES}.'
    )
  if not isinstance(task.train, Cycle):
    return task
  report = [*task.report]
  train, test = (
    short(rows, encode, room, task.long_prompt, split, report)
    for split, rows in (('training', task.train.rows), ('held-out', task.test))
  )
  cycle = Cycle(train, task.train.seed)
  return task._replace(train=cycle, test=tuple(test), report=report)


def short(
  rows: Sequence[Record], encode, room: int, policy: str, split: str, report: list[str]
) -> list[Record]:
  """The rows of a split that fit; a line about the others goes to `report`."""
  sizes = [length(row, encode) for row in rows]
  kept = [row for row, size in zip(rows, sizes) if size <= room]
  if len(kept) == len(rows):
    return kept
  over = (
    f'{len(rows) - len(kept)} of {len(rows)} {split} questions are over '
    f'max_prompt={room}, the longest {max(sizes)} tokens'
  )
  if policy == 'error' or not kept:
    first = next(row for row, size in zip(rows, sizes) if size > room)
    raise InputError(
      f'{first.where}: a prompt does not fit: {over}. Raise config.source.max_prompt, '
      "or set config.task.long_prompt='drop', which has to leave some."
    )
  report.append(f"{over}: they are left out (long_prompt='drop').")
  return kept


def length(row: Record, encode) -> int:
  """Tokens of a question; what is wrong with it is told with its place."""
  with located(row.where):
    return len(encode(row.messages, row.template))
