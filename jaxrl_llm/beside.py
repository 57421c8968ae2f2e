"""What a source says of completions beside their reward, in Batch.extra.

'cost' and 'feasible' [B, G], 'anchor_reward' [B], 'duel' [B, G, G]; ops/extras.py says
who asks for which. `filtration` moves what has a second axis with its completions.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.rewards import combine
from jaxrl_llm.rewards.sample import Batched, Sample


class Told(NamedTuple):
  """Of N = B * G completions, prompt by prompt."""

  extra: dict[str, np.ndarray]  # Leading axis B.
  metrics: dict[str, float]
  columns: dict[str, np.ndarray]  # [N] each, for the sample table.


# Samples and (B, G) to what is told of them.
Tell = Callable[[Sequence[Sample], tuple[int, int]], Told]
# From -1 to 1, above 0 where the first is better; a Batched one sees all pairs at once.
Judge = Callable[[Sample, Sample], float] | Batched


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

  def said(pairs: Sequence[tuple[Sample, Sample]]) -> np.ndarray:
    if isinstance(judge, Batched):
      found = combine.batched('judge', judge, pairs, [one for one, _ in pairs])
    else:
      mine = lambda other: lambda one: judge(one, other)
      found = [combine.call('judge', mine(other), one) for one, other in pairs]
    return np.array(found, np.float32)

  def tell(rows, shape) -> Told:
    b, g = shape
    duel = np.zeros((b, g, g), np.float32)
    at = [(k, *ij) for k in range(b) for ij in itertools.combinations(range(g), 2)]
    pairs = [(rows[k * g + i], rows[k * g + j]) for k, i, j in at]
    d = said(pairs)
    d = (d - said([pair[::-1] for pair in pairs])) / 2 if both else d
    k, i, j = np.array(at, np.int64).reshape(-1, 3).T
    duel[k, i, j], duel[k, j, i] = d, -d
    return Told({'duel': duel}, {}, {})

  return tell
