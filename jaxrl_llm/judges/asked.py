"""Questions to a judge, several times each, and its readable verdicts."""

from collections.abc import Callable, Sequence

from jaxrl_llm import build
from jaxrl_llm.judges import verdicts
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError

WORST = 0.5  # Share of verdicts that may be unreadable.


def make(by: dict) -> verdicts.Ask:
  """{'name': 'server' or 'local', its options}, or a dotted path to one of your own."""
  if not isinstance(by, dict) or 'name' not in by:
    raise InputError(f"judge: by={by!r}; give dict(name='server', url=..., model=...).")
  return build.made('jaxrl_llm.judges', by, 'judge')


def reference(record: Record, wanted: bool) -> str:
  """The record's answer for a judge to see, or '' where that is not `wanted`."""
  if wanted and not record.answer.strip():
    raise InputError(
      f'judge: reference=True, and record {record.id} has no answer. Name its field in '
      'the task, or leave reference out.'
    )
  return record.answer if wanted else ''


def means(
  ask: verdicts.Ask,
  questions: Sequence[verdicts.Question],
  read: Callable[[str, str], float | None],
  votes: int,
) -> list[float | None]:
  """The mean verdict on each question; None where no vote can be read.

  Raises:
    InputError: `votes` is below 1, or more than WORST of all replies cannot be read. A
      judge that does not keep to the form would give every answer the same reward.
  """
  if votes < 1:
    raise InputError(f'judge: votes={votes}; give at least 1.')
  found: list[list[float | None]] = [[] for _ in questions]
  for vote in range(votes):
    replies = ask([q.messages for q in questions], vote)
    for row, question, reply in zip(found, questions, replies, strict=True):
      row.append(read(reply, question.mark))
  lost = sum(vote is None for row in found for vote in row)
  if lost > WORST * max(len(questions) * votes, 1):
    raise InputError(
      f'judge: {lost} of {len(questions) * votes} replies have no verdict behind its '
      f'mark; the last is {replies[-1][-200:]!r}. Choose a judge that keeps to the '
      'form, or give it more max_tokens.'
    )
  return [verdicts.mean(row) for row in found]
