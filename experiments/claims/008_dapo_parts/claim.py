"""DAPO's four parts, put on GRPO one after the other."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.dapo import dapo
from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.rewards.overlong import overlong

METHODS = ('dapo',)
METRICS = ('accuracy', 'entropy', 'truncated', 'tied')
STOP, FILLER, SIZE = 0, 7, 6  # Digits are 1 to 6.
NET = small.Net(vocab=8, prompt=3, length=20, memory=3, stop=STOP, width=32)
FORWARD = small.make_forward(NET)
QUESTIONS = small.sorting(3, SIZE)[0] + 1
PROMPTS, GROUP, LIMIT, CACHE = 16, 8, 3, 4
SEEDS, STEPS, EVERY, MORE = 6, 100, 10, 300
PENALTY = jnp.array(
  [
    overlong(max_length=NET.length, cache=CACHE)(SimpleNamespace(tokens=n))
    for n in range(NET.length + 1)
  ]
)


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=400)
  how = dict(every=EVERY, rate=4e-3, minibatches=8, measure=measure)

  def arm(method, steps=STEPS, **given):
    ask = functools.partial(draw, **given)
    return small.run(NET, ask, method, start, steps=steps, **how)[1]

  higher = grpo(clip_high=0.28, beta=0.0)
  tokens = arm(dapo(), MORE, shaped=True)
  return {
    'GRPO': arm(grpo(beta=0.0)),
    '+ clip-higher': arm(higher),
    '+ overlong shaping': arm(higher, shaped=True),
    '+ token mean': [records[: STEPS // EVERY + 1] for records in tokens],
    '+ dynamic sampling, which is DAPO': arm(dapo(), shaped=True, mixed=True),
    'without dynamic sampling, three times the updates': tokens,
  }


def demonstrations(key):
  """Filler that ends with a chance of 1/8 a token; three digits, a stop."""
  keys = jax.random.split(key, 3)
  asked = small.chosen(QUESTIONS)(keys[0], 64)
  said = jnp.sort(asked, -1)
  other = jax.random.randint(keys[1], said.shape, 1, SIZE + 1)
  ends = jax.random.bernoulli(keys[2], 1 / 8, (64, NET.length))
  first = jnp.where(ends.any(1), ends.argmax(1), NET.length)[:, None]
  since = jnp.arange(NET.length)[None] - first
  # Sorted in one of two, and digits at random in the others.
  known = jnp.arange(64)[:, None] % 2 < 1
  tail = jnp.pad(jnp.where(known, said, other), ((0, 0), (0, 1)))
  at = jnp.take_along_axis(tail, jnp.clip(since, 0, 3), 1)
  return asked, jnp.where(since < 0, FILLER, at)


def right(batch):
  """Whether the last three tokens before the stop are the digits in order."""
  due = jnp.sort(batch.prompts, -1)[:, None]
  places = jnp.maximum(batch.length[..., None] - 4 + jnp.arange(3)[None, None], 0)
  said = jnp.take_along_axis(batch.completions, places, -1)
  ended = (batch.truncated == 0) & (batch.length > 3)
  return (said == due).all(-1) & ended


def draw(state, key, *, shaped=False, mixed=False):
  """Rewards of 1 and -1; `mixed` is dynamic sampling, as sources.until_mixed."""
  tries = LIMIT if mixed else 1
  asked, drawn = jax.random.split(key)
  asked = small.chosen(QUESTIONS)(asked, tries * PROMPTS)
  batch = small.sample(NET, state.params['policy'], drawn, asked, GROUP)
  correct = right(batch)
  reward = jnp.where(correct, 1.0, -1.0) + (PENALTY[batch.length] if shaped else 0.0)
  tied = correct.all(1) | ~correct.any(1)
  kept = jnp.argsort(tied, stable=True)[:PROMPTS]
  enough = jnp.cumsum((~tied).reshape(tries, PROMPTS).sum(1)) >= PROMPTS
  used = jnp.where(enough.any(), enough.argmax() + 1, tries)
  spent = batch.length.sum(1).reshape(tries, PROMPTS).sum(1)
  took = {
    'rollouts': 1.0 * used * PROMPTS * GROUP,
    'tokens': 1.0 * jnp.sum(spent * (jnp.arange(tries) < used)),
  }
  batch = batch.replace(reward=reward)
  return (jax.tree.map(lambda x: x[kept], batch) if mixed else batch), took


def measure(state, key):
  """Of 128 questions, eight times each; `tied` are groups that teach nothing."""
  asked = small.chosen(QUESTIONS)(key, 128)
  batch = small.sample(NET, state.params['policy'], key, asked, GROUP)
  correct = right(batch)
  told = FORWARD(state.params, {}, batch, ('entropy',)).entropy
  return {
    'accuracy': correct.mean(),
    'entropy': jnp.sum(told * batch.mask) / batch.mask.sum(),
    'truncated': batch.truncated.mean(),
    'tied': (correct.all(1) | ~correct.any(1)).mean(),
  }


def parts(told):
  last, mean = told.last, told.mean
  gap = lambda a, b, metric, of=last: of[a][metric] - of[b][metric]
  plain, higher, shaped, tokens, full, _ = last
  return {
    'accuracy of DAPO less that of GRPO': gap(full, plain, 'accuracy'),
    'over the run, entropy with clip-higher less without': gap(
      higher, plain, 'entropy', mean
    ),
    'over the run, truncated without overlong shaping less with': gap(
      higher, shaped, 'truncated', mean
    ),
    'accuracy with the token mean less without': gap(tokens, shaped, 'accuracy'),
    'accuracy with dynamic sampling less without': gap(full, tokens, 'accuracy'),
  }
