"""How many completions the prompts of each bin get, under a budget. On the host, but
for what moves with the method (`moved`).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Array, InputError


def choose(
  counts: Sequence[int], logp: np.ndarray, arms: Sequence[int], mean: int
) -> list[int]:
  """argmax over (a_b) of sum_b logp[b, a_b], where sum_b counts_b arms[a_b] is exact.

  By dynamic programming over the sums that bins can reach. Of equal choices the one
  nearest to `mean` for all.

  Args:
    counts: prompts in each bin, of those that are there.
    logp: [bins, arms].
    arms: numbers of completions.
    mean: of all prompts; the sum is mean * sum(counts).
  """
  best = {0: ((0.0, 0), [])}  # Sum so far -> (value, minus the spread), choices.
  for count, row in zip(counts, logp):
    reached = {}
    for total, ((value, spread), chosen) in best.items():
      for a, arm in enumerate(arms):
        told = (value + float(row[a]), spread - int(count) * int(arm - mean) ** 2)
        to = total + int(count) * int(arm)
        if to not in reached or told > reached[to][0]:
          reached[to] = told, [*chosen, a]
    best = reached
  due = mean * int(sum(counts))
  if due not in best:
    raise InputError(f'No {list(arms)} completions make {mean} a prompt on average.')
  return best[due][1]


def square_root(v: np.ndarray, share: np.ndarray, mean: float) -> np.ndarray:
  """argmin of sum_b share_b v_b / n_b, sum_b share_b n_b = mean, n not whole."""
  return mean * np.sqrt(v) / (share * np.sqrt(v)).sum()


def arm_logp(score: Array, *, eta: float, gamma: float) -> Array:
  """log((1 - gamma) softmax_n(eta score) + gamma / arms): [bins, arms]."""
  p = jnp.exp(eta * (score - score.max(1, keepdims=True)))
  p /= p.sum(1, keepdims=True)
  return jnp.log((1 - gamma) * p + gamma / score.shape[1])


def moved(
  score: Array, loss: Array, number: Array, arms: Array, price, *, ema: float, mean=None
) -> Array:
  """The scores [bins, arms], those of the arms moved that bins have drawn.

  score <- (1 - ema) score - ema (loss + price n);  with a `mean`, which is the
  published code's other sign, score <- score + loss - price (n - mean).

  Args:
    loss: of each bin.
    number: n, its completions a prompt; one that is no arm moves nothing.
  """
  paid = (price * number)[:, None]
  if mean is None:
    told = (1 - ema) * score - ema * (loss[:, None] + paid)
  else:
    told = score + loss[:, None] - (paid - price * mean)
  return jnp.where(arms[None] == number[:, None], told, score)
