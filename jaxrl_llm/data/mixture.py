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
  train = Joined([d.train for d in found.values()])
  test = Joined([d.test for d in found.values()])
  report = [f'{key}: {line}' for key, d in found.items() for line in d.report]
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
  """Sequences one after the other."""

  def __init__(self, parts: Sequence[Sequence[Example]]):
    self.parts = parts
    self.ends = np.cumsum([len(p) for p in parts])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, index: int) -> Example:
    part = int(np.searchsorted(self.ends, index, side='right'))
    if part == len(self.parts):
      raise IndexError(index)
    return self.parts[part][index - int(self.ends[part]) + len(self.parts[part])]
