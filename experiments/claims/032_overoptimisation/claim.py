"""Gold against the root of KL, by proxies of few comparisons and of many."""

import jax
import jax.numpy as jnp
import numpy as np
import small
import tables
import vectors

from jaxrl_llm.evaluate import best_of_n
from jaxrl_llm.methods.bradley_terry import bradley_terry
from jaxrl_llm.methods.rloo import rloo

METHODS = ('bradley_terry',)
METRICS = ('gold', 'best', 'proxy', 'd', 'alpha', 'beta', 'r2')
SEEDS, ANSWERS, SIZE, STEPS = 8, 4096, 6, 400
COUNTS = {'few': 200, 'many': 5000}


def run():
  world = made()
  found = {}
  for name, count in COUNTS.items():
    proxy = standard(learned(world, count))
    told = world | {'proxy': proxy}
    found[f'best of n, {name}'] = fitted(best(told), 'best_of_n')
    draw, how = asked, dict(rate=0.01, steps=STEPS, every=10, measure=measure)
    size = told['features'].shape[-1:]
    found[f'RL, {name}'] = fitted(
      tables.train(rloo(beta=0.0), draw, told, size, **how), 'rl'
    )
  return found


def made():
  """Answers of one prompt, all as likely: gold rises in length, and then falls."""
  rng = np.random.default_rng(0)
  shape = (SEEDS, ANSWERS)
  content, w = rng.normal(size=(*shape, SIZE)), rng.normal(size=(SEEDS, 1, SIZE))
  length = 0.6 * rng.standard_t(4, size=shape)
  gold = (content * w).sum(-1) / SIZE**0.5 + 0.8 * length - 0.25 * length**2
  x = np.concatenate([content, length[..., None]], -1)
  turn = rng.normal(size=(SEEDS, SIZE + 1, 24)) / (SIZE + 1) ** 0.5
  features = np.concatenate([x, np.tanh(x @ turn)], -1)
  base = np.full((SEEDS, 1, ANSWERS), -np.log(ANSWERS))
  found = dict(base=base, features=features[:, None], x=x, gold=standard(gold))
  return {k: jnp.asarray(v, jnp.float32) for k, v in found.items()}


def standard(x):
  return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def learned(world, count):
  """Scores of all answers by a model of so many comparisons, labelled by gold."""

  def pairs(state, key):
    # The data are `count` pairs that the seed draws, of which an update sees some.
    drawn, some = jax.random.fold_in(state.key, 7), state.frozen
    y = jax.random.randint(drawn, (count, 2), 0, ANSWERS)
    y = y[jax.random.randint(key, (100,), 0, count)]
    y = jnp.take_along_axis(y, jnp.argsort(-some['gold'][y], -1), -1)
    return vectors.compared(some['x'][y]), dict(tables.NOTHING)

  start = {'reward': vectors.born(SEEDS, SIZE + 1, 64, 1)}
  frozen = {'x': world['x'], 'gold': world['gold']}
  how = dict(frozen=frozen, steps=600, every=600)
  model, _ = small.run(vectors.forward, pairs, bradley_terry(l2=0.001), start, **how)
  return jax.vmap(vectors.say)(model['reward'], world['x'])[..., 0]


def asked(state, key):
  """Groups of four of the policy, scored by the proxy."""
  y = jax.random.categorical(key, tables.policy(state)[0], shape=(32, 4))
  batch = small.stored(jnp.zeros((32, 1), int), y[..., None])
  return batch.replace(reward=state.frozen['world']['proxy'][y]), small.spent(batch)


def measure(state, key):
  del key
  world, logp = state.frozen['world'], tables.policy(state)
  mean = lambda name: jnp.sum(jnp.exp(logp[0]) * world[name])
  kl = jnp.maximum(tables.kl(logp, world['base']), 0.0)
  return {'gold': mean('gold'), 'proxy': mean('proxy'), 'd': jnp.sqrt(kl)}


def best(world):
  """Of each seed, best of n exactly."""
  record = lambda gold, proxy, n: {
    'step': n,
    'rollouts': float(n),
    'tokens': float(n),
    'gold': best_of_n.expected(proxy, gold, n),
    'proxy': best_of_n.expected(proxy, proxy, n),
    'd': best_of_n.kl(n) ** 0.5,
  }
  rows = zip(np.asarray(world['gold']), np.asarray(world['proxy']))
  return [[record(*row, n) for n in [2**i for i in range(12)]] for row in rows]


def fitted(curves, law):
  """Records with the best gold so far, and the law's fit to all of the curve."""
  for records in curves:
    d, gold = (np.array([r[k] for r in records[1:]]) for k in ('d', 'gold'))
    alpha, beta = best_of_n.fit(d, gold, law=law)
    said = d * (alpha - beta * (d if law == 'best_of_n' else np.log(d)))
    r2 = 1 - np.square(gold - said).sum() / np.square(gold - gold.mean()).sum()
    top = -np.inf
    for r in records:
      top = max(top, r['gold'])
      r |= {'best': top, 'alpha': alpha, 'beta': beta, 'r2': r2}
  return curves


def parts(told):
  last = told.last
  return {
    'R^2 of d (alpha - beta d) less 0.9, best of n': last['best of n, few']['r2'] - 0.9,
    'R^2 of d (alpha - beta log d) less 0.9, RL': last['RL, few']['r2'] - 0.9,
    'gold lost since its best, RL, few': last['RL, few']['best']
    - last['RL, few']['gold'],
    'gold at the end, best of n: many less few': last['best of n, many']['gold']
    - last['best of n, few']['gold'],
    'gold at the end, RL: many less few': last['RL, many']['gold']
    - last['RL, few']['gold'],
    'd at the end: RL less best of n, few': last['RL, few']['d']
    - last['best of n, few']['d'],
  }
