"""A reward bent into shape: config.rewards.x.shape='par' or ('clip(low=-3.0)', ...).

Each function takes the scores [N] of samples, the samples, and the reward itself, to
ask it for other samples. Shapes are applied in turn, before the reward's weight.
Running statistics are a method's affair: config.plan.reward_scale.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.rewards import combine
from jaxrl_llm.rewards.sample import Batched, Reward, Sample
from jaxrl_llm.types import InputError

Ask = Callable[[Sequence[Sample]], np.ndarray]


def shaped(reward: Reward | Batched, shapes, where: str) -> Batched:
  """The reward with these functions of this file around it, the first one innermost."""
  plain = lambda samples: combine.weighted({where: (1.0, reward)})(samples)[1][where]
  score = lambda samples: np.asarray(plain(samples), np.float64)
  for shape in [shapes] if isinstance(shapes, (str, dict)) else shapes:
    bend = build.function('jaxrl_llm.rewards.shaping', shape, f'{where}.shape')
    score = around(score, bend)
  return Batched(score)


def around(score: Ask, bend) -> Ask:
  """One function around what is there."""
  return lambda samples: bend(score(samples), samples, score)


def logistic(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(x / 2))


def par(score, samples, ask: Ask, *, scale: float = 1.0):
  """Preference As Reward (2025, https://arxiv.org/abs/2502.18770): between 0 and 1,
  the mean over references y' of sigmoid(scale (r(x, y) - r(x, y'))).

  References are the record's extra['references'], texts sampled once from the policy at
  its birth; without them its answer, as in CGPO.
  """
  told = [references(s) for s in samples]
  rows = [other for s, texts in zip(samples, told) for other in as_said(s, texts)]
  found = np.split(ask(rows), np.cumsum([len(texts) for texts in told])[:-1])
  return np.array([logistic(scale * (r - x)).mean() for r, x in zip(score, found)])


def references(sample: Sample) -> Sequence[str]:
  """Texts that a sample is compared with."""
  found = sample.record.extra.get('references') or [sample.record.answer]
  if not all(found):
    raise InputError(
      f'par: record {sample.record.id} has neither an answer nor extra["references"].'
    )
  return found


def as_said(sample: Sample, texts: Sequence[str]) -> list[Sample]:
  """Other completions of the same prompt, of no length."""
  return [sample._replace(completion=t, tokens=0, truncated=False) for t in texts]


def sigmoid(score, samples, ask, *, center: float = 0.0, scale: float = 1.0):
  """Between 0 and 1, 1/2 at `center`."""
  return logistic(scale * (score - center))


def tanh(score, samples, ask, *, center: float = 0.0, scale: float = 1.0):
  """Between -1 and 1, 0 at `center`."""
  return np.tanh(scale * (score - center))


def log_sigmoid(score, samples, ask, *, center: float = 0.0):
  """log sigmoid(r - center): below 0, and flat far above the center (LSC)."""
  return -np.logaddexp(0.0, center - score)


def clip(score, samples, ask, *, low: float = -np.inf, high: float = np.inf):
  """Held between low and high; `high` alone is a ceiling."""
  return np.clip(score, low, high)


def linear(score, samples, ask, *, center: float = 0.0, scale: float = 1.0):
  """scale (r - center)."""
  return scale * (score - center)


def length_penalty(score, samples, ask, *, coef: float = 0.01, free: int = 300):
  """Less `coef` for every token beyond `free`; the defaults are those of PAR's code."""
  tokens = np.array([s.tokens for s in samples])
  return score - coef * np.maximum(tokens - free, 0)
