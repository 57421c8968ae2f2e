"""How far scores and verdicts can be trusted. Plain NumPy."""

import numpy as np

from jaxrl_llm.types import InputError


def expected_error(
  probability: np.ndarray, outcome: np.ndarray, bins: int = 10
) -> float:
  """Expected calibration error: sum over bins of n_b / N |mean outcome - mean p|.

  Bins are equally wide on [0, 1]; the outcome is 0 or 1, or the share in between.
  """
  return float(
    sum(n * abs(p - y) for p, y, n in reliability(probability, outcome, bins))
  )


def reliability(
  probability, outcome, bins: int = 10
) -> list[tuple[float, float, float]]:
  """(mean probability, mean outcome, share of all) of each bin that is not empty."""
  p, y = np.asarray(probability, np.float64), np.asarray(outcome, np.float64)
  if p.shape != y.shape or not p.size or not ((p >= 0) & (p <= 1)).all():
    raise InputError(
      f'reliability: {p.shape} probabilities and {y.shape} outcomes; give as many of '
      'each, at least one, the first between 0 and 1.'
    )
  which = np.minimum((p * bins).astype(int), bins - 1)
  found = (which == b for b in range(bins))
  return [
    (float(p[i].mean()), float(y[i].mean()), float(i.mean())) for i in found if i.any()
  ]


def preferences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """sigmoid(first - second): a reward model's probability that the first is better."""
  gap = np.asarray(first, np.float64) - np.asarray(second, np.float64)
  return 0.5 * (1 + np.tanh(gap / 2))  # No overflow, whatever the gap.


def agreement(one: np.ndarray, other: np.ndarray) -> float:
  """Share of verdicts that are the same."""
  return float((np.asarray(one) == np.asarray(other)).mean())


def kappa(one: np.ndarray, other: np.ndarray) -> float:
  """Cohen's kappa, (agreement - by chance) / (1 - by chance); 0 where chance is all."""
  one, other = np.asarray(one), np.asarray(other)
  labels = np.union1d(one, other)
  chance = float(sum((one == x).mean() * (other == x).mean() for x in labels))
  return (agreement(one, other) - chance) / (1 - chance) if chance < 1 else 0.0


def length_correlation(score: np.ndarray, length: np.ndarray) -> float:
  """Pearson's correlation of scores and lengths; 0 where one of them is constant."""
  x, y = (np.asarray(v, np.float64) - np.mean(v) for v in (score, length))
  scale = np.sqrt((x**2).sum() * (y**2).sum())
  return float((x * y).sum() / scale) if scale > 0 else 0.0


def longer_wins(score: np.ndarray, length: np.ndarray) -> float:
  """Of pairs [N, 2], the share whose longer response scores higher; ties are half.

  Pairs of one length do not count; 0.5 where there are no others.
  """
  longer = np.sign(np.diff(length, axis=1))
  gap = np.sign(np.diff(score, axis=1)) * longer
  return float((1 + gap.sum() / max(np.abs(longer).sum(), 1)) / 2)
