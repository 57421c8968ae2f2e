"""Rollout-GDRO's allocation in a bandit whose variances are known."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import allocation

METHODS = ('rollout_gdro',)
METRICS = ('off', 'off_free', 'overspent', 'wse')
MEAN, ARMS = 4, np.arange(2, 9)
LAW = np.array([2.0, 3.0, 5.0, 6.0])  # sqrt(v), in units that make the law whole.
V = np.square(LAW)
ALONE = np.square([0.1, 0.1, 0.1, 6.0])  # One bin has nearly all of it.
SEEDS, ROUNDS, EVERY, NOISE = 6, 600, 100, 0.3
CASES = {
  'equal shares': ((8, 8, 8, 8), V),
  'unequal shares': ((16, 8, 4, 4), V),
  'one bin': ((8, 8, 8, 8), ALONE),
}
MOVED = jax.jit(allocation.moved, static_argnames=('ema',))
LOGP = jax.jit(allocation.arm_logp, static_argnames=('eta', 'gamma'))


def run():
  found = {}
  for case, (counts, v) in CASES.items():
    counts = np.array(counts)
    found[f'uniform, {case}'] = [uniform(counts, v)] * SEEDS
    found[f'GDRO, {case}'] = [rounds(counts, v, seed) for seed in range(SEEDS)]
  return found


def rounds(counts, v, seed):
  """The loss of n completions in bin b is v_b / n and noise; the paper's sign."""
  rng, score = np.random.default_rng(seed), jnp.zeros((len(V), len(ARMS)))
  records, chosen = [seen(counts, [np.full(len(v), MEAN)], 0, v)], []
  for i in range(1, ROUNDS + 1):
    logp = np.asarray(LOGP(score, eta=0.65, gamma=0.01))
    n = ARMS[allocation.choose(counts, logp, ARMS, MEAN)]
    loss = v / n + NOISE * rng.normal(size=len(v))
    told = (jnp.asarray(x, jnp.float32) for x in (loss, n, ARMS))
    score = MOVED(score, *told, 0.0, ema=0.4)
    chosen.append(n)
    if i % EVERY == 0:
      records.append(seen(counts, chosen[-EVERY:], i, v))
  return records


def uniform(counts, v):
  same = [np.full(len(v), MEAN)]
  return [seen(counts, same, i, v) for i in range(0, ROUNDS + 1, EVERY)]


def seen(counts, chosen, step, v):
  """How far the rounds' mean is from the square-root law; from the law of a sum that
  forgets shares, sqrt(v / share); how far any round is from its budget; and
  WSE = sum_b share_b sqrt(v_b / n_b).
  """
  share, n = counts / counts.sum(), np.mean(chosen, 0)
  law = allocation.square_root(v, share, MEAN)
  free = allocation.square_root(v / share, share, MEAN)
  off = lambda due: float(np.abs(n - due).mean())
  return {
    'step': step,
    'rollouts': float(step * counts.sum() * MEAN),
    'tokens': 0.0,
    'off': off(law),
    'off_free': off(free),
    'overspent': float(max(abs(counts @ x - MEAN * counts.sum()) for x in chosen)),
    'wse': float(np.mean([share @ np.sqrt(v / x) for x in chosen])),
  }


def parts(told):
  last = told.last
  near = lambda shares: (
    0.5 * last[f'uniform, {shares}']['off'] - last[f'GDRO, {shares}']['off']
  )
  mean = [told.mean[f'GDRO, {case}']['overspent'] for case in CASES]
  wse = {k: x['wse'] for k, x in last.items()}
  return {
    'equal shares: half the distance of uniform from the law, less that of GDRO': near(
      'equal shares'
    ),
    'unequal shares: half that distance less that of GDRO': near('unequal shares'),
    'half a completion less what any round overspends': 0.5 - np.max(mean, 0),
    'equal shares: WSE of uniform less that of GDRO': wse['uniform, equal shares']
    - wse['GDRO, equal shares'],
    'unequal shares: the same': wse['uniform, unequal shares']
    - wse['GDRO, unequal shares'],
    'one bin: 0.8 of the WSE of uniform less that of GDRO': 0.8
    * wse['uniform, one bin']
    - wse['GDRO, one bin'],
  }
