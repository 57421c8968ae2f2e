"""Rounds of DPO, with a step beyond each round's policy and without."""

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.models import merging

METHODS = ('pipelines.py:accelerated',)
METRICS = ('missing', 'odds')
SEEDS, ARMS, ROUNDS, ROWS = 6, 8, 12, 256
WORTH = 0.25 * jnp.arange(ARMS)
ALPHAS = (0.0, 0.3, 0.5, 0.9)


def run():
  return {f'alpha {alpha}': arm(alpha) for alpha in ALPHAS}


def arm(alpha):
  """Each round's reference is the policy that it begins with."""
  world = {'base': jnp.zeros((SEEDS, 1, ARMS))}
  ref = before = tables.begun(SEEDS, 1, ARMS)
  curves = [[told(0, ref, seed)] for seed in range(SEEDS)]
  for turn in range(ROUNDS):
    frozen = {'world': world, 'ref': ref}
    how = dict(frozen=frozen, rate=0.02, steps=150, every=150, salt=turn)
    found, _ = small.run(tables.forward, fresh, dpo(beta=1.0), {'policy': ref}, **how)
    new = found['policy']
    ref = merging.extrapolate((new, before), alpha=alpha) if turn else new
    before = new
    for seed, records in enumerate(curves):
      records.append(told(turn + 1, ref, seed))
  return curves


def fresh(state, key):
  """Pairs of the round's reference, labelled by Bradley and Terry."""
  drawn, judged = jax.random.split(key)
  y = jax.random.categorical(drawn, state.frozen['ref']['theta'][0], shape=(ROWS, 2))
  worth = WORTH[y] + jax.random.gumbel(judged, y.shape)
  y = jnp.take_along_axis(y, jnp.argsort(-worth, -1), -1)
  batch = small.stored(jnp.zeros((ROWS, 1), int), y[..., None])
  return batch, small.spent(batch)


def told(turn, tree, seed):
  """What the best arm lacks, and its log odds against the next one."""
  logp = jax.nn.log_softmax(tree['theta'][seed, 0])
  pairs = 150.0 * ROWS * turn
  counts = {'step': turn, 'rollouts': 2 * pairs, 'tokens': 2 * pairs}
  found = {'missing': 1 - jnp.exp(logp[-1]), 'odds': logp[-1] - logp[-2]}
  return counts | {k: float(x) for k, x in found.items()}


def parts(told):
  last = {arm: found['missing'] for arm, found in told.last.items()}
  return {
    'missing: alpha 0 less 0.3': last['alpha 0.0'] - last['alpha 0.3'],
    'missing: alpha 0 less 0.5': last['alpha 0.0'] - last['alpha 0.5'],
    'missing: alpha 0.3 less 0.5': last['alpha 0.3'] - last['alpha 0.5'],
  }
