"""Macro actions of five tokens against single tokens, and how much of it is lambda."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm.methods.ma_rlhf import ma_rlhf

METHODS = ('ma_rlhf',)
METRICS = ('gold', 'early', 'late')
NET = small.Net(vocab=4, prompt=1, length=64, width=32)
TARGET = jnp.asarray(np.random.default_rng(0).integers(0, 4, (4, NET.length)))
SEEDS, STEPS, EVERY = 6, 170, 10
SOONER = 100  # STEPS / 1.7.


def run():
  start = small.born(NET, SEEDS, ('policy', 'critic'))
  how = dict(steps=STEPS, every=EVERY, rate=2e-3, minibatches=4, measure=measure)
  draw = small.fresh(NET, questions, gold, 16, 4)
  train = lambda method: small.run(NET, draw, method, start, **how)[1]
  arm = lambda **given: train(ma_rlhf(beta=0.0, **given))
  found = {
    'n=1, which is PPO': arm(n=1),
    'n=5': arm(n=5),
    'n=1, lam 1': arm(n=1, lam=1.0),
    'n=5, lam 1': arm(n=5, lam=1.0),
    'n=3': arm(n=3),
    'n=64': arm(n=64),
  }
  sooner = [records[: SOONER // EVERY + 1] for records in found['n=5']]
  return found | {'n=5, 1 / 1.7 of the completions': sooner}


def right(batch):
  """Which tokens are as wished, [B, G, T]."""
  return batch.completions == TARGET[batch.prompts[:, 0]][:, None]


def gold(batch):
  return right(batch).mean(-1)


def questions(key, n):
  return jax.random.randint(key, (n, 1), 0, NET.vocab)


def measure(state, key):
  """The reward, and the same of the first and the last quarter of the tokens."""
  batch = small.sample(NET, state.params['policy'], key, questions(key, 64), 4)
  each = right(batch).mean((0, 1))
  quarter = NET.length // 4
  ends = {'early': each[:quarter].mean(), 'late': each[-quarter:].mean()}
  return {'gold': each.mean()} | ends


def parts(told):
  mean = {k: x['gold'] for k, x in told.mean.items()}
  last = {k: x['gold'] for k, x in told.last.items()}
  gap = mean['n=5'] - mean['n=1, which is PPO']
  control = mean['n=5, lam 1'] - mean['n=1, lam 1']
  sooner = last['n=5, 1 / 1.7 of the completions'] - last['n=1, which is PPO']
  return {
    'over the run, reward of n=5 less that of n=1': gap,
    'reward of n=5 at 1 / 1.7 of the completions, less n=1 at all': sooner,
    'half of the gap over the run, less the gap at lam 1': 0.5 * gap - np.abs(control),
  }
