"""Any table of a known kind: config.data.name='files'."""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.data import contamination as overlap
from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.data.fields import conversation, template
from jaxrl_llm.data.kinds import KINDS, check
from jaxrl_llm.data.tables import located, open_table
from jaxrl_llm.types import InputError


def files(
  *,
  path: str,
  kind: str = 'pairs',
  test_path: str = '',
  test_size: int = 0,
  columns: dict | str = '',
  as_chat: bool = False,
  limit: int = 0,
  bad_rows: str = 'error',
  contamination: int = 0,
  seed: int = 0,
) -> Data:
  """Examples of a table, every row of which is checked before training.

  Args:
    path, test_path: see tables.open_table.
    kind: a function of kinds.py, or a dotted path to one of your own (row -> Example).
    test_size: without a test_path, rows to hold out; all rows of a prompt go together.
    columns: our field name to theirs: {'prompt': 'question'}, or 'prompt=question' and
      commas between.
    as_chat: a prompt that is a string becomes a user message; else it is plain text.
    limit: rows of `path` to use at most; 0 is all.
    bad_rows: 'error' stops at a row that does not fit, 'drop' leaves it out and says
      how many there were; so too where it cannot be encoded, or is unlike the first.
    contamination: reports training examples that share this many words in a row with
      a held-out one, in what is asked or told and not learned; 0 does not look.
    seed: of the choice of held-out rows.

  Raises:
    InputError: names file and line of the first row that does not fit.
  """
  not_negative(dict(test_size=test_size, limit=limit, contamination=contamination))
  read = reader(converter(kind), named(columns), as_chat, bad_rows == 'drop')
  if bad_rows not in ('error', 'drop'):
    raise InputError(f"config.data.bad_rows={bad_rows!r}; there are 'error', 'drop'.")
  digest, report = hashlib.sha256(), []

  def visited(path: str, limit: int = 0):
    whole = Examples(path, read, limit)
    keys, good, problem = whole.visit(digest, seed, strict=bad_rows == 'error')
    if not good.all():
      report.append(f'{path}: {(~good).sum()} rows are left out. First {problem}')
    return whole.chosen(good), keys[good]

  train, keys = visited(path, limit)
  if test_path:
    test, held = visited(test_path)
    if both := int(np.isin(keys, held).sum()):
      report.append(f'{path}: {both} training prompts are held out too.')
  else:
    held = held_out(keys, test_size)
    train, test = train.chosen(~held), train.chosen(held)
  if not len(test):
    raise InputError('config.data: no held-out rows; give test_path or test_size.')
  report.append(f'{path}: {len(train)} examples to train on, {len(test)} held out.')
  if contamination:
    report.append(overlap.told(train, test, contamination))
  return Data(train, test, digest.hexdigest(), report)


def not_negative(counts: dict[str, int]) -> None:
  for name, value in counts.items():
    if value < 0:
      raise InputError(f'config.data.{name}={value}; give 0 or more.')


def converter(kind: str) -> Callable[[dict], Example]:
  """The function of a kind, or of a dotted path."""
  if '.' in kind:
    return build.attribute('', kind, 'config.data.kind')
  if kind not in KINDS:
    raise InputError(f'config.data.kind={kind!r}. {build.near(kind, KINDS)}')
  return KINDS[kind]


def named(columns: dict | str) -> dict[str, str]:
  """Columns as a dict."""
  if not isinstance(columns, str):
    return dict(columns)
  parts = [part.partition('=') for part in columns.split(',') if part]
  if not all(theirs for _, _, theirs in parts):
    raise InputError(f"config.data.columns={columns!r}; write 'prompt=question'.")
  return {our.strip(): theirs.strip() for our, _, theirs in parts}


def reader(
  convert, columns: dict, as_chat: bool, optional: bool = False
) -> Callable[[dict], Example]:
  """Row to example: fields renamed, converted, a bare prompt put into a message."""
  ours = convert in KINDS.values()
  known = columns and ours

  def read(row: dict) -> Example:
    row = renamed(row, columns) if columns else row
    row = Looked(row) if known else row
    example = check(called(convert, row))._replace(optional=optional)
    example = example._replace(template=template(row)) if ours else example
    if known and (unread := columns.keys() - row.seen):
      raise InputError(
        f'config.data.columns: {sorted(unread)} is no field of kind '
        f'{convert.__name__!r}, which looks for {sorted(row.seen)}.'
      )
    if as_chat and example.prompt == '':
      raise InputError("config.data.as_chat: 'text' has no prompt; unset it.")
    if as_chat:
      return example._replace(prompt=conversation(example.prompt))
    if example.template and isinstance(example.prompt, str):
      raise InputError(
        f'{[*example.template]} are for a chat template, and the prompt is plain text. '
        'Give messages, or set config.data.as_chat.'
      )
    return example

  return read


class Looked(dict):
  """A row that remembers which fields were looked for."""

  def __init__(self, row: dict):
    super().__init__(row)
    self.seen: set[str] = set()

  def __getitem__(self, key):
    self.seen.add(key)
    return super().__getitem__(key)

  def __contains__(self, key) -> bool:
    self.seen.add(key)
    return super().__contains__(key)

  def get(self, key, default=None):
    self.seen.add(key)
    return super().get(key, default)


def renamed(row: dict, columns: dict[str, str]) -> dict:
  """The row under our names."""
  if missing := [theirs for theirs in columns.values() if theirs not in row]:
    raise InputError(f'no field {missing[0]!r}; there are {", ".join(sorted(row))}.')
  taken = {our: row[theirs] for our, theirs in columns.items()}
  return {k: v for k, v in row.items() if k not in columns.values()} | taken


def called(convert, row: dict) -> Example:
  """`convert(row)`; what a user's own function does wrong is an InputError."""
  try:
    example = convert(row)
  except InputError:
    raise
  except Exception as error:
    name = f'{convert.__module__}.{convert.__qualname__}'
    raise InputError(f'{name} raised {type(error).__name__}: {error}') from error
  if not isinstance(example, Example):
    raise InputError(
      f'config.data.kind gave {type(example).__name__}; a data.examples.Example is due.'
    )
  return example


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
    row, where = self.table[self.rows[index]], self.table.where(self.rows[index])
    with located(where):
      return self.read(row)._replace(where=where)

  def chosen(self, which: np.ndarray) -> 'Examples':
    """Those of some rows."""
    return Examples(self.path, self.read, rows=self.rows[which], table=self.table)

  def visit(self, digest, seed: int, *, strict: bool):
    """Reads every row once, into `digest`.

    Returns:
      A key of each prompt [N] uint64, which rows fit [N] bool, and what is wrong with
      the first that does not.

    Raises:
      InputError: no row fits, or one does not and `strict` is set.
    """
    keys, good = np.zeros(len(self), np.uint64), np.ones(len(self), bool)
    problem = f'{self.path}: no rows.'
    for i in range(len(self)):
      try:
        example = self[i]
      except InputError as error:
        if strict:
          raise
        problem, good[i] = problem if not good.all() else str(error), False
        continue
      known = example[: -2 if example.template else -3]
      digest.update(json.dumps(known, sort_keys=True, default=str).encode())
      keys[i] = key_of(example, seed)
    if not good.any():
      raise InputError(problem)
    return keys, good, problem


def asked(example: Example) -> str:
  """What tells two examples apart: the prompt, or the completion of plain text."""
  return overlap.words_of(example.prompt) or str(example.completions[0])


def key_of(example: Example, seed: int) -> int:
  """A number that says where a prompt stands in the draw of those to hold out."""
  text = f'{seed}/{asked(example)}'
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def held_out(keys: np.ndarray, size: int) -> np.ndarray:
  """Which rows to hold out, [N] bool: whole prompts, `size` rows or a little more.

  Which prompts they are depends on the prompts alone, not on their order or number.
  """
  if not size:
    return np.zeros(len(keys), bool)
  distinct, counts = np.unique(keys, return_counts=True)
  last = int(np.searchsorted(np.cumsum(counts), size))
  if last >= len(distinct) - 1:
    raise InputError(
      f'config.data.test_size={size} would hold out every prompt; there are '
      f'{len(distinct)} in {len(keys)} rows. Make it smaller, or give test_path.'
    )
  return keys <= distinct[last]
