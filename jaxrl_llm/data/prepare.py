"""Any table as a tensorflow-datasets folder of array_record: random access."""

import json
import re

from jaxrl_llm.data.tables import open_table
from jaxrl_llm.types import InputError


def write(splits: dict[str, str], folder: str) -> str:
  """Writes tables as splits of one data set; returns FOLDER of 'tfds:FOLDER:SPLIT'.

  A row is kept as it is, as JSON, so every kind of record fits. No TensorFlow.

  Args:
    splits: split name to a path (tables.open_table).
    folder: must not hold a prepared data set yet.

  Raises:
    InputError: a split's name is no word, it has no rows, or the data set is there.
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
        yield i, {'json': json.dumps(found[split][i])}

  builder = Records(data_dir=folder, file_format='array_record')
  if builder.data_path.exists():
    raise InputError(f'{builder.data_path} is there already. Name another folder.')
  builder.download_and_prepare()
  return str(builder.data_path)
