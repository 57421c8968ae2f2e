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
SEEDS, ROUNDS, EVERY, NOISE = 6, 600, 100, 0.3
COUNTS = {'equal': (8, 8, 8, 8), 'unequal': (16, 8, 4, 4)}
MOVED = jax.jit(allocation.moved, static_argnames=('ema',))
LOGP = jax.jit(allocation.arm_logp, static_argnames=('eta', 'gamma'))


def run():
  found = {}
  for shares, counts in COUNTS.items():
    found[f'uniform, {shares} shares'] = [uniform(np.array(counts))] * SEEDS
    found[f'GDRO, {shares} shares'] = [
      rounds(np.array(counts), seed) for seed in range(SEEDS)
    ]
  return found


def rounds(counts, seed):
  """The loss of n completions in bin b is v_b / n and noise; the paper's sign."""
  rng, score = np.random.default_rng(seed), jnp.zeros((len(V), len(ARMS)))
  records, chosen = [seen(counts, [np.full(len(V), MEAN)], 0)], []
  for i in range(1, ROUNDS + 1):
    logp = np.asarray(LOGP(score, eta=0.65, gamma=0.01))
    n = ARMS[allocation.choose(counts, logp, ARMS, MEAN)]
    loss = V / n + NOISE * rng.normal(size=len(V))
    told = (jnp.asarray(x, jnp.float32) for x in (loss, n, ARMS))
    score = MOVED(score, *told, 0.0, ema=0.4)
    chosen.append(n)
    if i % EVERY == 0:
      records.append(seen(counts, chosen[-EVERY:], i))
  return records


def uniform(counts):
  return [seen(counts, [np.full(len(V), MEAN)], i) for i in range(0, ROUNDS + 1, EVERY)]


def seen(counts, chosen, step):
  """How far the rounds' mean is from the square-root law; from the law of a sum that
  forgets shares, sqrt(v / share); how far any round is from its budget; and
  WSE = sum_b share_b sqrt(v_b / n_b).
  """
  share, n = counts / counts.sum(), np.mean(chosen, 0)
  law = allocation.square_root(V, share, MEAN)
  free = allocation.square_root(V / share, share, MEAN)
  off = lambda due: float(np.abs(n - due).mean())
  return {
    'step': step,
    'rollouts': float(step * counts.sum() * MEAN),
    'tokens': 0.0,
    'off': off(law),
    'off_free': off(free),
    'overspent': float(max(abs(counts @ x - MEAN * counts.sum()) for x in chosen)),
    'wse': float(np.mean([share @ np.sqrt(V / x) for x in chosen])),
  }


def parts(told):
  last = told.last
  near = lambda shares: (
    0.5 * last[f'uniform, {shares} shares']['off']
    - last[f'GDRO, {shares} shares']['off']
  )
  mean = [told.mean[f'GDRO, {s} shares']['overspent'] for s in COUNTS]
  wse = {k: x['wse'] for k, x in last.items()}
  return {
    'equal shares: half the distance of uniform from the law, less that of GDRO': near(
      'equal'
    ),
    'unequal shares: half that distance less that of GDRO': near('unequal'),
    'half a completion less what any round overspends': 0.5 - np.maximum(*mean),
    'equal shares: WSE of uniform less that of GDRO': wse['uniform, equal shares']
    - wse['GDRO, equal shares'],
    'unequal shares: the same': wse['uniform, unequal shares']
    - wse['GDRO, unequal shares'],
  }
