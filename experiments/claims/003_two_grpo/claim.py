"""Groups of two against groups of sixteen, as many epochs, in a minute."""

import small

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.methods.two_grpo import two_grpo

METHODS = ('two_grpo',)
METRICS = ('accuracy', 'held_out')
NET = small.Net(vocab=8, prompt=3, length=3, memory=2)
QUESTIONS, RIGHT = small.sorting(3, 8)
TRAIN, HELD = QUESTIONS[:384], QUESTIONS[384:]
RATE, UPDATES, SEEDS = 1e-3, 512, 6  # Of groups of 16; 2-GRPO has an eighth.


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=100)
  wide = grpo(clip_low=0.2, clip_high=0.28, beta=0.0)
  sixteen = arm(start, wide, 16, RATE, UPDATES)
  return {
    '16-GRPO': sixteen,
    '2-GRPO, rate x 8': arm(start, two_grpo(), 2, 8 * RATE, UPDATES // 8),
    '16-GRPO, rate x 8': arm(start, wide, 16, 8 * RATE, UPDATES),
    '2-GRPO, same rate': arm(start, two_grpo(), 2, RATE, UPDATES // 8),
    '16-GRPO, an eighth of the epochs': [records[:2] for records in sixteen],
  }


def arm(start, method, group, rate, steps):
  draw = small.fresh(NET, small.chosen(TRAIN), RIGHT, 256 // group, group)
  how = dict(rate=rate, steps=steps, every=UPDATES // 8, measure=measure)
  return small.run(NET, draw, method, start, **how)[1]


def demonstrations(key):
  prompts = small.chosen(TRAIN)(key, 64)
  return prompts, small.jnp.sort(prompts, -1)


def measure(state, key):
  share = lambda asked: RIGHT(
    small.sample(NET, state.params['policy'], key, asked, 8)
  ).mean()
  return {'accuracy': share(TRAIN), 'held_out': share(HELD)}


def parts(told):
  last = told.last
  two, sixteen = last['2-GRPO, rate x 8'], last['16-GRPO']
  less = lambda metric: two[metric] - 0.97 * sixteen[metric]
  return {
    'accuracy of 2-GRPO less 97 % of that of 16-GRPO': less('accuracy'),
    'the same of questions that were held out': less('held_out'),
  }
