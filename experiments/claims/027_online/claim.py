"""Where the good answer is rare under the reference: whose pairs DPO learns from."""

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.dpo import dpo

METHODS = ('pipelines.py:gshf_online', 'pipelines.py:gshf_hybrid')
METRICS = ('value', 'reward', 'kl')
SEEDS, ARMS, BETA, ROUNDS, PAIRS = 8, 30, 0.3, 5, 400
WORTH = 0.25 * jnp.arange(ARMS)
BASE = jax.nn.log_softmax(-0.6 * jnp.arange(ARMS))  # The better, the rarer.


def run():
  return {
    'offline': arm(lambda key, now, turn: judged(key, BASE, BASE)),
    'online': arm(lambda key, now, turn: judged(key, now, now)),
    'hybrid': arm(lambda key, now, turn: judged(key, BASE if turn < 2 else now, BASE)),
    'best against worst of 8': arm(lambda key, now, turn: extremes(key, now)),
    'optimum': [[told(0, BASE + WORTH / BETA)] for _ in range(SEEDS)],
  }


def arm(compare):
  """In each round the policy is fitted anew to all pairs so far."""
  world = {'base': jnp.tile(BASE, (SEEDS, 1, 1))}
  theta, data = tables.begun(SEEDS, 1, ARMS), jnp.zeros((SEEDS, ROUNDS * PAIRS, 2), int)
  curves = [[told(0, BASE)] for _ in range(SEEDS)]
  for turn in range(ROUNDS):
    for seed in range(SEEDS):
      now = jax.nn.log_softmax(BASE + theta['theta'][seed, 0])
      key = jax.random.fold_in(jax.random.key(seed), turn)
      fresh = compare(key, now, turn)
      data = data.at[seed, turn * PAIRS : (turn + 1) * PAIRS].set(fresh)
    ref = tables.begun(SEEDS, 1, ARMS)
    frozen = {'world': world, 'ref': ref, 'data': data}
    start = {'policy': tables.begun(SEEDS, 1, ARMS)}
    how = dict(frozen=frozen, rate=0.02, steps=800, every=800)
    found, _ = small.run(tables.forward, stored, dpo(beta=BETA), start, **how)
    theta = found['policy']
    for seed, records in enumerate(curves):
      records.append(told(turn + 1, BASE + theta['theta'][seed, 0]))
  return curves


def judged(key, first, second):
  """A pair from two policies, the better one first as Bradley and Terry have it; two
  that are the same teach nothing.
  """
  keys = jax.random.split(key, 3)
  y = [
    jax.random.categorical(k, p, shape=(PAIRS,)) for k, p in zip(keys, (first, second))
  ]
  wins = jax.random.uniform(keys[2], (PAIRS,)) < jax.nn.sigmoid(
    WORTH[y[0]] - WORTH[y[1]]
  )
  return jnp.stack([jnp.where(wins, *y), jnp.where(wins, *y[::-1])], -1)


def extremes(key, policy, n=8):
  """The best and the worst of n, without noise: arms are in order of worth."""
  y = jax.random.categorical(key, policy, shape=(PAIRS, n))
  return jnp.stack([y.max(-1), y.min(-1)], -1)


def stored(state, key):
  del key
  y = state.frozen['data'][..., None]
  return small.stored(jnp.zeros((len(y), 1), int), y), {**tables.NOTHING}


def told(turn, logits):
  logp = jax.nn.log_softmax(logits)
  reward, kl = jnp.exp(logp) @ WORTH, tables.kl(logp, BASE)
  counts = {'step': turn, 'rollouts': 2.0 * turn * PAIRS, 'tokens': 2.0 * turn * PAIRS}
  found = {'value': reward - BETA * kl, 'reward': reward, 'kl': kl}
  return counts | {k: float(x) for k, x in found.items()}


def parts(told):
  last = told.last
  less = lambda arm, metric: last[arm][metric] - last['offline'][metric]
  return {
    'value: online less offline': less('online', 'value'),
    'reward: online less offline': less('online', 'reward'),
    'value: hybrid less offline': less('hybrid', 'value'),
    'reward: hybrid less offline': less('hybrid', 'reward'),
  }
