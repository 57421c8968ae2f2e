"""One side of every pair, chosen at random, is enough for KTO; and what DPO has."""

import functools

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.kto import kto

METHODS = ('kto',)
METRICS = ('best', 'gain', 'kl')
SEEDS, PAIRS, BOUND = 8, 1500, 1.0


def run():
  world = tables.linear(SEEDS)
  data = tables.ranked(world, PAIRS, 2)
  half = {k: x[:, : PAIRS // 2] for k, x in data.items()}
  how = dict(rate=0.004, steps=1000, every=5, measure=tables.gain)

  def train(method, draw, data):
    shape = dict(world=world, shape=(6,))
    curves = tables.train(method, draw, data=data, **shape, **how)
    return tables.within(curves, BOUND, 10)

  return {
    'DPO': train(dpo(), tables.all_of, data),
    'DPO, half of the pairs': train(dpo(), tables.all_of, half),
    'KTO, both sides': train(kto(), functools.partial(rows, both=True), data),
    'KTO, one side': train(kto(), functools.partial(rows, both=False), data),
  }


def rows(state, key, *, both):
  """Single completions: 1 for the better side of a pair, -1 for the other one."""
  del key
  data = state.frozen['data']
  if both:
    asked = jnp.concatenate([data['x']] * 2)
    said = jnp.concatenate([data['y'][:, :1], data['y'][:, 1:]])
    sign = jnp.repeat(jnp.array([1.0, -1.0]), PAIRS)
  else:
    side = jax.random.bernoulli(jax.random.fold_in(state.key, 10**7), 0.5, (PAIRS,))
    pick = jnp.where(side, 0, 1)[:, None, None]
    asked, said = data['x'], jnp.take_along_axis(data['y'], pick, 1)
    sign = jnp.where(side, 1.0, -1.0)
  return small.stored(asked, said).replace(reward=sign[:, None]), {**tables.NOTHING}


def parts(told):
  best = {arm: found['best'] for arm, found in told.last.items()}
  share = lambda name: best[name] - 0.7 * best['DPO']
  return {
    "gain of KTO from one side less 70 % of DPO's": share('KTO, one side'),
    'the same from both': share('KTO, both sides'),
  }
