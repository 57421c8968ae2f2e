"""Writes preference_lists.json: values and slopes of losses of lists and of self-play.

NumPy in float64, from the formulas of the papers; nothing of the package is imported.
Slopes, with respect to the policy's log-probs of whole completions, are imaginary parts
at a step of 1e-30 i. Run: python tests/oracles/preference_lists.py
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.json')
LISTS = 5

softplus = lambda x: np.log(1 + np.exp(x))
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def inputs(size, seed):
  """Lists in no order; reference and policy of before are near the policy.

  `drift` is a completion's summed KL from the reference, which no log-prob here moves.
  """
  rng = np.random.default_rng(seed)
  shape = (LISTS, size)
  length = rng.integers(1, 7, shape)
  logp = -rng.uniform(0.2, 2.0, shape) * length
  near = lambda: np.minimum(logp + rng.normal(0.0, 1.0, shape), -0.05)
  drift = rng.uniform(0.0, 0.5, shape) * length
  reward = rng.permuted(np.tile([1.3, 0.4, -0.5, -2.0][:size], (LISTS, 1)), axis=1)
  found = dict(length=length, logp=logp, ref=near(), old=near())
  return found | dict(drift=drift, reward=reward)


def ordered(x, logp):
  """(log-prob, row) of each list, the best first."""
  for i, order in enumerate(np.argsort(-x['reward'], 1)):
    yield logp[i][order], {k: v[i][order] for k, v in x.items()}


def plackett_luce_dpo(x, logp, beta):
  total = 0
  for p, row in ordered(x, logp):
    s = beta * (p - row['ref'])
    total += sum(np.log(np.exp(s[k:]).sum()) - s[k] for k in range(len(s)))
  return total / LISTS


def pro(x, logp, sft):
  total = 0
  for p, row in ordered(x, logp):
    s, r, n = p / row['length'], row['reward'], len(p)
    for k in range(n - 1):
      gap = r[k] - r[k + 1 :]
      own = np.exp(s[k] * gap.max())
      total += np.log(own + np.exp(s[k + 1 :] * gap).sum()) - s[k] * gap.max()
    total -= sft * (n - 1) ** 2 * p[0]
  return total / LISTS


def cpl(x, logp, alpha, lam, anchored):
  a = alpha * (logp - x['ref'] if anchored else logp)
  return np.mean(softplus(lam * a[:, 1] - a[:, 0]))


def tdpo(x, logp, beta, alpha):
  h = np.subtract(*(logp - x['ref']).T)
  apart = np.subtract(*x['drift'].T)
  return np.mean(softplus(-beta * (h + alpha * apart)))


def spin(x, logp, lam):
  return np.mean(softplus(-lam * np.subtract(*(logp - x['ref']).T)))


def sppo(x, logp, eta, ends):
  total, count = 0, 0
  for i, r in enumerate(x['reward']):
    win = sigmoid(r[:, None] - r[None]).mean(1)
    rows = [np.argmax(win), np.argmin(win)] if ends else range(len(r))
    for j in rows:
      total += (logp[i, j] - x['old'][i, j] - eta * (win[j] - 0.5)) ** 2
      count += 1
  return total / count


def inpo(x, logp, eta, tau):
  d = lambda v: v[:, 0] - v[:, 1]
  h = d(logp) - tau / eta * d(x['ref']) - (eta - tau) / eta * d(x['old'])
  p = sigmoid(d(x['reward']))
  goal = 1 / (2 * eta)
  return np.mean(p * (h - goal) ** 2 + (1 - p) * (h + goal) ** 2)


LOSSES = {  # Completions a list, the function, and options of both.
  'plackett_luce_dpo': (4, plackett_luce_dpo, dict(beta=0.3)),
  'pro': (4, pro, dict(sft=0.05)),
  'pro, unanchored': (3, pro, dict(sft=0.0)),
  'cpl': (2, cpl, dict(alpha=0.1, lam=0.5, anchored=False)),
  'cpl, anchored': (2, cpl, dict(alpha=0.2, lam=0.75, anchored=True)),
  'tdpo': (2, tdpo, dict(beta=0.1, alpha=0.5)),
  'spin': (2, spin, dict(lam=0.1)),
  'sppo': (4, sppo, dict(eta=3.0, ends=False)),
  'sppo, ends': (4, sppo, dict(eta=3.0, ends=True)),
  'inpo': (2, inpo, dict(eta=0.5, tau=0.2)),
}


def slope(fn, x, options):
  """d fn / d logp [LISTS, K]."""
  found = np.zeros(x['logp'].shape)
  for at in np.ndindex(found.shape):
    logp = x['logp'].astype(complex)
    logp[at] += 1e-30j
    found[at] = fn(x, logp, **options).imag / 1e-30
  return found


def table():
  """The whole file as plain data."""
  found = {}
  for i, (title, (size, fn, options)) in enumerate(LOSSES.items()):
    x = inputs(size, 20 + i)
    found[title] = dict(
      inputs={k: v.tolist() for k, v in x.items()},
      options=options,
      value=float(fn(x, x['logp'], **options)),
      slope=slope(fn, x, options).tolist(),
    )
  return found


if __name__ == '__main__':
  FILE.write_text(json.dumps(table(), indent=1) + '\n')
