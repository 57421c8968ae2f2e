"""What a source says of completions beside their reward, in Batch.extra.

'cost' and 'feasible' [B, G], 'anchor_reward' [B], 'duel' [B, G, G]; ops/extras.py says
who asks for which. `filtration` moves what has a second axis with its completions.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.rewards import combine
from jaxrl_llm.rewards.sample import Sample


class Told(NamedTuple):
  """Of N = B * G completions, prompt by prompt."""

  extra: dict[str, np.ndarray]  # Leading axis B.
  metrics: dict[str, float]
  columns: dict[str, np.ndarray]  # [N] each, for the sample table.


# Samples and (B, G) to what is told of them.
Tell = Callable[[Sequence[Sample], tuple[int, int]], Told]
Judge = Callable[[Sample, Sample], float]  # Above 0 where the first is better.


def together(parts: Sequence[Tell]) -> Tell:
  """All that the parts tell."""

  def tell(rows, shape) -> Told:
    found = [part(rows, shape) for part in parts]
    merged = zip(*found) if found else [()] * 3
    return Told(*({k: x for one in ones for k, x in one.items()} for ones in merged))

  return tell


nothing = together([])


def costs(score: combine.Scorer) -> Tell:
  """The weighted sum of costs, and whether each of them, unweighted, is at most 0."""

  def tell(rows, shape) -> Told:
    total, parts = score(rows)
    kept = np.all([x <= 0 for x in parts.values()], 0).astype(np.float32)
    columns = {'cost': total} | {f'cost/{name}': x for name, x in parts.items()}
    metrics = {name: float(x.mean()) for name, x in columns.items()}
    extra = {'cost': total.reshape(shape), 'feasible': kept.reshape(shape)}
    return Told(extra, metrics | {'feasible': float(kept.mean())}, columns)

  return tell


def anchor(score: combine.Scorer) -> Tell:
  """The reward of the task's own answer as a completion, counted as of no length."""

  def tell(rows, shape) -> Told:
    answered = [
      row._replace(completion=row.record.answer, tokens=0, truncated=False)
      for row in rows[:: shape[1]]
    ]
    reward = score(answered)[0]
    return Told({'anchor_reward': reward}, {'reward_anchor': float(reward.mean())}, {})

  return tell


def duels(judge: Judge, *, both: bool = False) -> Tell:
  """Every pair of a group judged: d [B, G, G], d_ij above 0 where i beats j.

  A pair is judged once, the first drawn first, and d is antisymmetric by construction;
  with `both`, in both orders, and d_ij is half the difference: a judge that favours a
  place is evened out.
  """

  def said(one: Sample, other: Sample) -> float:
    return combine.call('judge', lambda sample: judge(sample, other), one)

  def tell(rows, shape) -> Told:
    b, g = shape
    found = np.zeros((b, g, g), np.float32)
    for k, (i, j) in itertools.product(range(b), itertools.combinations(range(g), 2)):
      one, other = rows[k * g + i], rows[k * g + j]
      d = said(one, other)
      d = (d - said(other, one)) / 2 if both else d
      found[k, i, j], found[k, j, i] = d, -d
    return Told({'duel': found}, {}, {})

  return tell
