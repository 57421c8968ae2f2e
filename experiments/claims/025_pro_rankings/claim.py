"""Rankings of four, taken whole, as all their pairs, or as one pair."""

import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.plackett_luce_dpo import plackett_luce_dpo
from jaxrl_llm.methods.pro import pro

METHODS = ('pro', 'plackett_luce_dpo')
METRICS = ('best', 'gain', 'kl')
SEEDS, LISTS, SIZE, BOUND = 8, 300, 4, 1.0


def run():
  world = tables.linear(SEEDS)
  data = tables.ranked(world, LISTS, SIZE)
  two = tables.ranked(world, LISTS, 2)
  how = dict(rate=0.004, steps=1000, every=5, measure=tables.gain)

  def train(method, data, draw=tables.all_of):
    shape = dict(world=world, shape=(6,))
    curves = tables.train(method, draw, data=data, **shape, **how)
    return tables.within(curves, BOUND, 10)

  return {
    'PRO': train(pro(), data),
    'DPO, all pairs': train(dpo(), data, all_pairs),
    'PRO, lists of two': train(pro(), two),
    'DPO, one pair': train(dpo(), two),
    'PL-DPO': train(plackett_luce_dpo(), data),
  }


def all_pairs(state, key):
  """Six pairs of every list of four."""
  del key
  data = state.frozen['data']
  at = jnp.array([[i, j] for i in range(SIZE) for j in range(i + 1, SIZE)])
  pairs = data['y'][:, at].reshape(-1, 2, 1)
  asked = jnp.repeat(data['x'], len(at), 0)
  return small.stored(asked, pairs), {**tables.NOTHING}


def parts(told):
  best = {arm: found['best'] for arm, found in told.last.items()}
  gap = lambda a, b: best[a] - best[b]
  return {
    'gain: PRO less DPO on all pairs': gap('PRO', 'DPO, all pairs'),
    'PRO on four less PRO on two': gap('PRO', 'PRO, lists of two'),
    'PL-DPO on four less DPO on one pair': gap('PL-DPO', 'DPO, one pair'),
  }
