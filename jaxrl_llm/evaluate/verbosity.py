"""Attributes of a reward model freed of verbosity (ArmoRM's second stage, 2024,
https://arxiv.org/abs/2406.12845). Plain NumPy.
"""

import numpy as np

from jaxrl_llm.types import InputError

# 0, .01, .025, .05 and on to .95; from .05 on the steps are taken to be of .05.
GRID = (0.0, 0.01, 0.025, *(i / 20 for i in range(1, 20)))


def penalties(reward: np.ndarray, column: int, *, limit: float = 0.03) -> np.ndarray:
  """For each of the attributes [N, A] the least p of GRID with
  |spearman(r - p r_column, r_column)| <= limit; 0 for the column itself.

  An attribute that no p frees is an InputError: its slope on verbosity is above .95, or
  below 0.
  """
  reward = np.asarray(reward, np.float64)
  long, found = reward[:, column], np.zeros(reward.shape[1])
  for a in range(reward.shape[1]):
    if a == column:
      continue
    tried = (p for p in GRID if abs(spearman(reward[:, a] - p * long, long)) <= limit)
    if (best := next(tried, None)) is None:
      raise InputError(
        f'penalties: no p of the grid frees attribute {a}, whose rank correlation with '
        f'{column} is {spearman(reward[:, a], long):.2f}. Bring both to one scale.'
      )
    found[a] = best
  return found


def spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Pearson's correlation of ranks, ties sharing theirs; 0 where one is constant."""
  one, other = (ranks(v) - (len(v) - 1) / 2 for v in (x, y))
  scale = np.sqrt((one**2).sum() * (other**2).sum())
  return float((one * other).sum() / scale) if scale > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
  """From 0; equal ones have the mean of theirs."""
  _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts + 1) / 2)[inverse]
