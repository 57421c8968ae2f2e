"""RTO's token rewards against fewer of them, and against PPO, with a known reward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.methods.rto import rto

METHODS = ('rto',)
METRICS = ('gold', 'gold_dpo')
NET = small.Net(vocab=6, prompt=1, length=12, width=32)
FORWARD = small.make_forward(NET)
TARGET = jnp.asarray(np.random.default_rng(0).integers(0, 6, (6, NET.length)))
SENTENCE, BETA1, BETA2, SEEDS, STEPS = 4, 0.05, 0.01, 6, 120


def run():
  start = small.born(NET, SEEDS, ('policy', 'critic'))
  ref = {'ref': start['policy']}
  first = dict(frozen=ref, steps=400, every=400, rate=6e-3)
  pairs = small.run(NET, compared, dpo(), {'policy': start['policy']}, **first)
  frozen = ref | {'dpo': pairs[0]['policy']}
  how = dict(frozen=frozen, steps=STEPS, every=STEPS // 12, measure=measure)
  how |= dict(minibatches=4, rate=2e-3)
  train = lambda draw, method: small.run(NET, draw, method, start, **how)[1]
  plain, full = ppo(beta=BETA2), rto(beta1=BETA1, dpo_clip=0.0, beta2=BETA2)
  found = {
    'PPO': train(draw, plain),
    'RTO: each token': train(draw, full),
    'each sentence': train(functools.partial(draw, every=SENTENCE), plain),
    'end alone': train(functools.partial(draw, every=NET.length), plain),
    'RTO, clip of 0.05': train(draw, rto(beta1=BETA1, beta2=BETA2)),
  }
  half = [records[: len(records) // 2 + 1] for records in found['RTO: each token']]
  return found | {'RTO, half the completions': half}


def gold(batch):
  """Share of tokens that are as wished: known, but given at the end."""
  due = TARGET[batch.prompts[:, 0]][:, None]
  return (batch.completions == due).mean(-1)


def questions(key, n):
  return jax.random.randint(key, (n, 1), 0, NET.vocab)


def compared(state, key):
  """Pairs of the reference's completions, the chosen first (Bradley-Terry on gold)."""
  keys = jax.random.split(key, 3)
  batch = small.sample(NET, state.frozen['ref'], keys[0], questions(keys[1], 64), 2)
  score = 10.0 * gold(batch)
  swap = jax.random.uniform(keys[2], (64,)) > jax.nn.sigmoid(score[:, 0] - score[:, 1])
  tokens = jnp.where(swap[:, None, None], batch.completions[:, ::-1], batch.completions)
  return small.stored(batch.prompts, tokens), small.spent(batch)


def draw(state, key, *, every=0):
  """With `every`, what RTO gives tokens is given at the ends of so many."""
  batch, took = small.fresh(NET, questions, gold, 16, 4)(state, key)
  if not every:
    return batch, took
  out = FORWARD(state.params, state.frozen, batch, ('dpo_logp', 'ref_logp'))
  told = BETA1 * (out.dpo_logp - out.ref_logp)
  ends = told.reshape(*told.shape[:2], -1, every).sum(-1, keepdims=True)
  at_ends = jnp.pad(ends, ((0, 0), (0, 0), (0, 0), (every - 1, 0))).reshape(told.shape)
  return batch.replace(extra={'token_reward': at_ends}), took


def measure(state, key):
  asked = questions(key, 64)
  of = lambda policy: gold(small.sample(NET, policy, key, asked, 8)).mean()
  return {'gold': of(state.params['policy']), 'gold_dpo': of(state.frozen['dpo'])}


def parts(told):
  last, mean = ({k: x['gold'] for k, x in t.items()} for t in (told.last, told.mean))
  return {
    'RTO at half the completions, less PPO at all of them': last[
      'RTO, half the completions'
    ]
    - last['PPO'],
    'over the run, rewards at each token less at each sentence': mean['RTO: each token']
    - mean['each sentence'],
    'over the run, rewards at each sentence less at the end': mean['each sentence']
    - mean['end alone'],
  }
