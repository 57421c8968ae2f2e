"""Rows at random access, by what a path or name says: jsonl, parquet, tfds, the hub.

A table is a sequence of dicts. Opening one holds offsets, not rows.
"""

import array
import contextlib
import gzip
import json
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
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
  """Any sequence of dicts under a name: a list, a data source of tfds, `datasets`."""

  def __init__(self, rows: Sequence, name: str):
    self.rows, self.name = rows, name

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self.rows[int(index)]
    if isinstance(row, dict) and row.keys() == {'json'}:  # See prepare.py.
      row = json.loads(row['json'])
    elif isinstance(row, dict):
      row = {k: plain(x) for k, x in row.items()}
    if not isinstance(row, dict):
      raise InputError(
        f'{self.where(index)}: {type(row).__name__} in place of an object.'
      )
    return row

  def where(self, index: int) -> str:
    return f'{self.name}, row {index}'


def plain(value: Any) -> Any:
  """What tfds and `datasets` give as what JSON would: numbers, text, lists, objects.

  An object of lists of one length is their way to write a list of objects.
  """
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      value = value.decode()
    return value
  if isinstance(value, (np.ndarray, np.generic)):
    return plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [plain(x) for x in value]
  if isinstance(value, dict):
    found = {k: plain(x) for k, x in value.items()}
    sizes = {len(x) if isinstance(x, list) else -1 for x in found.values()}
    if len(sizes) == 1 and -1 not in sizes:
      return [dict(zip(found, row)) for row in zip(*found.values())]
    return found
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
    row = json.loads(line.decode('utf-8-sig').rstrip())
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


def open_table(path: str) -> Sequence:
  """A table by path or name.

  Args:
    path: a .jsonl, .jsonl.gz, .json (a list of objects) or .parquet file;
      'tfds:NAME[:SPLIT[:DATA_DIR]]'; 'hf:NAME[:SPLIT[:CONFIG]]' for the `datasets`
      package;
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
    return Rows(load(name, split or 'train', third), path)
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
    return Rows(Parquet(path), path)
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
    found = json.loads(pathlib.Path(path).read_bytes())
  except ValueError as error:
    hint = (
      ' With an object a line it is a .jsonl file.' if 'Extra' in str(error) else ''
    )
    raise InputError(f'{path}: no JSON: {error}.{hint}') from error
  if not isinstance(found, list):
    raise InputError(f'{path}: {type(found).__name__} in place of a list of objects.')
  return found


class Parquet(Sequence):
  """A parquet file, mapped."""

  def __init__(self, path: str):
    import pyarrow
    from pyarrow import parquet

    try:
      self.table = parquet.read_table(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
      raise InputError(f'{path}: no readable parquet file: {error}') from error

  def __len__(self) -> int:
    return self.table.num_rows

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.table.slice(index, 1).to_pylist()[0]


def from_tfds(name: str, split: str, data_dir: str) -> Sequence:
  """A prepared data set of array_record or parquet files, without TensorFlow."""
  import tensorflow_datasets as tfds

  try:
    builder = (
      tfds.builder_from_directory(name)
      if pathlib.Path(name).is_dir()
      else tfds.builder(name, data_dir=data_dir or None)
    )
    if (base := re.split(r'[\[+]', split)[0]) not in builder.info.splits:
      there = sorted(builder.info.splits)
      raise InputError(f'tfds:{name} has no split {base!r}; there are {there}.')
    return builder.as_data_source(split)
  except InputError:
    raise
  except Exception as error:  # tfds raises many kinds, and ImportError for TensorFlow.
    raise InputError(
      f'tfds:{name} ({split}) does not open without TensorFlow: {error}. Prepare it '
      "once with file_format='array_record' where TensorFlow is installed, or give its "
      'folder.'
    ) from error


def from_hub(name: str, split: str, config: str) -> Sequence:
  """A data set of the `datasets` package, by path or hub name."""
  try:
    import datasets
  except ImportError as error:
    raise InputError('hf: needs the datasets package: pip install datasets.') from error
  try:
    saved = pathlib.Path(name)
    if (saved / 'dataset_dict.json').exists():
      return datasets.load_from_disk(name)[split]
    if (saved / 'state.json').exists():  # As `save_to_disk` writes.
      return datasets.load_from_disk(name)
    return datasets.load_dataset(name, config or None, split=split)
  except Exception as error:  # datasets raises many kinds.
    raise InputError(f'hf:{name} ({split}) does not load: {error}') from error
