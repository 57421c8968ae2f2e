"""Best of n by one reward model and by five, where a quarter of the labels lie."""

import jax
import jax.numpy as jnp
import numpy as np
import small
import vectors

from jaxrl_llm.evaluate import best_of_n
from jaxrl_llm.methods.ensemble import ensemble
from jaxrl_llm.ops import ensembles, mlp

METHODS = ('ensemble',)
METRICS = ('gold', 'proxy')
SEEDS, STEPS, PAIRS, SIZE, MEMBERS = 24, 400, 2000, 8, 5
PROMPTS, ANSWERS = 32, 4096
JOIN = {
  'one model': lambda score: score[..., 0],
  'mean of five': ensembles.mean,
  'worst of five': ensembles.worst,
  'mean less half the variance': ensembles.cautious,
}


def run():
  truth = vectors.born(SEEDS, SIZE, 32, 1)
  data = jax.vmap(labelled)(jnp.arange(SEEDS), truth)
  start = {'ensemble': vectors.born(SEEDS, SIZE, 64, 1, members=MEMBERS)}
  method = ensemble(members=MEMBERS, l2=0.001, bootstrap=False)
  how = dict(frozen={'data': data}, rate=3e-3, steps=STEPS, every=STEPS)
  models, _ = small.run(vectors.forward, some, method, start, **how)
  each_seed = (jnp.arange(SEEDS), truth, models['ensemble'])
  scored = jax.jit(lambda: jax.lax.map(lambda x: scores(*x), each_seed))()
  gold, each = map(np.asarray, scored)
  return {arm: curves(gold, np.asarray(join(each))) for arm, join in JOIN.items()}


def gold(truth, x):
  return mlp.apply(truth, x, jnp.tanh)[..., 0]


def labelled(seed, truth):
  """Pairs by gold, a quarter of them turned round."""
  one, two = jax.random.split(jax.random.key(seed + 500))
  x = jax.random.normal(one, (PAIRS, 2, SIZE))
  return vectors.judged(two, x, 1e4 * gold(truth, x), flipped=0.25)


def some(state, key):
  rows = jax.random.randint(key, (100,), 0, PAIRS)
  none = {'rollouts': 0.0, 'tokens': 0.0}
  return vectors.compared(state.frozen['data'][rows]), none


def scores(seed, truth, models):
  """Of fresh answers, gold and what every model says, each standardised."""
  x = jax.random.normal(jax.random.key(seed + 900), (PROMPTS, ANSWERS, SIZE))
  standard = lambda s: (s - s.mean((0, 1))) / s.std((0, 1))
  return standard(gold(truth, x)), standard(vectors.each(models, x))


def curves(gold, proxy):
  """Of each seed, best of n exactly, mean over prompts."""
  order = np.argsort(proxy, -1)
  rising = lambda x: np.take_along_axis(x, order, -1).mean(1)
  tables = {'gold': rising(gold), 'proxy': rising(proxy)}
  best = lambda x, n: best_of_n.expected(np.arange(ANSWERS), x, n)
  return [
    [
      {'step': n, 'rollouts': float(n), 'tokens': 0.0}
      | {name: best(x[seed], n) for name, x in tables.items()}
      for n in [4**i for i in range(7)]
    ]
    for seed in range(SEEDS)
  ]


def parts(told):
  last = {arm: found['gold'] for arm, found in told.last.items()}
  return {
    f'gold at n = {ANSWERS}: {arm} less one model': last[arm] - last['one model']
    for arm in list(JOIN)[1:]
  }
