"""Whether answers follow from the reasoning before them, under GRPO and GRPO-CARE."""

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.methods.grpo_care import grpo_care

METHODS = ('grpo_care',)
METRICS = ('consistency', 'accuracy')
# Two tokens of reasoning, of which the second is the conclusion; then the answer.
NET = small.Net(vocab=8, prompt=3, length=3, memory=2)
QUESTIONS, _ = small.sorting(3, 8)
SEEDS = 6


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=80)
  how = dict(rate=1e-3, steps=150, every=25, measure=measure)
  frozen = {'ref': start['policy'], 'ema': start['policy']}
  methods = {
    'GRPO': grpo(),
    'GRPO without KL': grpo(beta=0.0),
    'GRPO-CARE': grpo_care(alpha=0.9),
    'dense bonus': grpo_care(alpha=0.9, dense=True),
  }
  return {
    name: small.run(NET, draw, m, start, frozen=frozen, **how)[1]
    for name, m in methods.items()
  }


def demonstrations(key):
  """The largest digit as conclusion; the answer is that, or another guess at it."""
  keys = jax.random.split(key, 4)
  prompts = small.chosen(QUESTIONS)(keys[0], 64)
  top = prompts.max(1, keepdims=True)
  guess = lambda k: jnp.where(
    jax.random.bernoulli(k, 0.5, top.shape), top, jax.random.randint(k, top.shape, 0, 8)
  )
  said, other = guess(keys[1]), guess(keys[2])
  follows = jax.random.bernoulli(keys[3], 0.6, top.shape)
  answer = jnp.where(follows, said, other)
  return prompts, jnp.concatenate([prompts[:, :1], said, answer], 1)


def right(batch):
  return 1.0 * (batch.completions[..., -1] == batch.prompts.max(1, keepdims=True))


def draw(state, key):
  batch, took = small.fresh(NET, small.chosen(QUESTIONS), right, 32, 8)(state, key)
  answer = batch.mask * (jnp.arange(NET.length) == NET.length - 1)[None, None]
  return batch.replace(extra={'answer': answer}), took


def measure(state, key):
  batch = small.sample(NET, state.params['policy'], key, QUESTIONS, 4)
  same = batch.completions[..., 1] == batch.completions[..., 2]
  return {'consistency': same.mean(), 'accuracy': right(batch).mean()}


def parts(told):
  gap = lambda metric, other: told.last['GRPO-CARE'][metric] - told.last[other][metric]
  return {
    'consistency: GRPO-CARE less GRPO': gap('consistency', 'GRPO'),
    'the same, less 0.15': gap('consistency', 'GRPO') - 0.15,
    'consistency: GRPO-CARE less no KL': gap('consistency', 'GRPO without KL'),
    'accuracy: GRPO-CARE less no KL, plus 0.02': gap('accuracy', 'GRPO without KL')
    + 0.02,
  }
