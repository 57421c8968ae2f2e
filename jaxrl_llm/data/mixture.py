"""Several data sets as one, each with a weight: config.data.name='mixture'."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.data import contamination as overlap
from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.types import InputError


def mixture(*, parts: dict, contamination: int = 0) -> Data:
  """Training examples drawn by weight; held-out examples of all parts, one by one.

  Args:
    parts: name to {name, weight, options of that data set}: a weight is a share of the
      training examples, and weights need not sum to 1. A small part is repeated.
    contamination: as in `files`, of all training against all held-out examples.

  Pairs keep their margins where all parts have them.
  """
  found, weights = {}, {}
  for key, options in parts.items():
    options, where = dict(options), f'config.data.parts.{key}'
    weights[key] = options.pop('weight', 1.0)
    if not isinstance(weights[key], (int, float)) or not weights[key] > 0:
      raise InputError(f'{where}.weight={weights[key]!r}; a positive number is due.')
    if 'name' not in options:
      raise InputError(f'{where} has no name; give the name of a data set.')
    found[key] = build.made('jaxrl_llm.data', options, where)
  if not found:
    raise InputError('config.data.parts is empty; give at least one data set.')
  bare = [key for key, d in found.items() if 'margin' not in d.train[0].extra]
  left_out = ('margin',) if 0 < len(bare) < len(found) else ()
  train = Joined([d.train for d in found.values()], left_out)
  test = Joined([d.test for d in found.values()], left_out)
  report = [f'{key}: {line}' for key, d in found.items() for line in d.report]
  if left_out:
    report += [f"'margin' is left out of every pair, since {bare} have none."]
  report += [overlap.told(train, test, contamination)] if contamination else []
  digest = hashlib.sha256(repr([d.digest for d in found.values()]).encode())
  return Data(
    train,
    test,
    digest.hexdigest(),
    report,
    [(len(d.train), weights[key]) for key, d in found.items()],
  )


class Joined(Sequence):
  """Sequences one after the other, without some fields of Example.extra."""

  def __init__(self, parts: Sequence[Sequence[Example]], left_out: Sequence[str] = ()):
    self.parts, self.left_out = parts, left_out
    self.ends = np.cumsum([len(p) for p in parts])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, index: int) -> Example:
    part = int(np.searchsorted(self.ends, index, side='right'))
    if part == len(self.parts):
      raise IndexError(index)
    found = self.parts[part][index - int(self.ends[part]) + len(self.parts[part])]
    if not self.left_out:
      return found
    extra = {k: x for k, x in found.extra.items() if k not in self.left_out}
    return found._replace(extra=extra)
