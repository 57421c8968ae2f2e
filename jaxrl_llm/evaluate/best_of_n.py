"""Best of n: its exact distance, its expected score, and the laws of over-optimisation.

Gao, Schulman and Hilton (2022), https://arxiv.org/abs/2210.10760. Plain NumPy.
"""

import math

import numpy as np

from jaxrl_llm.types import InputError


def kl(n: int) -> float:
  """KL from best-of-n to the policy it draws from, log n - (n - 1) / n, in nats.

  Exact where no two completions have the same score; with ties it is an upper bound.
  """
  return math.log(n) - (n - 1) / n


def discrete_kl(probability: np.ndarray, n: int) -> float:
  """The same, of completions [M] with these probabilities, in order of their score.

  P(i is the best) = F_i^n - F_(i-1)^n, F the sum up to i.
  """
  p = np.asarray(probability, np.float64)
  total = np.concatenate([[0.0], np.cumsum(p)])
  best = np.diff(np.minimum(total, 1.0) ** n)
  there = best > 0
  return float((best[there] * np.log(best[there] / p[there])).sum())


def expected(proxy: np.ndarray, score: np.ndarray, n: int) -> float:
  """Mean `score` of the best of n by `proxy`, over all subsets of N drawn completions.

  sum over i from n to N of C(i - 1, n - 1) / C(N, n) score_(i), in order of the proxy:
  the mean over all choices of n, without drawing any (Nakano et al., 2021, appendix I,
  https://arxiv.org/abs/2112.09332).
  """
  proxy, score = np.asarray(proxy), np.asarray(score, np.float64)
  count = len(proxy)
  if not 1 <= n <= count:
    raise InputError(f'best_of_n: n={n} of {count} completions; 1 <= n <= {count}.')
  order = score[np.argsort(proxy, kind='stable')]
  log_choose = lambda a, b: (
    math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)
  )
  whole = log_choose(count, n)
  share = [math.exp(log_choose(i - 1, n - 1) - whole) for i in range(n, count + 1)]
  return float(np.dot(share, order[n - 1 :]))


def fit(distance: np.ndarray, gain: np.ndarray, *, law: str) -> tuple[float, float]:
  """(alpha, beta) of gain = d (alpha - beta d), law 'best_of_n', or of
  d (alpha - beta log d), law 'rl', by least squares; d = sqrt(KL) above 0.
  """
  d, gain = np.asarray(distance, np.float64), np.asarray(gain, np.float64)
  if law not in ('best_of_n', 'rl'):
    raise InputError(f"fit: law={law!r}; 'best_of_n' or 'rl'.")
  bend = d if law == 'best_of_n' else np.log(d)
  (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * bend], 1), gain, rcond=None)
  return float(alpha), float(beta)
