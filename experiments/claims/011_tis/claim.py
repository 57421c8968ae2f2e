"""Weights for the sampler's error, where it has none, or is rounded ever more."""

import functools

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import importance, kl

METHODS = ('plan.importance',)
METRICS = ('accuracy', 'millinats', 'off')
NET = small.Net(vocab=6, prompt=4, length=4, memory=2)
QUESTIONS, RIGHT = small.sorting(4, 6)
SEEDS, STEPS, CAP = 6, 200, 2.0
ROUNDED = {
  'float32': jnp.float32,
  'bfloat16': jnp.bfloat16,
  'float8': jnp.float8_e4m3fn,
  'float4': jnp.float4_e2m1fn,
}
FORWARD = small.make_forward(NET)


def run():
  start = small.taught(NET, demonstrations, small.born(NET, SEEDS), steps=150)
  how = dict(rate=3e-3, steps=STEPS, every=20, minibatches=4)
  tis = functools.partial(importance.token, cap=CAP)
  found = {}
  for name, kind in ROUNDED.items():
    own = how | {'measure': functools.partial(measure, kind=kind)}
    ask = functools.partial(draw, kind=kind)
    train = lambda ask=ask, own=own, **plan: small.run(
      NET, ask, grpo(beta=0.0), start, **own, **plan
    )[1]
    found[name] = train()
    found[f'{name}, TIS'] = train(importance=tis)
  return found


def demonstrations(key):
  prompts = small.chosen(QUESTIONS)(key, 64)
  return prompts, jnp.sort(prompts, -1)


def sampled(state, key, questions, group, kind):
  """Completions of the policy with its weights rounded; its log-probs are theirs."""
  policy = jax.tree.map(
    lambda x: x.astype(kind).astype(jnp.float32), state.params['policy']
  )
  return small.sample(NET, policy, key, questions, group)


def draw(state, key, *, kind):
  asked, drawn = jax.random.split(key)
  questions = small.chosen(QUESTIONS)(asked, 16)
  batch = sampled(state, drawn, questions, 8, kind)
  return batch.replace(reward=RIGHT(batch)), small.spent(batch)


def measure(state, key, *, kind):
  """Accuracy of the policy itself; KL(sampler || policy) a token in thousandths of
  nats, from k3; the largest |w - 1| of a token.
  """
  exact = sampled(state, key, QUESTIONS[:512], 4, jnp.float32)
  batch = sampled(state, key, QUESTIONS[:512], 4, kind)
  logp = FORWARD(state.params, {}, batch, ('logp',)).logp
  weight = jnp.exp(logp - batch.behavior_logp)
  return {
    'accuracy': RIGHT(exact).mean(),
    'millinats': 1e3 * kl.k3(batch.behavior_logp, logp).mean(),
    'off': jnp.abs(weight - 1.0).max(),
  }


def parts(told):
  last, mean = told.last, told.mean
  gain = lambda name, of: of[f'{name}, TIS']['accuracy'] - of[name]['accuracy']
  return {
    '1 less 10,000 times the largest |w - 1|, float32': 1
    - 1e4 * mean['float32, TIS']['off'],
    '0.002 less the difference of accuracy that TIS makes, float32': 0.002
    - abs(gain('float32', last)),
    'accuracy at the end with TIS less without, bfloat16': gain('bfloat16', last),
    'the same, float8': gain('float8', last),
    'the same, float4': gain('float4', last),
    'over the run, the same, float4': gain('float4', mean),
  }
