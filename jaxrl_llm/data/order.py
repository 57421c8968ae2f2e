"""Which examples make up which batch: functions of the seed and the step.

Nothing is kept between steps, so a resumed run needs no iterator's state.
"""

import functools
import math
from collections.abc import Callable, Sequence

import grain
import numpy as np

from jaxrl_llm.types import InputError

Index = Callable[[int], list[int]]  # Step to the examples of its batch.
WINDOW = 32  # Batches within which examples of like length are put together.


def shuffled(parts: Sequence[tuple[int, float]], prompts: int, seed: int) -> Index:
  """Each part in another order each epoch; the parts mixed by their weights.

  The last `size % prompts` examples of an epoch open the next one.

  Args:
    parts: (size, weight) of parts that lie one after the other; weights need not sum
      to 1, and a weight is a share of examples.
    prompts: examples per batch.
  """
  starts = np.cumsum([0, *(size for size, _ in parts)])
  total = int(starts[-1])
  if total < prompts:
    raise InputError(
      f'The data set has {total} rows and a batch takes {prompts}. Add rows or lower '
      'config.source.prompts.'
    )
  orders = [
    grain.MapDataset.range(int(start), int(start) + size).seed(seed + i).shuffle()
    for i, (start, (size, _)) in enumerate(zip(starts, parts))
  ]
  weights = [weight / math.fsum(w for _, w in parts) for _, weight in parts]
  order = grain.MapDataset.mix([o.repeat() for o in orders], weights)
  places = lambda step: range(step * prompts, (step + 1) * prompts)
  return lambda step: [int(order[i]) for i in places(step)]


def by_length(index: Index, size: Callable[[int], int], seed: int) -> Index:
  """The same examples, those of like length in the same batch.

  WINDOW batches are sorted by length and come in a random order.

  Args:
    size: of an example, in tokens.
  """

  @functools.lru_cache(maxsize=2)
  def window(number: int) -> list[list[int]]:
    batches = [index(s) for s in range(number * WINDOW, (number + 1) * WINDOW)]
    found = sorted((i for batch in batches for i in batch), key=size)
    n = len(batches[0])
    turns = np.random.default_rng((seed, number)).permutation(WINDOW)
    return [found[i * n : (i + 1) * n] for i in turns]

  return lambda step: window(step // WINDOW)[step % WINDOW]
