"""Two kinds of prompts want other things of an answer: a gate, or fixed weights."""

import jax
import jax.numpy as jnp
import small
import tables
import vectors

from jaxrl_llm.methods.armo import armo
from jaxrl_llm.methods.bradley_terry import bradley_terry

METHODS = ('armo',)
METRICS = ('accuracy',)
NAMES = ('a', 'b', 'c', 'd', 'e', 'f')
WANTED = jnp.array([[4.0, 2, 1, 0, 0, 1], [0.0, 1, 0, 4, 2, 1]])  # Of either kind.
SEEDS, STEPS, PAIRS, SIZE, ASKED = 6, 600, 64, 8, 4


def run():
  method = armo(attributes=','.join(NAMES), hidden=64)
  keys = jax.random.split(jax.random.key(0), SEEDS)
  rated = {
    'reward': vectors.born(SEEDS, SIZE, len(NAMES)),
    'own': jax.vmap(lambda key: method.own(key, ASKED))(keys),
  }
  linear = {'reward': vectors.born(SEEDS, SIZE, 1)}
  both = {'reward': vectors.born(SEEDS, SIZE + ASKED, 64, 1)}
  return {
    'fixed weights': train(method, rated, unasked),
    'gate': train(method, rated, lambda batch: batch),
    'Bradley-Terry, of the answer': train(bradley_terry(), linear, lambda batch: batch),
    'Bradley-Terry, of prompt and answer': train(bradley_terry(), both, joined),
  }


def pairs(state, key, count):
  """Pairs of answers, rated with noise in every attribute, the chosen first: Bradley
  and Terry's choice by what the prompt's kind wants. The last is who is truly better.
  """
  keys = jax.random.split(key, 4)
  x = jax.random.normal(keys[0], (count, 2, SIZE))
  asked = jax.random.normal(keys[1], (count, ASKED))
  attributes = x @ state.frozen['attributes']
  wanted = WANTED[(asked[:, 0] > 0) * 1]
  worth = jnp.sum(attributes * wanted[:, None], -1)
  noise = 0.3 * jax.random.normal(keys[2], attributes.shape)
  whole = jnp.concatenate([x, attributes + noise, worth[..., None]], -1)
  chosen = vectors.judged(keys[3], whole, worth)
  x, rating, worth = jnp.split(chosen, (SIZE, SIZE + len(NAMES)), -1)
  told = {f'rating/{n}': rating[..., i] for i, n in enumerate(NAMES)}
  told |= {f'rated/{n}': jnp.ones((count, 2)) for n in NAMES}
  told |= {'asked': jnp.broadcast_to(asked[:, None], (count, 2, ASKED))}
  return vectors.compared(x, **told), worth[:, 0, 0] > worth[:, 1, 0]


def unasked(batch):
  """With nothing to tell prompts by."""
  return batch.replace(extra=batch.extra | {'asked': 0 * batch.extra['asked']})


def joined(batch):
  x = jnp.concatenate([batch.extra['x'], batch.extra['asked']], -1)
  return batch.replace(extra=batch.extra | {'x': x})


def train(method, start, seen):
  serve = method.serve or (lambda out: out.score)
  worlds = jax.random.split(jax.random.key(1), SEEDS)
  make = lambda key: jax.random.normal(key, (SIZE, len(NAMES))) / SIZE**0.5
  frozen = {'attributes': jax.vmap(make)(worlds)}

  def draw(state, key):
    return seen(pairs(state, key, PAIRS)[0]), dict(tables.NOTHING)

  def measure(state, key):
    batch, better = pairs(state, key, 4096)
    out = vectors.forward(state.params, {}, seen(batch), method.needs)
    score = serve(out)
    return {'accuracy': ((score[:, 0] > score[:, 1]) == better).mean()}

  how = dict(frozen=frozen, rate=3e-3, steps=STEPS, every=STEPS // 10, measure=measure)
  return small.run(vectors.forward, draw, method, start, **how)[1]


def parts(told):
  last = {arm: found['accuracy'] for arm, found in told.last.items()}
  over = lambda arm: last['gate'] - last[arm]
  return {
    'accuracy: the gate less fixed weights': over('fixed weights'),
    'the same less Bradley-Terry of the answer': over('Bradley-Terry, of the answer'),
  }
