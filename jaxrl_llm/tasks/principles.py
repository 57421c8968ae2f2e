"""Does an answer keep a principle? Reason, and end with Yes or No."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data import fields, files, kinds
from jaxrl_llm.data.examples import Example
from jaxrl_llm.tasks import questions
from jaxrl_llm.tasks.records import Cycle, Record, Task
from jaxrl_llm.types import InputError

ASK = (
  '\n\nDoes the response keep this principle? Give reasons, and end with the word Yes '
  'or No.'
)


def principles(
  *,
  path: str,
  test_size: int,
  ask: str = ASK,
  verdicts: Sequence[str] = (' Yes', ' No'),
  limit: int = 0,
  seed: int = 0,
) -> Task:
  """Records of kind 'principles'; the score is 1 where the last word is the right one.

  Args:
    path: see tables.open_table.
    test_size: rows to hold out, at least; all of a prompt go together.
    ask: what follows the principle in the last user message; the words are ours.
    verdicts: the words of Yes and No, each a single token where the method is
      rlbff_generative.
    limit: held-out rows to use at most; 0 is all.
    seed: of the choice of what is held out, and of the order.

  Raises:
    InputError: names the file and line of what cannot be read.
  """
  digest = hashlib.sha256()

  def record(row: dict[str, Any], number: int, where: str) -> tuple[Record, int]:
    digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    yes = kinds.principles(row).reward[0] > 0
    before, answer = kinds.prompt(row), kinds.completion(row)
    asked = messages(before, answer, row['principle'], ask)
    key = files.key_of(Example(before, ('',), (0.0,)), seed)
    extra = {'verdicts': tuple(verdicts), 'principle': row['principle']}
    told = dict(template=fields.template(row), where=where)
    return Record(number, asked, verdicts[not yes], extra, **told), key

  found = questions.read(path, record)
  if not 0 < test_size < len(found) or len(verdicts) != 2:
    raise InputError(
      f'config.task (principles): test_size={test_size} of {len(found)} rows, and '
      f'verdicts={verdicts}; give two words, and leave rows on both sides.'
    )
  held = files.held_out(np.array([key for _, key in found], np.uint64), test_size)
  test = [r for (r, _), out in zip(found, held) if out]
  train = [r for (r, _), out in zip(found, held) if not out]
  test = test[:limit] if limit else test
  report = [f'{len(train)} verdicts to train on, {len(test)} held out.']
  draw = Cycle(train, seed)
  return Task('principles', draw, tuple(test), check, digest.hexdigest(), report)


def messages(prompt, completion: str, principle: str, ask: str) -> list[dict]:
  """A conversation, its answer, and the question whether it keeps the principle."""
  return kinds.judged(prompt, completion, f'{principle}{ask}')


def check(text: str, record: Record) -> float:
  """1 where the text ends with the verdict that is the record's answer."""
  words = record.extra['verdicts']
  said = [word for word in words if text.rstrip().endswith(word.strip())]
  return float(said == [record.answer])
