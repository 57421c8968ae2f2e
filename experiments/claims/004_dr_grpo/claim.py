"""How long wrong answers get under GRPO and under Dr. GRPO, and which part it is."""

import functools

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.dr_grpo import dr_grpo
from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, weights

METHODS = ('dr_grpo',)
METRICS = ('wrong_length', 'right_length', 'accuracy', 'truncated')
STOP, ANSWERS, UNLUCKY, LUCKY = 0, (2, 6), 6, 7
NET = small.Net(vocab=8, prompt=1, length=40, first=True, stop=STOP, width=32)
SEEDS = 6


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=150)
  fixed = functools.partial(weights.constant_length, length=NET.length)
  methods = {
    'GRPO': grpo(beta=0.0),
    'Dr. GRPO': dr_grpo(max_length=NET.length),
    'GRPO, fixed length': grpo(beta=0.0, aggregate=fixed),
    'GRPO, no deviation': grpo(beta=0.0, advantage=advantages.group_mean),
  }
  how = dict(rate=2e-3, steps=200, every=20, measure=measure)
  return {k: small.run(NET, draw, m, start, **how)[1] for k, m in methods.items()}


def demonstrations(key):
  """Luck, an answer that is right half the time, and a stop with a chance of 1/8."""
  keys = jax.random.split(key, 5)
  asked = jax.random.randint(keys[0], (64, 1), *ANSWERS)
  other = jax.random.randint(keys[1], (64, 1), *ANSWERS)
  answer = jnp.where(jax.random.bernoulli(keys[2], 0.5, (64, 1)), asked, other)
  luck = jnp.where(jax.random.bernoulli(keys[3], 0.6, (64, 1)), LUCKY, UNLUCKY)
  stops = jax.random.bernoulli(keys[4], 1 / 8, (64, NET.length - 2))
  free = jnp.where(jnp.cumsum(stops, 1) > 0, STOP, 1)
  return asked, jnp.concatenate([luck, answer, free], 1)


def attempts(state, key, prompts, group):
  """Luck, which is not the policy's; then an answer; then what it likes, and a stop."""
  keys = jax.random.split(key, 3)
  asked = jax.random.randint(keys[0], (prompts, 1), *ANSWERS)
  luck = jax.random.bernoulli(keys[1], 0.6, (prompts, group))
  given = jnp.where(luck, LUCKY, UNLUCKY)
  policy = state.params['policy']
  batch = small.sample(NET, policy, keys[2], asked, group, given=given)
  answered = (batch.completions[..., 1] == asked) & (batch.length > 1)
  return batch.replace(reward=1.0 * (answered & luck)), luck


def draw(state, key):
  batch, _ = attempts(state, key, 16, 8)
  return batch, small.spent(batch)


def measure(state, key):
  batch, luck = attempts(state, key, 64, 8)
  right, length = batch.reward, batch.length
  of = lambda x, where: (x * where).sum() / jnp.maximum(where.sum(), 1)
  return {
    'wrong_length': of(length, 1 - right),
    'right_length': of(length, right),
    'accuracy': of(right, luck),
    'truncated': batch.truncated.mean(),
  }


def parts(told):
  grown = lambda arm: told.last[arm]['wrong_length'] - told.first[arm]['wrong_length']
  right = lambda arm: told.last[arm]['accuracy']
  return {
    'wrong answers grow under GRPO, tokens': grown('GRPO'),
    'a quarter of that growth, less the growth under Dr. GRPO': 0.25 * grown('GRPO')
    - grown('Dr. GRPO'),
    'accuracy of Dr. GRPO less that of GRPO, plus 0.02': right('Dr. GRPO')
    - right('GRPO')
    + 0.02,
  }
