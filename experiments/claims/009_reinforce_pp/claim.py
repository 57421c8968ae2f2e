"""A batch's deviation against each group's, on a set of questions small enough to learn
by heart.
"""

import jax.numpy as jnp
import small

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.methods.reinforce_pp import reinforce_pp
from jaxrl_llm.methods.reinforce_pp_baseline import reinforce_pp_baseline

METHODS = ('reinforce_pp', 'reinforce_pp_baseline')
METRICS = ('train', 'held_out', 'held_out_pass')
NET = small.Net(vocab=8, prompt=3, length=3, memory=2)
QUESTIONS, RIGHT = small.sorting(3, 8)
TRAIN, HELD = QUESTIONS[:30], QUESTIONS[30:286]
SEEDS, TRIES = 8, 8


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=70)
  draw = small.fresh(NET, small.chosen(TRAIN), RIGHT, 32, 8)
  how = dict(rate=3e-3, steps=200, every=25, measure=measure)
  methods = {
    'GRPO': grpo(beta=0.0),
    'REINFORCE++': reinforce_pp(beta=0.0),
    'REINFORCE++-baseline': reinforce_pp_baseline(beta=0.0),
  }
  return {k: small.run(NET, draw, m, start, **how)[1] for k, m in methods.items()}


def demonstrations(key):
  prompts = small.chosen(QUESTIONS)(key, 64)
  return prompts, jnp.sort(prompts, -1)


def measure(state, key):
  policy = state.params['policy']
  right = lambda asked: RIGHT(small.sample(NET, policy, key, asked, TRIES))
  held = right(HELD)
  found = {'held_out': held.mean(), 'held_out_pass': held.max(1).mean()}
  return found | {'train': right(TRAIN).mean()}


def parts(told):
  mine, other = told.last['REINFORCE++'], told.last['GRPO']
  gap = lambda metric: mine[metric] - other[metric]
  return {
    'held-out pass@8 of REINFORCE++ less that of GRPO': gap('held_out_pass'),
    'held-out accuracy of REINFORCE++ less that of GRPO': gap('held_out'),
    'train accuracy of GRPO less that of REINFORCE++': -gap('train'),
  }
