"""A weighted sum of rewards, with every part kept apart for the logs."""

import numbers
from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm.rewards.sample import Batched, Reward, Sample
from jaxrl_llm.types import InputError

Scorer = Callable[[Sequence[Sample]], tuple[np.ndarray, dict[str, np.ndarray]]]

LARGEST = float(np.finfo(np.float32).max)


def weighted(parts: dict[str, tuple[float, Reward | Batched]]) -> Scorer:
  """N samples -> (total [N] float32, {name: [N] float32}), the parts unweighted.

  Args:
    parts: name -> (weight, reward).

  Raises:
    InputError: there are no parts, or a weight is not finite; at a call, a reward
      raises or returns anything but a finite number.
  """
  if not parts:
    raise InputError('rewards: there are none; name at least one.')
  for name, (weight, _) in parts.items():
    if not is_finite(weight):
      raise InputError(f'rewards.{name}: weight is {weight!r}; give a finite number.')

  def score(samples: Sequence[Sample]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    # Float64 until the end: integer rewards must not truncate a penalty of a half.
    found = {
      name: np.array(scored(name, reward, samples), np.float64)
      for name, (_, reward) in parts.items()
    }
    total = sum(weight * found[name] for name, (weight, _) in parts.items())
    return np.asarray(total, np.float32), {
      name: values.astype(np.float32) for name, values in found.items()
    }

  return score


def scored(name: str, reward: Reward | Batched, samples: Sequence[Sample]) -> list:
  """One reward of all samples."""
  if not isinstance(reward, Batched):
    return [call(name, reward, s) for s in samples]
  return batched(name, reward, samples, samples)


def batched(name: str, reward: Batched, given: Sequence, samples) -> list[float]:
  """Numbers for all that is given at once; `samples` are for messages."""
  found = reward.score(given)
  if len(found) != len(samples):
    raise InputError(
      f'reward {name!r}: it returned {len(found)} numbers for {len(samples)} samples.'
    )
  return [finite(x, place(name, s)) for x, s in zip(found, samples)]


def call(name: str, reward: Reward, sample: Sample) -> float:
  """One reward of one sample; whatever goes wrong names part, record and text."""
  where = place(name, sample)
  try:
    value = reward(sample)
  except Exception as error:  # A user's function: anything may come.
    raise InputError(
      f'{where}: it raised {type(error).__name__}: {str(error)[:300]}. '
      'Mend it, or let it return 0 there.'
    ) from error
  return finite(value, where)


def place(name: str, sample: Sample) -> str:
  """Part, record and text, for messages."""
  return (
    f'reward {name!r}, record {sample.record.id}, '
    f'completion {sample.completion[:200]!r}'
  )


def finite(value: object, where: str) -> float:
  """The value as a float, or an InputError."""
  if not is_finite(value):
    raise InputError(
      f'{where}: it returned {str(value)[:100]} ({type(value).__name__}); '
      'return a finite number.'
    )
  return float(value)


def is_finite(value: object) -> bool:
  """Whether it is a real number that a float32 holds."""
  if not isinstance(value, (numbers.Real, np.bool_)):
    return False
  # No float(value): an integer of 400 digits would raise. NaN compares as False.
  return bool(abs(value) <= LARGEST)
