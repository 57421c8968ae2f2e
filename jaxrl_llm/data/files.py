"""Any table of a known kind: config.data.name='files'."""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.data import contamination as overlap
from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.data.kinds import KINDS
from jaxrl_llm.data.tables import open_table
from jaxrl_llm.types import InputError


def files(
  *,
  path: str,
  kind: str = 'pairs',
  test_path: str = '',
  test_size: int = 0,
  columns: dict = {},
  as_chat: bool = False,
  limit: int = 0,
  contamination: int = 0,
  seed: int = 0,
) -> Data:
  """Examples of a table, every row of which is checked before training.

  Args:
    path, test_path: see tables.open_table.
    kind: a function of kinds.py, or a dotted path to one of your own (row -> Example).
    test_size: without a test_path, rows to hold out; all rows of a prompt go together.
    columns: our field name to theirs: {'prompt': 'question'}.
    as_chat: a prompt that is a string becomes a user message; else it is plain text.
    limit: rows of `path` to use at most; 0 is all.
    contamination: reports training prompts that share this many words in a row with
      a held-out prompt; 0 does not look.
    seed: of the choice of held-out rows.

  Raises:
    InputError: names file and line of the first row that does not fit.
  """
  convert = KINDS.get(kind) or (
    build.attribute('', kind, 'config.data.kind') if '.' in kind else None
  )
  if convert is None:
    raise InputError(f'config.data.kind={kind!r}. {build.near(kind, KINDS)}')
  read = reader(convert, columns, as_chat)
  train, digest = Examples(path, read, limit), hashlib.sha256()
  prompts = train.visit(digest)
  if test_path:
    test = Examples(test_path, read, 0)
    held = test.visit(digest)
  else:
    held = held_out(prompts, test_size, seed)
    test = train.chosen([i for i, p in enumerate(prompts) if p in held])
    train = train.chosen([i for i, p in enumerate(prompts) if p not in held])
    prompts = [p for p in prompts if p not in held]
  if not len(test):
    raise InputError('config.data: no held-out rows; give test_path or test_size.')
  report = [f'{path}: {len(train)} examples to train on, {len(test)} held out.']
  if contamination:
    report.append(overlap.report(prompts, held, contamination))
  return Data(train, test, digest.hexdigest(), report)


def reader(convert, columns: dict, as_chat: bool) -> Callable[[dict], Example]:
  """Row to example: fields renamed, converted, a bare prompt put into a message."""

  def read(row: dict) -> Example:
    if missing := [theirs for theirs in columns.values() if theirs not in row]:
      raise InputError(f'no field {missing[0]!r}; there are {", ".join(sorted(row))}.')
    taken = {our: row[theirs] for our, theirs in columns.items()}
    example = convert(
      {k: v for k, v in row.items() if k not in columns.values()} | taken
    )
    if as_chat and isinstance(example.prompt, str):
      asked = [{'role': 'user', 'content': example.prompt}]
      return example._replace(prompt=asked)
    return example

  return read


class Examples(Sequence):
  """Examples of a table, or of some of its rows, read anew each time."""

  def __init__(self, path: str, read, limit: int = 0, rows=None, table=None):
    self.path, self.read = path, read
    self.table = open_table(path) if table is None else table
    count = min(limit or len(self.table), len(self.table))
    self.rows = np.arange(count) if rows is None else np.asarray(rows, np.int64)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    row = self.table[self.rows[index]]
    try:
      return self.read(row)
    except InputError as error:
      raise InputError(f'{self.table.where(self.rows[index])}: {error}') from error

  def chosen(self, rows: Sequence[int]) -> 'Examples':
    """Those of some rows."""
    return Examples(self.path, self.read, rows=self.rows[rows], table=self.table)

  def visit(self, digest) -> list[str]:
    """Reads every row once: the prompts' texts; `digest` takes in all of it."""
    if not len(self):
      raise InputError(f'{self.path}: no rows.')
    prompts = []
    for i in range(len(self)):
      example = self[i]
      digest.update(json.dumps(example, sort_keys=True, default=str).encode())
      prompts.append(overlap.words_of(example.prompt))
    return prompts


def held_out(prompts: Sequence[str], size: int, seed: int) -> set[str]:
  """Prompts whose rows number at least `size`, by a hash: no order, no chance."""
  rank = lambda p: hashlib.sha256(f'{seed}/{p}'.encode()).digest()
  counts: dict[str, int] = {}
  for p in prompts:
    counts[p] = counts.get(p, 0) + 1
  held, total = set(), 0
  for p in sorted(counts, key=rank):
    if total >= size:
      break
    held.add(p)
    total += counts[p]
  if size and len(held) == len(counts):
    raise InputError(
      f'config.data.test_size={size} would hold out every prompt; there are '
      f'{len(counts)} in {len(prompts)} rows.'
    )
  return held
