"""Questions and numeric answers from two files of JSON lines, as GSM8K has them."""

import functools
import json
import pathlib
from typing import Any

import numpy as np

from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards import numbers
from jaxrl_llm.rewards.numeric import gold
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError


def jsonl(
  *,
  train_path: str,
  test_path: str,
  question: str = 'question',
  answer: str = 'answer',
  extract: str = 'last_number',
  seed: int = 0,
  system: str = '',
  suffix: str = '',
) -> Task:
  """One JSON object a line. An answer is a number, or text that ends in '#### number'.

  Training questions whose text is a test question are left out. Training goes through
  the file again and again, each time in another order drawn from `seed`; a record's id
  is its line number, its reference text stays in `extra['reference']`.

  Args:
    question, answer: the fields that hold them.
    extract: where the answer stands in a completion, a name of rewards/extract.py.

  Raises:
    InputError: names the file and line of what cannot be read.
  """
  find = extraction.by_name(extract)

  def load(path: str) -> list[Record]:
    found = []
    for line, row in rows(path):
      text, reference = field(row, question, path, line), field(row, answer, path, line)
      try:
        number = gold(reference)
      except InputError as error:
        raise InputError(f'{path}, line {line}: {error}') from error
      messages = records.chat(text, system=system, suffix=suffix)
      found.append(Record(line, messages, number, {'reference': reference}))
    if not found:
      raise InputError(f'{path}: no line holds anything; give at least one question.')
    return found

  test = load(test_path)
  held = {records.question(r) for r in test}
  train = [r for r in load(train_path) if records.question(r) not in held]
  if not train:
    raise InputError(
      f'{train_path}: every question is also in {test_path}; give other questions.'
    )

  def check(text: str, record: Record) -> float:
    return float(numbers.equal(record.answer, find(text)))

  return Task('jsonl', cycle(train, seed), tuple(test), check)


def cycle(train: list[Record], seed: int):
  """Index -> record: all of them in each pass, in an order of that pass's own."""

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(len(train))

  def record(index: int) -> Record:
    epoch, at = divmod(int(index), len(train))
    return train[order(epoch)[at]]

  return record


def rows(path: str):
  """(line number from 1, object) of every line that is not blank."""
  try:
    lines = pathlib.Path(path).read_bytes().splitlines()
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}.') from error
  for number, line in enumerate(lines, 1):
    try:
      text = line.decode('utf-8-sig')
      row = json.loads(text) if text.strip() else None
    except UnicodeDecodeError as error:
      raise InputError(
        f'{path}, line {number}: not UTF-8 at byte {error.start}; save it as UTF-8.'
      ) from error
    except (ValueError, RecursionError) as error:
      raise InputError(f'{path}, line {number}: no JSON: {error}.') from error
    if row is None and not text.strip():
      continue
    if not isinstance(row, dict):
      raise InputError(
        f'{path}, line {number}: {type(row).__name__} in place of an object.'
      )
    yield number, row


def field(row: dict[str, Any], name: str, path: str, line: int) -> str:
  """The field's text; a number counts as text."""
  value = row.get(name)
  if isinstance(value, bool) or not isinstance(value, (str, int, float)):
    raise InputError(
      f'{path}, line {line}: field {name!r} is '
      f'{type(value).__name__ if name in row else "missing"}; its fields are '
      f'{sorted(row)}. Name the right one with question= or answer=.'
    )
  if not str(value).strip():
    raise InputError(f'{path}, line {line}: field {name!r} is empty.')
  return str(value)
