"""Two attempts at a question: what SCoRe's stages and its bonus do to the second."""

import functools

import jax.numpy as jnp
import small

from jaxrl_llm.methods.score_rl import score_rl

METHODS = ('score_rl',)
METRICS = ('gained', 'first', 'second', 'repeated')
NET = small.Net(vocab=8, prompt=3, length=6, memory=3)
QUESTIONS, _ = small.sorting(3, 8)
SEEDS, STEPS = 6, 100


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=90)
  how = dict(frozen={'ref': start['policy']}, rate=1e-3, every=25, measure=measure)
  train = functools.partial(small.run, NET, draw, **how)
  first, _ = train(score_rl(stage=1), start, steps=STEPS)
  late = functools.partial(train, steps=STEPS, salt=2)
  found = {
    'no stage 1, no bonus': train(score_rl(alpha=0.0), start, steps=2 * STEPS),
    'stage 1, no bonus': late(score_rl(alpha=0.0), first),
    'bonus, no stage 1': train(score_rl(), start, steps=2 * STEPS),
    'SCoRe': late(score_rl(), first),
    'SCoRe, a bonus of a tenth': late(score_rl(alpha=1.0), first),
  }
  return {name: curves for name, (_, curves) in found.items()}


def demonstrations(key):
  prompts = small.chosen(QUESTIONS)(key, 64)
  return prompts, jnp.tile(jnp.sort(prompts, -1), (1, 2))


def attempts(batch):
  due = jnp.sort(batch.prompts, -1)[:, None]
  right = lambda said: (said == due).all(-1).astype(jnp.float32)
  return right(batch.completions[..., :3]), right(batch.completions[..., 3:])


def draw(state, key):
  questions = small.chosen(QUESTIONS)
  batch, took = small.fresh(NET, questions, lambda b: attempts(b)[1], 32, 8)(state, key)
  turn = 1 + (jnp.arange(NET.length) > 2)[None, None] * batch.mask
  return batch.replace(extra={'first': attempts(batch)[0], 'turn': turn}), took


def measure(state, key):
  batch = small.sample(NET, state.params['policy'], key, QUESTIONS, 4)
  first, second = (x.mean() for x in attempts(batch))
  same = batch.completions[..., :3] == batch.completions[..., 3:]
  found = {'first': first, 'second': second, 'gained': second - first}
  return found | {'repeated': same.all(-1).mean()}


def parts(told):
  last = told.last
  gain = lambda arm: last[arm]['gained']
  return {
    'what the second attempt gains: SCoRe': gain('SCoRe'),
    'SCoRe less neither of its parts': gain('SCoRe') - gain('no stage 1, no bonus'),
    'SCoRe less no bonus': gain('SCoRe') - gain('stage 1, no bonus'),
    'SCoRe less no stage 1': gain('SCoRe') - gain('bonus, no stage 1'),
    'accuracy of the second attempt: SCoRe less neither, plus 0.02': last['SCoRe'][
      'second'
    ]
    - last['no stage 1, no bonus']['second']
    + 0.02,
  }
