"""Outcomes alone, and with rewards of tokens that a second policy learns of them."""

import jax.numpy as jnp
import small

from jaxrl_llm.methods.prime import prime

METHODS = ('prime',)
METRICS = ('accuracy', 'auc')
NET = small.Net(vocab=4, prompt=4, length=4, memory=3)
QUESTIONS, RIGHT = small.sorting(4, 4)
SEEDS, STEPS = 6, 200


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=60)
  policy = start['policy']
  how = dict(frozen={'ref': policy}, rate=1e-3, steps=STEPS, every=20, measure=measure)
  draw = small.fresh(NET, small.chosen(QUESTIONS), RIGHT, 32, 4)
  train = lambda method: small.run(
    NET, draw, method, {'policy': policy, 'prm': policy}, **how
  )[1]
  return {
    'outcomes alone': train(prime(process=0.0)),
    'PRIME': train(prime()),
    'PRIME, process 0.25': train(prime(process=0.25)),
  }


def demonstrations(key):
  prompts = small.chosen(QUESTIONS)(key, 64)
  return prompts, jnp.sort(prompts, -1)


def measure(state, key):
  """The policy's accuracy; and of completions of the reference, how often the prm has
  one that is right above one that is wrong.
  """
  asked = small.chosen(QUESTIONS)(key, 256)
  drawn = lambda tree: small.sample(NET, tree, key, asked, 4)
  batch = drawn(state.frozen['ref'])
  see = small.make_forward(NET)
  out = see(state.params, state.frozen, batch, ('prm_logp', 'ref_logp'))
  said, right = (out.prm_logp - out.ref_logp).sum(-1).ravel(), RIGHT(batch).ravel()
  won = 0.5 + 0.5 * jnp.sign(said[:, None] - said[None])
  both = right[:, None] * (1 - right[None])
  return {
    'accuracy': RIGHT(drawn(state.params['policy'])).mean(),
    'auc': jnp.sum(won * both) / jnp.maximum(both.sum(), 1.0),
  }


def parts(told):
  first, last, mean = (t['PRIME'] for t in told)
  alone = told.mean['outcomes alone']
  return {
    'accuracy over the run: PRIME less outcomes alone': mean['accuracy']
    - alone['accuracy'],
    'AUC of its rewards: last less first': last['auc'] - first['auc'],
  }
