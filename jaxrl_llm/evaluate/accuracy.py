"""Accuracy with its uncertainty. Plain NumPy; the unit of counting is the question."""

import math
import statistics

import numpy as np

from jaxrl_llm.types import InputError


def wilson(
  successes: float, n: int, *, confidence: float = 0.95
) -> tuple[float, float]:
  """Wilson's score interval for a share (Wilson, 1927).

  Args:
    successes: may be fractional, e.g. the sum of n questions' mean accuracies. The
      interval is then wider than need be, never narrower.
    n: independent trials.

  Raises:
    InputError: not 0 <= successes <= n, n below 1, or not 0 < confidence < 1.
  """
  if not (n >= 1 and 0 <= successes <= n and 0 < confidence < 1):
    raise InputError(
      f'wilson: {successes} successes of {n} at confidence {confidence}; successes lie '
      'between 0 and n, n is at least 1, confidence is between 0 and 1.'
    )
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  p = successes / n
  scale = 1 + z**2 / n
  middle = (p + z**2 / (2 * n)) / scale
  half = z / scale * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
  values: np.ndarray, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
  """Percentile interval for the mean of `values` [N], by resampling them."""
  values = np.asarray(values, np.float64)
  rng = np.random.default_rng(seed)
  means = [
    values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)
  ]
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  return float(low), float(high)


def ahead(scores: np.ndarray) -> np.ndarray:
  """Whether the first of two scores [..., 2] is the larger, [...]; a tie is half."""
  return (1 + np.sign(scores[..., 0] - scores[..., 1])) / 2


def pass_at_k(n: int, c: int, k: int) -> float:
  """Probability that one of k samples is right, unbiased, from c right of n.

  Chen et al. (2021), https://arxiv.org/abs/2107.03374, equation 1, as a product:
  1 - prod over i from n-c+1 to n of (1 - k/i).
  """
  if not (0 <= c <= n and 1 <= k <= n):
    raise InputError(f'pass_at_k: n={n}, c={c}, k={k}; 0 <= c <= n and 1 <= k <= n.')
  if n - c < k:
    return 1.0
  return 1.0 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def summarise(scores: np.ndarray, *, confidence: float = 0.95) -> dict[str, float]:
  """Scores [N, n] in [0, 1] of n samples for each of N questions, in numbers.

  A sample is right where its score is 1. `accuracy` is the mean over samples with its
  Wilson interval over the N questions (samples of one question are no independent
  trials); `score` is the mean score, partial credit included, with a bootstrap
  interval over questions; `pass@k` stands for k = 1, 2, 4 ... up to n.

  Raises:
    InputError: another shape, no scores, or a score outside [0, 1].
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or scores.size == 0 or not ((scores >= 0) & (scores <= 1)).all():
    raise InputError(
      f'summarise: scores of shape {scores.shape}; give [questions, samples] of scores '
      'between 0 and 1, at least one of each.'
    )
  questions, samples = scores.shape
  right = (scores == 1).sum(1)
  low, high = wilson(right.sum() / samples, questions, confidence=confidence)
  score_low, score_high = bootstrap(scores.mean(1), confidence=confidence)
  passes = {
    f'pass@{k}': float(np.mean([pass_at_k(samples, int(c), k) for c in right]))
    for k in (2**i for i in range(samples.bit_length()))
  }
  return {
    'questions': questions,
    'samples': samples,
    'accuracy': float(right.sum() / scores.size),
    'accuracy_low': low,
    'accuracy_high': high,
    'score': float(scores.mean()),
    'score_low': score_low,
    'score_high': score_high,
    **passes,
  }
