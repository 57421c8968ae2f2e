"""Any table as a tensorflow-datasets folder of array_record: random access."""

import datetime
import decimal
import json
import re
from typing import Any

from jaxrl_llm.data.tables import located, open_table
from jaxrl_llm.types import InputError


def write(splits: dict[str, str], folder: str) -> str:
  """Writes tables as splits of one data set; returns FOLDER of 'tfds:FOLDER:SPLIT'.

  A row is kept as it is, as JSON, so every kind of record fits: dates as text in ISO
  8601, decimals as floats. No TensorFlow.

  Args:
    splits: split name to a path (tables.open_table).
    folder: must not hold a prepared data set yet.

  Raises:
    InputError: a split's name is no word, it has no rows, the data set is there, or
      JSON has no form of a value.
  """
  import tensorflow_datasets as tfds

  if odd := [split for split in splits if not re.fullmatch(r'\w+', split)]:
    raise InputError(f'A split is named {odd[0]!r}; use letters, digits and _ alone.')

  found = {split: open_table(path) for split, path in splits.items()}

  if empty := [split for split, rows in found.items() if not len(rows)]:
    raise InputError(f'{splits[empty[0]]}: no rows for the split {empty[0]!r}.')

  class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Rows as JSON."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = tfds.features.FeaturesDict({'json': tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      del manager
      return {split: self._generate_examples(split) for split in found}

    def _generate_examples(self, split):
      for i in range(len(found[split])):
        row = found[split][i]
        with located(found[split].where(i)):
          text = json.dumps(row, default=as_json)
        yield i, {'json': text}

  builder = Records(data_dir=folder, file_format='array_record')
  if builder.data_path.exists():
    raise InputError(f'{builder.data_path} is there already. Name another folder.')
  builder.download_and_prepare()
  return str(builder.data_path)


def as_json(value: Any) -> str | float:
  """What Arrow has and JSON has not."""
  if isinstance(value, (datetime.date, datetime.time)):
    return value.isoformat()
  if isinstance(value, decimal.Decimal):
    return float(value)
  raise InputError(
    f'{type(value).__name__} {str(value)[:40]!r} has no form in JSON. Leave its column '
    'out.'
  )
