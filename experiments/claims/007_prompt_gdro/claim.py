"""Weights for bins that lose, on questions of six kinds; the last is hardly solved."""

import functools
import itertools

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.methods.prompt_gdro import prompt_gdro

METHODS = ('prompt_gdro',)
METRICS = ('held_pass', 'pass', 'hardest', 'spread')
# A prompt: its kind, and three digits; each kind wants them in an order of its own.
KINDS, SIZE = 6, 5
NET = small.Net(vocab=6, prompt=4, length=3, memory=2)
ORDERS = jnp.asarray(list(itertools.permutations(range(3))))
DIGITS = small.sorting(3, SIZE)[0]
TRAIN, HELD = DIGITS[:100], DIGITS[100:]
SEEDS, STEPS, PROMPTS, GROUP, BETA = 6, 200, 32, 4, 0.001


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=300)
  how = dict(rate=1e-3, steps=STEPS, every=20, minibatches=8, measure=measure)
  how |= dict(frozen={'ref': start['policy']})
  gdro = functools.partial(prompt_gdro, prompts=KINDS * len(TRAIN), beta=BETA)
  methods = {
    'GRPO': grpo(clip_high=0.28, beta=BETA),
    'Prompt-GDRO': gdro(),
    'Prompt-GDRO, of rewards': gdro(signal='reward'),
  }
  return {k: small.run(NET, draw, m, start, **how)[1] for k, m in methods.items()}


def asked(digits, kind):
  return jnp.concatenate([kind[:, None], digits], 1)


def due(prompts):
  return jnp.take_along_axis(prompts[:, 1:], ORDERS[prompts[:, 0]], 1)


def demonstrations(key):
  """Each kind half as often as the one before."""
  keys = jax.random.split(key)
  halves = -jnp.log(2.0) * jnp.arange(KINDS)
  kind = jax.random.categorical(keys[0], halves, shape=(64,))
  prompts = asked(small.chosen(TRAIN)(keys[1], 64), kind)
  return prompts, due(prompts)


def right(batch):
  return (batch.completions == due(batch.prompts)[:, None]).all(-1)


def draw(state, key):
  """Questions of all kinds alike, each told apart from all others."""
  keys = jax.random.split(key, 3)
  which = jax.random.randint(keys[0], (PROMPTS,), 0, len(TRAIN))
  kind = jax.random.randint(keys[1], (PROMPTS,), 0, KINDS)
  prompts = asked(TRAIN[which], kind)
  batch = small.sample(NET, state.params['policy'], keys[2], prompts, GROUP)
  reward = jnp.where(right(batch), 1.0, -1.0)
  extra = {'question': kind * len(TRAIN) + which}
  return batch.replace(reward=reward, extra=extra), small.spent(batch)


def measure(state, key):
  """pass@8 of all kinds and of the last; how far apart the weights of bins are."""

  def passed(digits, i):
    kind = jnp.repeat(jnp.arange(KINDS), len(digits))
    prompts = asked(jnp.tile(digits, (KINDS, 1)), kind)
    key_ = jax.random.fold_in(key, i)
    batch = small.sample(NET, state.params['policy'], key_, prompts, 8)
    return right(batch).any(1).reshape(KINDS, -1).mean(1)

  seen, held = passed(TRAIN, 0), passed(HELD, 1)
  score = jnp.clip(state.extra.get('gdro_score', jnp.zeros(1)), -5.0, 5.0)
  weight = jnp.minimum(jnp.exp(0.65 * score), 15.0)  # As the method has it.
  return {
    'held_pass': held.mean(),
    'pass': seen.mean(),
    'hardest': seen[-1],
    'spread': weight.max() - weight.min(),
  }


def parts(told):
  mine, other = told.last['Prompt-GDRO'], told.last['GRPO']
  over = told.mean['Prompt-GDRO']['held_pass'] - told.mean['GRPO']['held_pass']
  return {
    'held-out pass@8 of Prompt-GDRO less that of GRPO': mine['held_pass']
    - other['held_pass'],
    'over the run, the same': over,
    'pass@8 of the hardest kind, Prompt-GDRO less GRPO': mine['hardest']
    - other['hardest'],
  }
