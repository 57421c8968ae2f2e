"""Writes reward_models.json: golden numbers of reward models and of their shaping.

NumPy in float64, from the formulas of the papers; nothing of the package is imported.
Run: python tests/oracles/reward_models.py
"""

import itertools
import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.json')

sigmoid = lambda x: 1 / (1 + np.exp(-x))
ENSEMBLE = [
  [1.0, 2.0, 0.0],
  [0.5, 2.5, 0.2],
  [1.5, -1.0, 0.1],
  [1.0, 2.0, 0.3],
  [1.0, 1.0, 0.0],
]


def plackett_luce(score):
  """- log P of the scores' own order, as a product of shares."""
  share = [np.exp(score[k]) / np.exp(score[k:]).sum() for k in range(len(score) - 1)]
  return -np.log(np.prod(share))


def davidson(margin, strength):
  weight = np.array([np.exp(margin / 2), np.exp(-margin / 2), strength])
  return weight / weight.sum()


def rao_kupper(margin, strength):
  win, loss = sigmoid(margin - strength), sigmoid(-margin - strength)
  return np.array([win, loss, 1 - win - loss])


def kl_to_normal(mean, log_variance):
  return 0.5 * np.sum(np.exp(log_variance) + mean**2 - 1 - log_variance)


def classes(p, bounds, k):
  q = np.exp([-k * (p - a) * (p - b) for a, b in itertools.pairwise(bounds)])
  return q / q.sum()


def table():
  """The whole file as plain data."""
  x, step = np.array(ENSEMBLE), np.array([0.9, 0.8, 0.95])
  bt = lambda margin: np.log1p(np.exp(-margin))
  found = {
    'bradley_terry': bt(0.9),
    'margin': bt(0.4),
    'center': bt(0.9) + 0.01 * 1.5**2,
    'l2': bt(0.9) + 0.001 * 0.5 * (1.44 + 0.09),
    'smoothed': 0.9 * bt(0.9) + 0.1 * bt(-0.9),
    'plackett_luce': plackett_luce(np.array([1.0, 0.5, -1.0])),
    'rao_kupper': rao_kupper(0.4, 0.3),
    'davidson': davidson(0.4, 0.5),
    'mean': x.mean(0),
    'worst': x.min(0),
    'cautious': x.mean(0) - 0.5 * x.var(0),
    'cautious_sample': x.mean(0) - 0.1 * x.var(0, ddof=1),
    'entropic': -0.7 * np.log(np.mean(np.exp(-x / 0.7), 0)),
    'par': sigmoid(1.3 - np.array([0.2, -0.4, 0.9])).mean(),
    'prod': step.prod(),
    'least': step.min(),
    'step_mean': step.mean(),
    'last': step[-1],
    'sum_log': np.log(step).sum(),
    'sum_logit': np.log(step / (1 - step)).sum(),
    'classes': classes(0.45, [0, 0.3, 0.6, 1.0], 30.0),
    'target': np.log(1 + 0.1 * 50 * 3),
    'kl': kl_to_normal(np.array([0.5, -1.0]), np.array([0.2, -0.3])),
  }
  return {k: np.asarray(v).tolist() for k, v in found.items()}


if __name__ == '__main__':
  FILE.write_text(json.dumps(table(), indent=1) + '\n')
