"""GSM8K's example model solutions: four graded answers to each test question.

The file is `example_model_solutions.jsonl` of https://github.com/openai/grade-school-math.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.data.files import held_out, key_of
from jaxrl_llm.data.kinds import VERDICTS, rankings, text
from jaxrl_llm.data.tables import located, open_table
from jaxrl_llm.types import InputError


def solutions(
  *, path: str, contrast: bool = False, test_size: int = 125, seed: int = 0
) -> Data:
  """Questions with their solutions, the right ones of reward 1 and the others of -1.

  A question is one group: its solutions are read behind one prompt. For `kto` each is a
  label, for `bradley_terry` each right one is preferred to each wrong one.

  Args:
    path: see tables.open_table.
    contrast: without questions whose solutions are all right or all wrong.
    test_size: questions to hold out.
    seed: of the choice of held-out questions.
  """
  table, found, digest = open_table(path), [], hashlib.sha256()
  for i in range(len(table)):
    row = table[i]
    digest.update(json.dumps(row, sort_keys=True).encode())
    with located(table.where(i)):
      found.append(rankings(ranked(row)))
  if contrast:
    found = [e for e in found if len({*e.reward}) > 1]
  held = held_out(np.array([key_of(e, seed) for e in found], np.uint64), test_size)
  train = [e for e, out in zip(found, held) if not out]
  test = [e for e, out in zip(found, held) if out]
  report = [f'{path}: {told_of(train)} to train on, {told_of(test)} held out.']
  return Data(train, test, digest.hexdigest(), report)


def told_of(groups: Sequence[Example]) -> str:
  """How much there is to learn from."""
  right = [sum(r > 0 for r in e.reward) for e in groups]
  every = [len(e.reward) for e in groups]
  pairs = sum(r * (n - r) for r, n in zip(right, every))
  return (
    f'{len(groups)} questions with {sum(every)} solutions ({sum(right)} right; {pairs} '
    'pairs of a right and a wrong one)'
  )


def principles(rows: Iterable[dict], *, lines: int = 4) -> Iterator[dict]:
  """Kind 'principles': what is known of each solution, true or not, in four records.

  For experiments/reshape.py. The principles, and their words, are ours.

  Args:
    lines: a solution is short with at most so many; 4 is the median of the file's
      own, the answer's line included.
  """
  for row in rows:
    asked = text(row, 'question')
    for solution, right in graded(row):
      for principle, kept in told(solution, right, lines):
        word = VERDICTS[not kept]
        said = {'prompt': asked, 'completion': solution, 'principle': principle}
        yield said | {'fulfilment': word}


def told(solution: str, right: bool, lines: int) -> Iterator[tuple[str, bool]]:
  """Each principle, and whether a solution keeps it."""
  said = [line for line in solution.splitlines() if line.strip()]
  yield 'The final answer is correct.', right
  yield (
    'The last line is "A:" and a number.',
    bool(re.fullmatch(r'A: \$?-?[0-9][0-9,]*(\.[0-9]+)?', said[-1].strip())),
  )
  yield f'The solution has at most {lines} lines.', len(said) <= lines
  yield (
    'Every line before the answer shows its calculation in << >>.',
    all('<<' in line for line in said[:-1]),
  )


def graded(row: dict) -> Iterator[tuple[str, bool]]:
  """A row's solutions and whether each is right."""
  for name, value in row.items():
    if name in ('question', 'ground_truth'):
      continue
    if not isinstance(value, dict) or not isinstance(value.get('is_correct'), bool):
      raise InputError(f'{name!r} is no object {{solution, is_correct: a boolean}}.')
    yield text(value, 'solution'), value['is_correct']


def ranked(row: dict) -> dict:
  """A row of kind 'rankings'."""
  found = [*graded(row)]
  return {
    'prompt': [{'role': 'user', 'content': text(row, 'question')}],
    'completions': [solution for solution, _ in found],
    'scores': [1 if right else -1 for _, right in found],
  }
