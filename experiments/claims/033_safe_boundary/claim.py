"""Five hundred policies with a cost that is told with noise: who keeps the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import small
from scipy import stats

from jaxrl_llm.evaluate import safety
from jaxrl_llm.methods.hc_rlhf import hc_rlhf
from jaxrl_llm.methods.safe_rlhf import safe_rlhf

METHODS = ('safe_rlhf', 'hc_rlhf')
METRICS = ('violates', 'returned', 'returned and violates', 'cost', 'reward')
NET = small.Net(vocab=8, prompt=1, length=1, width=8)
COST = jnp.linspace(-1.0, 1.0, 8)  # In the mean, of each action.
REWARD = 1 - jnp.square((1 - COST) / 2)
SEEDS, STEPS, DELTA, TESTED = 500, 1000, 0.1, 1000


def run():
  roles = ('policy', 'critic', 'cost_critic')
  start = small.born(NET, SEEDS, roles)
  lagrangian = safe_rlhf(rate=0.1)
  bounded = hc_rlhf(rate=0.1, delta=DELTA, safety_size=TESTED)
  return {
    'Safe-RLHF': trained(lagrangian, start),
    'HC-RLHF': trained(bounded, {'policy': start['policy']}),
  }


def trained(method, start):
  """The last record of each seed, with what the safety test says."""
  how = dict(
    frozen={'ref': start['policy']},
    rate=0.01,
    steps=STEPS,
    every=STEPS,
    measure=measure,
  )
  params, curves = small.run(NET, draw, method, start, **how)
  costs = jax.jit(jax.vmap(fresh))(jnp.arange(SEEDS), params['policy'])
  safe = safety.is_safe(np.asarray(costs), threshold=0.0, delta=DELTA)
  return [[told(records[-1], s)] for records, s in zip(curves, safe)]


def told(record, safe):
  violates = float(record['cost'] > 0)
  share = {'violates': violates, 'returned': float(safe)}
  return record | share | {'returned and violates': violates * safe}


def questions(key, n):
  return jnp.zeros((n, 1), int)


def noisy(key, batch):
  """Costs as they are told: [B, G]."""
  return COST[batch.completions[..., 0]] + jax.random.normal(key, batch.length.shape)


def draw(state, key):
  score = lambda batch: REWARD[batch.completions[..., 0]]
  batch, took = small.fresh(NET, questions, score, 4, 16)(state, key)
  cost = noisy(jax.random.fold_in(key, 1), batch)
  return batch.replace(extra={'cost': cost}), took


def fresh(seed, policy):
  """Costs of the safety test, which nothing has been trained on."""
  one, two = jax.random.split(jax.random.key(seed + 10**6))
  batch = small.sample(NET, policy, one, questions(one, TESTED), 1)
  return noisy(two, batch)[:, 0]


def measure(state, key):
  """Exactly: of the policy's own probabilities."""
  del key
  tokens = jnp.full((1, 1, 1, 1), NET.vocab)
  logits = small.say(
    NET, state.params['policy'], jnp.zeros((1, 1, 1), int), tokens, jnp.arange(1)
  )
  p = jax.nn.softmax(logits.ravel())
  return {'cost': p @ COST, 'reward': p @ REWARD}


def parts(told):
  safe, bounded = (told.last[arm] for arm in ('Safe-RLHF', 'HC-RLHF'))
  kept = bounded['returned and violates']
  least = stats.binomtest(int(kept.sum()), len(kept), DELTA, 'greater').pvalue
  return {
    'Safe-RLHF: share that violates, less 0.4': safe['violates'] - 0.4,
    'Safe-RLHF: 0.6 less that share': 0.6 - safe['violates'],
    'HC-RLHF: p of the binomial test, less 0.01': np.full(len(kept), least - 0.01),
    'share that violates: Safe-RLHF less what HC-RLHF returns': safe['violates'] - kept,
    'HC-RLHF: share that is returned, less 0.5': bounded['returned'] - 0.5,
  }
