"""Writes preference_losses.json: values and slopes of the preference losses.

NumPy in float64, from the formulas of the papers; nothing of the package is imported.
Inputs are log-probs of whole completions, and their lengths. Slopes are with respect to
the policy's log-probs (or the scores). Run: python tests/oracles/preference_losses.py
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.json')
PAIRS = 6

sigmoid = lambda x: 1 / (1 + np.exp(-x))
softplus = lambda x: np.logaddexp(0.0, x)  # -log sigmoid(-x)
pair = lambda chosen, rejected: np.stack([chosen, rejected], 1) / PAIRS


def inputs():
  """Ragged pairs; the reference is near the policy."""
  rng = np.random.default_rng(11)
  length = rng.integers(1, 9, (PAIRS, 2))
  logp = -rng.uniform(0.2, 3.0, (PAIRS, 2)) * length
  ref = logp + rng.normal(0.0, 1.5, (PAIRS, 2))
  ref = np.minimum(ref, -0.05)
  label = np.where(rng.random((PAIRS, 2)) < 0.5, 1.0, -1.0)
  score = rng.normal(0.0, 2.0, (PAIRS, 2))
  return dict(length=length, logp=logp, ref=ref, label=label, score=score)


def dpo(x, beta, smoothing):
  h = beta * np.subtract(*(x['logp'] - x['ref']).T)
  value = (1 - smoothing) * softplus(-h) + smoothing * softplus(h)
  slope = beta * (smoothing * sigmoid(h) - (1 - smoothing) * sigmoid(-h))
  return value.mean(), pair(slope, -slope)


def ipo(x, tau, average):
  n = x['length'] if average else np.ones_like(x['length'])
  gap = np.subtract(*((x['logp'] - x['ref']) / n).T) - 1 / (2 * tau)
  return np.mean(gap**2), pair(2 * gap / n[:, 0], -2 * gap / n[:, 1])


def simpo(x, beta, gamma):
  n = x['length']
  logit = beta * np.subtract(*(x['logp'] / n).T) - gamma
  slope = -beta * sigmoid(-logit)
  return softplus(-logit).mean(), pair(slope / n[:, 0], -slope / n[:, 1])


def orpo(x, lam):
  n = x['length']
  mean = x['logp'] / n
  rest = 1 - np.exp(mean)  # log odds: a - log(1 - e^a), of slope 1 / (1 - e^a).
  odds = np.subtract(*(mean - np.log(rest)).T)
  value = -mean[:, 0] + lam * softplus(-odds)
  slope = lam * sigmoid(-odds)
  chosen = (-1 - slope / rest[:, 0]) / n[:, 0]
  return value.mean(), pair(chosen, slope / rest[:, 1] / n[:, 1])


def kto(x, beta, desirable, undesirable, z0):
  y = x['label']
  lam = np.where(y > 0, desirable, undesirable)
  s = sigmoid(y * beta * (x['logp'] - x['ref'] - z0))
  return np.mean(lam * (1 - s)), -lam * s * (1 - s) * y * beta / y.size


def bradley_terry(x, center, l2):
  s = x['score']
  logit, total = s[:, 0] - s[:, 1], s.sum(1)
  value = softplus(-logit) + center * total**2 + l2 / 2 * (s**2).sum(1)
  slope = -sigmoid(-logit)
  both = 2 * center * total[:, None] + l2 * s
  return value.mean(), pair(slope, -slope) + both / PAIRS


LOSSES = {  # The package's method and its options.
  'dpo': (dpo, 'dpo', dict(beta=0.1), dict(beta=0.1, smoothing=0.0)),
  'dpo, smoothed': (
    dpo,
    'dpo',
    dict(beta=0.5, label_smoothing=0.2),
    dict(beta=0.5, smoothing=0.2),
  ),
  'ipo': (ipo, 'ipo', dict(tau=0.1), dict(tau=0.1, average=True)),
  'ipo, summed': (
    ipo,
    'ipo',
    dict(tau=0.2, average=False),
    dict(tau=0.2, average=False),
  ),
  'simpo': (simpo, 'simpo', dict(beta=2.0, gamma=1.0), dict(beta=2.0, gamma=1.0)),
  'orpo': (orpo, 'orpo', dict(lam=0.1), dict(lam=0.1)),
  'kto': (
    kto,
    'kto',
    dict(beta=0.3, desirable=1.0, undesirable=1.33),
    dict(beta=0.3, desirable=1.0, undesirable=1.33, z0=0.4),
  ),
  'bradley_terry': (bradley_terry, 'bradley_terry', {}, dict(center=0.0, l2=0.0)),
  'bradley_terry, held': (
    bradley_terry,
    'bradley_terry',
    dict(center=0.01, l2=0.001),
    dict(center=0.01, l2=0.001),
  ),
}


def table():
  """The whole file as plain data."""
  x = inputs()
  losses = {}
  for title, (fn, method, options, numbers) in LOSSES.items():
    value, slope = fn(x, **numbers)
    losses[title] = dict(
      method=method,
      options=options,
      z0=numbers.get('z0', 0.0),
      value=float(value),
      slope=slope.tolist(),
    )
  return dict(inputs={k: v.tolist() for k, v in x.items()}, losses=losses)


if __name__ == '__main__':
  FILE.write_text(json.dumps(table(), indent=1) + '\n')
