"""Questions and their answers from two tables, as GSM8K has them."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.data import contamination as overlap
from jaxrl_llm.data import fields, kinds
from jaxrl_llm.data.tables import located, open_table
from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards import numbers
from jaxrl_llm.rewards.numeric import gold
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.records import Cycle, Record, Task
from jaxrl_llm.types import InputError


def questions(
  *,
  train_path: str,
  test_path: str,
  question: str = 'question',
  answer: str = 'answer',
  extract: str = 'last_number',
  seed: int = 0,
  system: str = '',
  suffix: str = '',
  limit: int = 0,
  contamination: int = 0,
  verify: str = '',
  keep: Sequence[str] = (),
  long_prompt: str = 'error',
) -> Task:
  """A row has a question and its numeric answer, or text that ends in '#### number'.

  Training questions that are a test question, as whole conversations, are left out.
  Training goes through the rows again and again, each time in another order drawn from
  `seed`; a record's id is its row, its reference text stays in `extra['reference']`.

  Args:
    train_path, test_path: see tables.open_table.
    question, answer: the fields that hold them. A question is a string or messages, to
      which `system` and `suffix` are not added. `tools` and `chat_template_kwargs` go
      to the policy's chat template; judges and reward models read the messages alone.
    extract: where the answer stands in a completion, a name of rewards/extract.py.
    limit: test questions to use at most, the first ones; 0 is all.
    contamination: reports training questions that share this many words in a row with
      a test question; 0 does not look.
    verify: a reward in [0, 1] that scores an answer, such as 'equal(by="math")' or
      'constraints', in place of the number at `extract`. The reference may be any text
      then: what follows '####' in it, else what stands in \\boxed, else all of it.
    answer='' is of prompts alone: without `verify` the run's own rewards are what is
      measured on held-out ones.
    keep: further fields, for `verify` to find in the record's extra.
    long_prompt: 'error', or 'drop': questions over config.source.max_prompt are left
      out, and the run says how many.

  Raises:
    InputError: names the file and line of what cannot be read.
  """
  digest = hashlib.sha256()
  check = checker(verify, answer, extract)

  def record(row: dict[str, Any], number: int, where: str) -> Record:
    digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    reference = field(row, answer) if answer else ''
    asked = messages(row, question, system, suffix)
    right = (reference_answer if verify else gold)(reference) if check else ''
    extra = {k: row[k] for k in keep if k in row} | {'reference': reference}
    known = numbers.parse(right) is not None  # What else says an answer is not known.
    hints = {'solution': worked(reference, right)} if known else {}
    made = Record(number, asked, right, extra, hints, fields.template(row), where)
    if verify:
      check('', made)  # What the verifier cannot use is said here, with its line.
    return made

  test = read(test_path, record)[: limit or None]
  train, left_out = apart(read(train_path, record), test)
  if not train:
    raise InputError(
      f'{train_path}: every question is also in {test_path}; give other questions.'
    )
  report = told(train, test, left_out, contamination)
  cycle, read_all = Cycle(train, seed), digest.hexdigest()
  made = Task('questions', cycle, tuple(test), check, read_all, report)
  return made._replace(long_prompt=long_prompt)


def messages(row: dict[str, Any], name: str, system: str, suffix: str) -> list[dict]:
  """A question as messages, which it may be already."""
  if not isinstance(row.get(name), list):
    return records.chat(field(row, name), system=system, suffix=suffix)
  asked = kinds.messages(row, name)
  kinds.spoken(asked)
  return asked


def checker(verify: str, answer: str, extract: str):
  """By `verify`, else by the number at `extract`; None where there is no answer."""
  if verify:
    return verifier(verify)
  return numeric(extraction.by_name(extract)) if answer else None


def numeric(find) -> Callable[[str, Record], float]:
  """Whether the number that `find` finds is the answer."""
  return lambda text, record: float(numbers.equal(record.answer, find(text)))


def verifier(verify: str) -> Callable[[str, Record], float]:
  """A reward that needs no more than text and record, as a task's check."""
  options = build.spelled(verify, 'config.task.verify')
  reward = build.made('jaxrl_llm.rewards', options, 'config.task.verify')
  if isinstance(reward, Batched):
    raise InputError(f'config.task.verify={verify!r} scores batches; name another.')

  def check(text: str, record: Record) -> float:
    return float(reward(Sample(records.question(record), text, 0, False, record)))

  return check


def reference_answer(reference: str) -> str:
  """The answer in a reference text; see `verify`."""
  for find in (extraction.hash_answer, extraction.boxed, extraction.whole):
    if found := find(reference):
      return found
  return ''


def worked(reference: str, answer: str, count: int = 4) -> list[str]:
  """The sentences of a worked solution in `count` parts at most, without those that
  say the answer.
  """
  text = re.sub(r'<<[^<>]*>>', '', reference.rpartition('####')[0])
  numbers_of = lambda s: (m.group() for m in extraction.NUMBER.finditer(s))
  kept = [
    sentence.strip()
    for sentence in re.split(r'(?<=[.!?])\s+|\n', text)
    if sentence.strip()
    and not any(numbers.equal(answer, n) for n in numbers_of(sentence))
  ]
  parts = np.array_split(np.array(kept, object), min(count, max(len(kept), 1)))
  return [' '.join(part) for part in parts if len(part)]


def read(path: str, convert) -> list[Any]:
  """`convert(row, number, file and line)` of every row of a table."""
  table, found = open_table(path), []
  for i in range(len(table)):
    row = table[i]
    where = table.where(i)
    with located(where):
      found.append(convert(row, i, where))
  if not found:
    raise InputError(f'{path}: no line holds anything; give at least one question.')
  return found


def field(row: dict[str, Any], name: str) -> str:
  """The field's text; a number counts as text."""
  value = row.get(name)
  if isinstance(value, bool) or not isinstance(value, (str, int, float)):
    raise InputError(
      f'field {name!r} is {type(value).__name__ if name in row else "missing"}; its '
      f'fields are {sorted(row)}. Name the right one with question= or answer=.'
    )
  if not str(value).strip():
    raise InputError(f'field {name!r} is empty.')
  return str(value)


def apart(train: list[Record], test: list[Record]) -> tuple[list[Record], str]:
  """The training questions that are no test question, and words for how many were."""
  held = {records.identity(r) for r in test}
  kept = [r for r in train if records.identity(r) not in held]
  count = len(train) - len(kept)
  return kept, f'; {count} that are held out too were left out' if count else ''


def told(train: list, test: list, left_out: str, words: int) -> list[str]:
  """How many questions there are, and which share `words` in a row."""
  report = [f'{len(train)} questions to train on, {len(test)} held out{left_out}.']
  if words:
    said = lambda r: overlap.words_of([m for m in r.messages if m['role'] == 'user'])
    texts = lambda rows: ([said(r)] for r in rows)
    report.append(overlap.report(texts(train), texts(test), words))
  return report
