"""Judges who like length: what DPO makes of it, and SimPO."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small
import tables

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.ln_dpo import ln_dpo
from jaxrl_llm.methods.r_dpo import r_dpo
from jaxrl_llm.methods.simpo import simpo

METHODS = ('simpo', 'dpo', 'ln_dpo', 'r_dpo')
METRICS = ('length', 'quality')
GOOD, BAD, STOP = range(3)
SEEDS, PAIRS, ROWS, ROOM = 6, 2000, 256, 64
START = (0.45, 0.45, 0.10)


def run():
  world = {'base': jnp.tile(jnp.log(jnp.array(START)), (SEEDS, 1, 1))}
  how = dict(rate=0.02, steps=600, every=30, measure=measure, data=pairs())
  train = functools.partial(tables.train, draw=draw, world=world, shape=(1, 3), **how)
  return {
    'DPO': train(dpo(beta=0.1)),
    'SimPO': train(simpo(beta=2.0, gamma=1.0)),
    'mean log-ratios': train(ln_dpo(beta=2.0)),
    'R-DPO': train(r_dpo(beta=0.1, alpha=0.08)),
  }


def pairs():
  """Pairs of the reference, judged by quality and length: 2 quality + .08 length."""
  rng = np.random.default_rng(0)
  shape = (SEEDS, PAIRS, 2, ROOM)
  tokens = rng.choice(3, shape, p=START)
  tokens[..., -1] = STOP
  stop = (tokens == STOP).argmax(-1)[..., None]
  tokens = np.where(np.arange(ROOM) < stop, tokens, STOP)
  good = (tokens == GOOD).sum(-1) / np.maximum(stop[..., 0], 1)
  worth = 2.0 * good + 0.08 * (stop[..., 0] + 1) + rng.gumbel(size=shape[:3])
  order = np.argsort(-worth, -1)[..., None]
  take = lambda x: jnp.asarray(np.take_along_axis(x, order, 2))
  return {'tokens': take(tokens), 'length': take(stop + 1)[..., 0]}


def draw(state, key):
  data = state.frozen['data']
  at = jax.random.randint(key, (ROWS,), 0, PAIRS)
  length = data['length'][at]
  batch = small.stored(jnp.zeros((ROWS, 1), jnp.int32), data['tokens'][at])
  mask = (jnp.arange(ROOM) < length[..., None]).astype(jnp.float32)
  return batch.replace(mask=mask, length=length), {**tables.NOTHING}


def measure(state, key):
  """Of the policy, whose tokens are independent: both in closed form."""
  del key
  p = jnp.exp(tables.policy(state)[0])
  return {'length': 1 / p[STOP], 'quality': p[GOOD] / (p[GOOD] + p[BAD])}


def parts(told):
  gap = lambda a, b, metric: told.last[a][metric] - told.last[b][metric]
  return {
    'length: DPO less SimPO': gap('DPO', 'SimPO', 'length'),
    'quality: SimPO less DPO': gap('SimPO', 'DPO', 'quality'),
    'length: DPO less R-DPO': gap('DPO', 'R-DPO', 'length'),
    'length: R-DPO less SimPO': gap('R-DPO', 'SimPO', 'length'),
    'length: mean log-ratios less SimPO': gap('mean log-ratios', 'SimPO', 'length'),
  }
