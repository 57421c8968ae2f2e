"""Rows at random access, by what a path or name says: jsonl, parquet, tfds, the hub.

A table is a sequence of dicts. Opening one holds offsets, not rows.
"""

import array
import contextlib
import gzip
import json
import mmap
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.types import InputError


class JsonLines(Sequence):
  """One JSON object a line; .gz is unpacked to a temporary file first.

  Held in memory: where each row stands. Threads may read at the same time.
  """

  def __init__(self, path: str):
    self.path = path
    try:
      # Open as long as the table: rows are read when their turn comes.
      self.file = unpacked(path) if path.endswith('.gz') else open(path, 'rb')  # noqa: SIM115
    except (OSError, EOFError, zlib.error) as error:
      raise InputError(f'{path}: cannot be read: {said(error)}.') from error
    spans, at = array.array('q'), 0
    for number, line in enumerate(self.file, 1):
      if line.strip():
        spans.extend((at, len(line), number))
      at += len(line)
    self.spans = np.array(spans, np.int64).reshape(-1, 3)

  def __len__(self) -> int:
    return len(self.spans)

  def __getitem__(self, index: int) -> dict[str, Any]:
    at, size, _ = self.spans[index]
    return parse(os.pread(self.file.fileno(), size, at), self.where(index))

  def where(self, index: int) -> str:
    return f'{self.path}, line {self.spans[index][2]}'


class Rows(Sequence):
  """Any sequence of dicts under a name: a list, a data source of tfds, `datasets`.

  `change` is what its way to store rows asks for, row to row.
  """

  def __init__(self, rows: Sequence, name: str, change: Callable = lambda row: row):
    self.rows, self.name, self.change = rows, name, change

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self.rows[int(index)]
    if isinstance(row, dict) and row.keys() == {'json'}:  # See prepare.py.
      row = json.loads(row['json'])
    elif isinstance(row, dict):
      row = plain(self.change(row))
    if not isinstance(row, dict):
      raise InputError(
        f'{self.where(index)}: {type(row).__name__} in place of an object.'
      )
    return row

  def where(self, index: int) -> str:
    return f'{self.name}, row {index}'


def plain(value: Any) -> Any:
  """Bytes and arrays as what JSON would give: text, numbers, lists, objects."""
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      value = value.decode()
    return value
  if isinstance(value, (np.ndarray, np.generic)):
    return plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [plain(x) for x in value]
  if isinstance(value, dict):
    return {k: plain(x) for k, x in value.items()}
  return value


def unpadded(value: Any, inside: bool = False) -> Any:
  """A row of Arrow's without the nulls in messages and tools.

  Arrow gives every object of a column the fields that any of them has.
  """
  if isinstance(value, list):
    return [unpadded(x, inside) for x in value]
  if isinstance(value, dict):
    inside = inside or 'role' in value
    kept = {k: x for k, x in value.items() if not (inside and x is None)}
    return {k: unpadded(x, inside or k == 'tools') for k, x in kept.items()}
  return value


def said(error: Exception) -> str:
  """What went wrong with a file, without its path."""
  return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def located(where: str):
  """Puts where a row stands before what is wrong with it."""
  try:
    yield
  except InputError as error:
    raise InputError(f'{where}: {error}') from error


def unpacked(path: str):
  """A .gz file's content as an open temporary file."""
  file = tempfile.TemporaryFile()  # noqa: SIM115
  with gzip.open(path) as packed:
    shutil.copyfileobj(packed, file)
  file.seek(0)
  return file


def parse(line: bytes, where: str) -> dict[str, Any]:
  """A line's JSON object."""
  try:
    text = line.decode('utf-8-sig').rstrip()
    row = json.loads(text, object_pairs_hook=unique)
  except InputError as error:
    raise InputError(f'{where}: {error}') from error
  except UnicodeDecodeError as error:
    raise InputError(
      f'{where}: not UTF-8 at byte {error.start}; save it as UTF-8.'
    ) from error
  except json.JSONDecodeError as error:
    raise InputError(
      f'{where}: no JSON: {error.msg}, column {error.pos + 1}.'
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: no JSON: {error}.') from error
  if not isinstance(row, dict):
    raise InputError(f'{where}: {type(row).__name__} in place of an object.')
  return row


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object's keys and values, where no key stands twice."""
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise InputError(f'an object has the key {twice!r} twice; keep one of them.')
  return found


def open_table(path: str) -> Sequence:
  """A table by path or name.

  Args:
    path: a .jsonl, .jsonl.gz or .parquet file, or .json (a list of objects), which is
      held in memory;
      'tfds:NAME[:SPLIT[:DATA_DIR]]'; 'hf:NAME[:SPLIT[:CONFIG]]' for the `datasets`
      package. A split is 'train' where none is named, and may be a slice, 'train[:5]';
      'python:PACKAGE.FUNCTION', which returns an iterable of dicts that ends: its rows
      are held in memory.

  Raises:
    InputError: nothing is there, or it is of no known kind.
  """
  kind, _, rest = path.partition(':')
  if kind in ('tfds', 'hf') and rest:
    # A colon between brackets is a slice's.
    name, split, third = (*re.split(r':(?![^\[]*\])', rest, maxsplit=2), '', '')[:3]
    load = from_tfds if kind == 'tfds' else from_hub
    rows, change = load(name, split, third)
    return Rows(rows, path, change)
  if kind == 'python' and '.' in rest:
    return Rows(made(build.attribute('', rest, path), path), path)
  path = os.path.expanduser(path)
  ending = path.lower()
  if ending.endswith(('.jsonl', '.jsonl.gz')):
    return JsonLines(path)
  if not pathlib.Path(path).exists():
    raise InputError(f'{path}: there is no such file.')
  if ending.endswith('.json'):
    return Rows(json_list(path), path)
  if ending.endswith('.parquet'):
    return Rows(Parquet(path), path, unpadded)
  raise InputError(
    f'{path}: of no known kind; give .jsonl, .jsonl.gz, .json, .parquet, tfds:NAME, '
    'hf:NAME or python:PACKAGE.FUNCTION.'
  )


def made(function, path: str) -> list:
  """The rows that a user's own function gives."""
  try:
    return list(function())
  except Exception as error:
    raise InputError(f'{path} raised {type(error).__name__}: {error}') from error


def json_list(path: str) -> list:
  try:
    text = pathlib.Path(path).read_bytes()
    found = json.loads(text, object_pairs_hook=unique)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except ValueError as error:
    hint = (
      ' With an object a line it is a .jsonl file.' if 'Extra' in str(error) else ''
    )
    raise InputError(f'{path}: no JSON: {error}.{hint}') from error
  if not isinstance(found, list):
    raise InputError(f'{path}: {type(found).__name__} in place of a list of objects.')
  return found


class Parquet(Sequence):
  """A parquet file, unpacked to a temporary one that is mapped."""

  def __init__(self, path: str):
    import pyarrow

    try:
      self.table = pyarrow.ipc.open_file(arrow(path)).read_all()
    except (OSError, pyarrow.ArrowException) as error:
      raise InputError(f'{path}: no readable parquet file: {error}') from error

  def __len__(self) -> int:
    return self.table.num_rows

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.table.slice(index, 1).to_pylist()[0]


def arrow(path: str):
  """A parquet file's rows in Arrow's own form, as a mapped temporary file."""
  import pyarrow
  from pyarrow import parquet

  file = tempfile.TemporaryFile()  # noqa: SIM115
  with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as packed:
    # A file of Arrow's takes one dictionary a column, and parquet has one a row group.
    flat = lambda t: t.value_type if pyarrow.types.is_dictionary(t) else t
    schema = pyarrow.schema([f.with_type(flat(f.type)) for f in packed.schema_arrow])
    with pyarrow.ipc.new_file(file, schema) as out:
      for batch in packed.iter_batches(1024):
        # Only what must be is cast: pyarrow fails at columns of nulls within lists.
        pairs = zip(batch.columns, schema.types)
        columns = [c if c.type == kind else c.cast(kind) for c, kind in pairs]
        out.write_batch(pyarrow.record_batch(columns, schema=schema))
  file.flush()
  return pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def from_tfds(name: str, split: str, data_dir: str) -> tuple[Sequence, Callable]:
  """A prepared data set of array_record or parquet files, without TensorFlow."""
  import tensorflow_datasets as tfds

  split = split or 'train'

  try:
    builder = (
      tfds.builder_from_directory(name)
      if pathlib.Path(name).is_dir()
      else tfds.builder(name, data_dir=data_dir or None)
    )
    if (base := re.split(r'[\[+]', split)[0]) not in builder.info.splits:
      there = sorted(builder.info.splits)
      raise InputError(f'tfds:{name} has no split {base!r}; there are {there}.')
    rows, features = builder.as_data_source(split), builder.info.features
    return rows, lambda row: objects(row, features)
  except InputError:
    raise
  except Exception as error:  # tfds raises many kinds, and ImportError for TensorFlow.
    raise InputError(
      f'tfds:{name} ({split}) does not open without TensorFlow: {error}. Prepare it '
      "once with file_format='array_record' where TensorFlow is installed, or give its "
      'folder.'
    ) from error


def objects(value: Any, feature: Any) -> Any:
  """What tfds gives, with lists of objects, which it writes as objects of lists."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.FeaturesDict):
    return {k: objects(x, feature[k]) for k, x in value.items()}
  if not isinstance(feature, tfds.features.Sequence):
    return value
  if not isinstance(feature.feature, tfds.features.FeaturesDict):
    return [objects(x, feature.feature) for x in value]
  column = value
  while isinstance(column, dict):
    column = next(iter(column.values()))
  return [objects(nth(value, i), feature.feature) for i in range(len(column))]


def nth(value: Any, index: int) -> Any:
  """Of an object of lists the object of their items."""
  if isinstance(value, dict):
    return {k: nth(x, index) for k, x in value.items()}
  return value[index]


def from_hub(name: str, split: str, config: str) -> tuple[Sequence, Callable]:
  """A data set of the `datasets` package, by path or hub name."""
  try:
    import datasets
  except ImportError as error:
    raise InputError('hf: needs the datasets package: pip install datasets.') from error
  try:
    saved = ('dataset_dict.json', 'state.json')  # As `save_to_disk` writes.
    if any((pathlib.Path(name) / file).exists() for file in saved):
      rows = of_split(datasets.load_from_disk(name), split)
    else:
      rows = datasets.load_dataset(name, config or None, split=split or 'train')
  except Exception as error:  # datasets raises many kinds.
    raise InputError(f'hf:{name} ({split}) does not load: {error}') from error
  return rows.with_format(None), unpadded  # It may be saved to give tensors.


def of_split(saved: Any, split: str) -> Sequence:
  """A split of saved data, or a slice of one, as `datasets.load_dataset` reads them.

  A data set that was saved without its split's name is 'train'.
  """
  import datasets

  alone = isinstance(saved, datasets.Dataset)
  splits = {str(saved.split or 'train'): saved} if alone else saved
  asked = datasets.ReadInstruction.from_spec(
    split or (next(iter(splits)) if alone else 'train')
  )
  parts = asked.to_absolute({name: len(rows) for name, rows in splits.items()})
  chosen = [splits[p.splitname].select(range(p.from_, p.to)) for p in parts]
  return datasets.concatenate_datasets(chosen)
