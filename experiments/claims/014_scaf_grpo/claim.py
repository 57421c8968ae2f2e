"""Hints for questions that nobody solves, scored without, at as many completions."""

import functools

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.grpo import grpo

METHODS = ('source.hints',)
METRICS = ('zero', 'hard', 'easy')
# A prompt: its kind, five digits, five places for hints (NONE is none).
NONE, LEVELS = 5, 5
NET = small.Net(vocab=6, prompt=11, length=LEVELS, memory=2)
QUESTIONS, _ = small.sorting(LEVELS, NONE)
SEEDS, STEPS, PROMPTS, GROUP = 6, 200, 32, 8


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=1500)
  how = dict(rate=1e-3, every=20, measure=measure)
  train = lambda first, steps: small.run(
    NET, functools.partial(draw, first=first), grpo(beta=0.0), start, steps=steps, **how
  )[1]
  return {
    'GRPO': train(10**9, STEPS + 40),  # About as many completions.
    'Scaf-GRPO': train(int(0.15 * STEPS), STEPS),
    'no exemption': train(0, STEPS),
  }


def due(prompts):
  """Digits in order; of the second kind, which nobody was taught, in reverse."""
  up = jnp.sort(prompts[..., 1 : 1 + LEVELS], -1)
  return jnp.where(prompts[..., :1] > 0, up[..., ::-1], up)


def asked(key, n, kind=None):
  keys = jax.random.split(key)
  which = jax.random.bernoulli(keys[0], 0.5, (n, 1)).astype(jnp.int32)
  which = which if kind is None else jnp.full((n, 1), kind)
  digits = small.chosen(QUESTIONS)(keys[1], n)
  return jnp.concatenate([which, digits, jnp.full((n, LEVELS), NONE)], 1)


def hinted(prompts):
  """[B, P] to [B, levels, P]: the first one, two, ... digits of the answer."""
  shown = jnp.arange(LEVELS)[None] <= jnp.arange(LEVELS)[:, None]
  hints = jnp.where(shown[None], due(prompts)[:, None], NONE)
  rows = jnp.broadcast_to(
    prompts[:, None, : 1 + LEVELS], (len(prompts), LEVELS, 1 + LEVELS)
  )
  return jnp.concatenate([rows, hints], -1)


def demonstrations(key):
  """The first kind, and to say what a hint says, in whatever order."""
  keys = jax.random.split(key, 3)
  prompts = asked(keys[0], 64)
  said = small.chosen(QUESTIONS)(keys[1], 64)
  bare = prompts[:, :1] == 0
  level = jax.random.randint(keys[2], (64, 1), 1, LEVELS + 1)
  hints = jnp.where(jnp.arange(LEVELS)[None] < level, said, NONE)
  prompts = prompts.at[:, 1 + LEVELS :].set(jnp.where(bare, NONE, hints))
  return prompts, jnp.where(bare, due(prompts), said)


def right(prompts, completions):
  return (completions == due(prompts)).all(-1).astype(jnp.float32)


def draw(state, key, *, first):
  """As scaffold.py: the least hint that is right takes the place of a failed row."""
  keys = jax.random.split(key, 3)
  policy, prompts = state.params['policy'], asked(keys[0], PROMPTS)
  rows = jnp.broadcast_to(prompts[:, None], (PROMPTS, GROUP, NET.prompt))
  batch = small.sample(NET, policy, keys[1], rows, GROUP)
  reward = right(rows, batch.completions)
  told = hinted(prompts)
  helped = small.sample(NET, policy, keys[2], told, LEVELS).completions
  solved = right(told, helped)
  dead = (reward.sum(1) == 0) & (state.step >= first)
  put = (dead & (solved.sum(1) > 0))[:, None]
  least = solved.argmax(1)[:, None, None]
  pick = lambda x: jnp.take_along_axis(x, least, 1)[:, 0]
  new = lambda old, x: old.at[:, 0].set(jnp.where(put, x, old[:, 0]))
  batch = batch.replace(
    completions=new(batch.completions, pick(helped)),
    row_prompt=new(rows, pick(told)),
    reward=reward.at[:, 0].set(jnp.where(put[:, 0], 1.0, reward[:, 0])),
  )
  more = LEVELS * dead.sum()
  took = small.spent(batch)
  return batch, {
    'rollouts': took['rollouts'] + more,
    'tokens': took['tokens'] + more * NET.length,
  }


def measure(state, key):
  """Without hints: questions of which none of 8 completions is right, and accuracy."""

  def of(kind):
    prompts = asked(key, 128, kind)
    batch = small.sample(NET, state.params['policy'], key, prompts, 8)
    return right(prompts[:, None], batch.completions)

  hard = of(1)
  zero = (hard.max(1) == 0).mean()
  return {'zero': zero, 'hard': hard.mean(), 'easy': of(0).mean()}


def parts(told):
  last = told.last
  gap = lambda a, b, metric: last[a][metric] - last[b][metric]
  return {
    'questions nobody solves: GRPO less Scaf-GRPO': gap('GRPO', 'Scaf-GRPO', 'zero'),
    'accuracy on hard questions: Scaf-GRPO less GRPO': gap('Scaf-GRPO', 'GRPO', 'hard'),
    'the same: Scaf-GRPO less no exemption': gap('Scaf-GRPO', 'no exemption', 'hard'),
  }
