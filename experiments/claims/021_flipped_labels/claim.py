"""Preferences of which three in ten are turned round, and three losses that know."""

import functools

import jax
import jax.numpy as jnp
import tables

from jaxrl_llm.methods.cdpo import cdpo
from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.robust_dpo import robust_dpo

METHODS = ('robust_dpo', 'cdpo')
METRICS = ('to_optimum', 'cosine', 'size')
SEEDS, PAIRS, FLIPPED, BETA = 8, 1500, 0.3, 0.5


def run():
  world = tables.linear(SEEDS)
  clean = tables.ranked(world, PAIRS, 2)
  turned = jax.random.bernoulli(jax.random.key(0), FLIPPED, (SEEDS, PAIRS, 1, 1))
  noisy = clean | {'y': jnp.where(turned, clean['y'][:, :, ::-1], clean['y'])}
  how = dict(rate=0.02, steps=1500, every=100, measure=measure)
  train = functools.partial(tables.train, draw=tables.all_of, world=world, shape=(6,))
  return {
    'DPO': train(dpo(beta=BETA), data=noisy, **how),
    'cDPO': train(cdpo(beta=BETA, flipped=FLIPPED), data=noisy, **how),
    'robust DPO': train(robust_dpo(beta=BETA, flipped=FLIPPED), data=noisy, **how),
    'DPO, no label flipped': train(dpo(beta=BETA), data=clean, **how),
  }


def measure(state, key):
  """KL from the regularised optimum, and theta against its own."""
  del key
  world, theta = state.frozen['world'], state.params['policy']['theta']
  due = world['w'] / BETA
  optimum = jax.nn.log_softmax(world['base'] + world['reward'] / BETA)
  norm = jnp.linalg.norm
  there = jnp.maximum(norm(theta), 1e-6)
  return {
    'to_optimum': tables.kl(optimum, tables.policy(state)),
    'cosine': theta @ due / there / norm(due),
    'size': norm(theta) / norm(due),
  }


def parts(told):
  last = told.last
  gap = lambda a, b: last[a]['to_optimum'] - last[b]['to_optimum']
  turn = lambda name: abs(last[name]['cosine'] - last['DPO']['cosine'])
  return {
    'KL from the optimum: DPO less robust DPO': gap('DPO', 'robust DPO'),
    'the same: cDPO less DPO': gap('cDPO', 'DPO'),
    '0.02 less the difference of cosines, robust DPO': 0.02 - turn('robust DPO'),
    'the same, cDPO': 0.02 - turn('cDPO'),
  }
