"""Writes preference_golden.json: values and slopes of preference losses, by NumPy.

One pair for losses of pairs, and small lists and batches for the others; in float64,
from the formulas of the papers, by nothing of the package. Slopes are with respect to
the log-probs of the chosen and the rejected completion, in closed form; main() compares
each with a difference quotient. Run: python tests/oracles/preference_golden.py
"""

import functools
import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.json')
PAIR = dict(logp=[-12.3, -15.1], ref=[-13.0, -14.7], length=[8, 10])
LIST = dict(rho=[0.7, -0.4, 0.1], reward=[1.2, 0.3, -0.5])
LABELS = dict(good=[0.7, 0.2, -0.3, 1.0], bad=[-0.4, 0.5, -0.6, 0.1], z0=0.175)
BAGS = dict(
  logp=[[-12.3, -15.1], [-9.0, -8.0], [-20.0, -22.0]],
  ref=[[-13.0, -14.7], [-9.4, -8.6], [-19.5, -21.0]],
)

sigmoid = lambda x: 1 / (1 + np.exp(-x))
logistic = lambda u: np.logaddexp(0.0, -u)
bell = lambda u: sigmoid(u) * sigmoid(-u)
log_softmax = lambda x: x - np.log(np.exp(x).sum())
both = lambda slope: (slope, -slope)
LENGTH = np.array(PAIR['length'], float)


# ---- Pairs: (l, rho) to value and slopes, l = log pi, rho = log pi / ref -------------


def dpo(l, rho, beta):
  u = beta * (rho[0] - rho[1])
  return logistic(u), both(-beta * sigmoid(-u))


def cdpo(l, rho, beta, flipped):
  u = beta * (rho[0] - rho[1])
  value = (1 - flipped) * logistic(u) + flipped * logistic(-u)
  return value, both(-beta * (1 - flipped - sigmoid(u)))


def robust_dpo(l, rho, beta, flipped):
  u = beta * (rho[0] - rho[1])
  value = (1 - flipped) * logistic(u) - flipped * logistic(-u)
  slope = (1 - flipped) * sigmoid(-u) + flipped * sigmoid(u)
  return value / (1 - 2 * flipped), both(-beta * slope / (1 - 2 * flipped))


def ipo(l, rho, tau, average):
  n = LENGTH if average else np.ones(2)
  gap = rho[0] / n[0] - rho[1] / n[1] - 1 / (2 * tau)
  return gap**2, (2 * gap / n[0], -2 * gap / n[1])


def hinge(l, rho, beta):
  u = beta * (rho[0] - rho[1])
  return max(0.0, 1 - u), both(-beta * (u < 1))


def exo(l, rho, beta, flipped):
  u = beta * (rho[0] - rho[1])
  value = sigmoid(u) * (-logistic(u) - np.log(1 - flipped))
  value += sigmoid(-u) * (-logistic(-u) - np.log(flipped))
  return value, both(beta * bell(u) * (u - np.log((1 - flipped) / flipped)))


def nca(l, rho, beta):
  r = beta * rho
  value = logistic(r[0]) + logistic(-r[0]) / 2 + logistic(-r[1]) / 2
  return value, (-beta * (1 - 1.5 * sigmoid(r[0])), beta * sigmoid(r[1]) / 2)


def bco(l, rho, beta, delta):
  r = beta * rho - delta
  value = logistic(r[0]) + logistic(-r[1])
  return value, (-beta * sigmoid(-r[0]), beta * sigmoid(r[1]))


def apo_zero(l, rho, beta):
  r = beta * rho
  return 1 - sigmoid(r[0]) + sigmoid(r[1]), (-beta * bell(r[0]), beta * bell(r[1]))


def apo_down(l, rho, beta):
  r = beta * rho
  u = r[0] - r[1]
  slopes = (beta * (bell(r[0]) - bell(u)), beta * bell(u))
  return sigmoid(r[0]) + 1 - sigmoid(u), slopes


def discopop(l, rho, beta, tau):
  u = beta * (rho[0] - rho[1])
  s = sigmoid(u / tau)
  slope = s * (1 - s) / tau * (np.exp(-u) - logistic(u))
  slope -= (1 - s) * sigmoid(-u) + s * np.exp(-u)
  return (1 - s) * logistic(u) + s * np.exp(-u), both(beta * slope)


def dpo_positive(l, rho, beta, lam):
  u = beta * (rho[0] - lam * max(0.0, -rho[0]) - rho[1])
  slope = beta * sigmoid(-u)
  return logistic(u), (-slope * (1 + lam * (rho[0] < 0)), slope)


def r_dpo(l, rho, beta, alpha):
  u = beta * (rho[0] - rho[1]) + alpha * (LENGTH[0] - LENGTH[1])
  return logistic(u), both(-beta * sigmoid(-u))


def ln_dpo(l, rho, beta):
  u = beta * (rho[0] / LENGTH[0] - rho[1] / LENGTH[1])
  slope = beta * sigmoid(-u)
  return logistic(u), (-slope / LENGTH[0], slope / LENGTH[1])


def wpo(l, rho, beta, collision):
  """`collision`: sum_t log sum_v p_v^2 of each completion, without slope."""
  value, slopes = dpo(l, rho, beta)
  w = np.exp(((np.array(PAIR['logp']) - collision) / LENGTH).sum())
  return w * value, tuple(w * s for s in slopes)


def kto(l, rho, beta, z0, label):
  side = 0 if label > 0 else 1
  s = sigmoid(label * beta * (rho[side] - z0))
  slopes = [0.0, 0.0]
  slopes[side] = -label * beta * s * (1 - s)
  return 1 - s, tuple(slopes)


def simpo(l, rho, beta, gamma):
  u = beta * (l[0] / LENGTH[0] - l[1] / LENGTH[1]) - gamma
  slope = beta * sigmoid(-u)
  return logistic(u), (-slope / LENGTH[0], slope / LENGTH[1])


def cpo(l, rho, beta, alpha):
  u = beta * (l[0] - l[1])
  slope = beta * sigmoid(-u)
  value = logistic(u) - alpha * l[0] / LENGTH[0]
  return value, (-slope - alpha / LENGTH[0], slope)


def slic(l, rho, delta, lam):
  short = delta - l[0] + l[1]
  slope = float(short > 0)
  return max(0.0, short) - lam * l[0], (-slope - lam, slope)


def orpo(l, rho, lam):
  mean = l / LENGTH
  rest = 1 - np.exp(mean)
  odds = mean - np.log(rest)
  o = odds[0] - odds[1]
  slope = lam * sigmoid(-o)
  chosen = (-1 - slope / rest[0]) / LENGTH[0]
  return -mean[0] + lam * logistic(o), (chosen, slope / rest[1] / LENGTH[1])


LINKS = {
  'reverse_kl': (lambda x: x, lambda x: 1.0),
  'forward_kl': (lambda x: -np.exp(-x), lambda x: np.exp(-x)),
  'jensen_shannon': (lambda x: -np.log((1 + np.exp(-x)) / 2), lambda x: sigmoid(-x)),
  'alpha(alpha=0.3)': (
    lambda x: (1 - np.exp(-0.3 * x)) / 0.3,
    lambda x: np.exp(-0.3 * x),
  ),
}


def f_dpo(l, rho, beta, link):
  of, slope_of = LINKS[link]
  v = beta * (of(rho[0]) - of(rho[1]))
  slope = beta * sigmoid(-v)
  return logistic(v), (-slope * slope_of(rho[0]), slope * slope_of(rho[1]))


# Numbers that a loss is given beside the log-probs.
GIVEN = ('delta', 'z0', 'label', 'collision')
# Title: the formula and its numbers; the package's method and options, where other.
PAIRS = {
  'dpo': (dpo, dict(beta=0.1)),
  'cdpo': (cdpo, dict(beta=0.1, flipped=0.2)),
  'robust_dpo': (robust_dpo, dict(beta=0.1, flipped=0.2)),
  'ipo, summed': (ipo, dict(tau=0.1, average=False)),
  'ipo': (ipo, dict(tau=0.1, average=True)),
  'hinge': (hinge, dict(beta=0.1), 'dpo', dict(beta=0.1, loss='hinge')),
  'exo': (exo, dict(beta=0.1, flipped=1e-3)),
  'nca': (nca, dict(beta=0.01)),
  'bco': (bco, dict(beta=0.1, delta=0.03), 'bco', dict(beta=0.1)),
  'apo_zero': (apo_zero, dict(beta=0.1)),
  'apo_down': (apo_down, dict(beta=0.1)),
  'discopop': (discopop, dict(beta=0.05, tau=0.05)),
  'dpo_positive': (dpo_positive, dict(beta=0.3, lam=50.0)),
  'r_dpo': (r_dpo, dict(beta=0.1, alpha=0.01)),
  'ln_dpo': (ln_dpo, dict(beta=5.0)),
  'wpo': (wpo, dict(beta=0.1, collision=[-9.6, -16.0]), 'wpo', dict(beta=0.1)),
  'kto, good': (kto, dict(beta=0.1, z0=0.2, label=1), 'kto', dict(beta=0.1)),
  'kto, bad': (kto, dict(beta=0.1, z0=0.2, label=-1), 'kto', dict(beta=0.1)),
  'simpo': (simpo, dict(beta=2.0, gamma=1.6)),
  'cpo': (cpo, dict(beta=0.1, alpha=1.0)),
  'slic, apart': (slic, dict(delta=1.0, lam=0.0)),
  'slic': (slic, dict(delta=5.0, lam=0.0)),
  'slic, imitating': (slic, dict(delta=5.0, lam=0.1)),
  'orpo': (orpo, dict(lam=0.1)),
  **{f'f_dpo, {link}': (f_dpo, dict(beta=0.1, link=link)) for link in LINKS},
}


def pair_row(title):
  fn, numbers, *given = PAIRS[title]
  l = np.array(PAIR['logp'])
  value, slope = fn(l, l - PAIR['ref'], **numbers)
  method, options = given or (title.split(',')[0], numbers)
  known = {k: v for k, v in numbers.items() if k in GIVEN}
  row = dict(method=method, options=options, known=known)
  return row | dict(value=float(value), slope=[float(s) for s in slope])


def quotient(title):
  """The slopes by central differences."""
  fn, numbers = PAIRS[title][:2]
  ref, found = np.array(PAIR['ref']), []
  for side in np.eye(2):
    at = lambda h: fn(*(lambda l: (l, l - ref))(PAIR['logp'] + h * side), **numbers)[0]
    found.append((at(1e-5) - at(-1e-5)) / 2e-5)
  return found


# ---- Lists and batches ---------------------------------------------------------------


def lists(beta=0.1, temperature=0.5):
  r, goal = beta * np.array(LIST['rho']), np.array(LIST['reward']) / temperature
  goal, q = log_softmax(goal), log_softmax(r)
  p = np.exp(goal)
  found = dict(
    infonca=-(p * q).sum(),
    nca=(p * logistic(r) + logistic(-r) / 3).sum(),
    exo=(np.exp(q) * (q - goal)).sum(),
  )
  return {
    name: dict(options=dict(beta=beta, temperature=temperature), value=float(value))
    for name, value in found.items()
  }


def batches(beta=0.1):
  good, bad = np.array(LABELS['good']), np.array(LABELS['bad'])
  signed = np.r_[good - LABELS['z0'], LABELS['z0'] - bad]
  logp, ref = np.array(BAGS['logp']), np.array(BAGS['ref'])
  rho, up = logp - ref, functools.partial(np.sort, axis=0)
  margins = up(logp[:, 0] - logp[:, 1]) - up(ref[:, 0] - ref[:, 1])
  apart = up(rho[:, 0]) - up(rho[:, 1])
  return dict(
    kto=float(np.mean(1 - sigmoid(beta * signed))),
    bco_delta=float(beta * (good.mean() + bad.mean()) / 2),
    aot=float(logistic(beta * margins).mean()),
    aot_unpaired=float(logistic(beta * apart).mean()),
  )


def table():
  """The whole file as plain data."""
  inputs = dict(pair=PAIR, list=LIST, labels=LABELS, bags=BAGS)
  pairs = {title: pair_row(title) for title in PAIRS}
  return dict(inputs=inputs, pairs=pairs, lists=lists(), batches=batches())


def main():
  for title in PAIRS:
    np.testing.assert_allclose(pair_row(title)['slope'], quotient(title), atol=1e-8)
  FILE.write_text(json.dumps(table(), indent=1) + '\n')


if __name__ == '__main__':
  main()
