"""Process supervision: the rewards of a completion's steps.

A step ends with a token whose text has the given mark, and at the completion's end. Its
reward is that of everything written so far, by the very rewards of the config.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm.rewards.combine import Scorer
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.types import Batch

Decode = Callable[[Sequence[int]], str]


def with_steps(
  batch: Batch, samples: Sequence[Sample], decode: Decode, reward: Scorer, mark: str
) -> Batch:
  """The batch with extra['step_end'] and extra['step_reward'], [B, G, T] both.

  Args:
    batch: of host arrays.
    samples: its completions, prompt by prompt.
    decode, reward: as the source has them.
    mark: what a step ends with.
  """
  end = np.zeros(batch.completions.shape, np.float32)
  texts, size = {}, end.shape[1]
  for b, g in np.ndindex(batch.length.shape):
    tokens = batch.completions[b, g, : batch.length[b, g]]
    marked = [mark in texts.setdefault(t, decode([t])) for t in tokens.tolist()]
    end[b, g, : len(tokens)] = [*marked[:-1], True]
  parts = [
    samples[b * size + g]._replace(
      completion=decode(batch.completions[b, g, : t + 1]), tokens=int(t) + 1
    )
    for b, g, t in np.argwhere(end)
  ]
  found = np.zeros_like(end)
  found[end > 0] = reward(parts)[0]
  return batch.replace(extra=batch.extra | {'step_end': end, 'step_reward': found})
