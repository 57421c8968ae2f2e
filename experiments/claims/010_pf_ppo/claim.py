"""PPO on completions drawn again by rank, where rewards are right at the ends only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm import filtration
from jaxrl_llm.methods.ppo import ppo

METHODS = ('source.filter',)
METRICS = ('gold', 'fit')
NET = small.Net(vocab=6, prompt=1, length=8, width=32)
TARGET = jnp.asarray(np.random.default_rng(0).integers(0, 6, (6, NET.length)))
SEEDS, STEPS, PROMPTS, GROUP, ERROR = 6, 150, 16, 8, 0.1
FILTERS = {'best-random': 'best_random', 'best-worst': 'best_worst', 'best': 'best'}


def run():
  start = small.born(NET, SEEDS, ('policy', 'critic'))
  train = lambda **given: small.run(
    NET,
    functools.partial(draw, **given),
    ppo(beta=0.0),
    start,
    steps=STEPS,
    every=STEPS // 10,
    rate=2e-3,
    minibatches=4,
    measure=functools.partial(measure, **given),
  )[1]
  found = {'PPO': train()}
  found |= {name: train(kind=kind) for name, kind in FILTERS.items()}
  found['all alike, drawn again'] = train(kind='alike')
  found['PPO, exact'] = train(exact=True)
  for name in ('best-random', 'best-worst'):
    found[f'{name}, exact'] = train(kind=FILTERS[name], exact=True)
  return found


def gold(batch):
  """Share of tokens that are as wished."""
  due = TARGET[batch.prompts[:, 0]][:, None]
  return (batch.completions == due).mean(-1)


def order(key, x):
  """Places of a group's completions, the lowest first, of equal ones any: [B, G]."""
  return jnp.argsort(jnp.argsort(x + 1e-4 * jax.random.uniform(key, x.shape), -1), -1)


def learned(key, true):
  """A reward model: right but for an error at a group's ends, anything between them
  for what is neither best nor worst.
  """
  keys = jax.random.split(key, 3)
  rank = order(keys[0], true)
  low, high = true.min(-1, keepdims=True), true.max(-1, keepdims=True)
  between = low + (high - low) * jax.random.uniform(keys[1], true.shape)
  ends = (rank == 0) | (rank == GROUP - 1)
  noise = ERROR * jax.random.normal(keys[2], true.shape)
  return jnp.where(ends, true, between) + noise


def drawn(state, key, prompts, *, kind='', exact=False):
  """Completions as they are trained on, with rewards, and what is true of them."""
  keys = jax.random.split(key, 5)
  asked = jax.random.randint(keys[0], (prompts, 1), 0, NET.vocab)
  batch = small.sample(NET, state.params['policy'], keys[1], asked, GROUP)
  true = gold(batch)
  batch = batch.replace(reward=true if exact else learned(keys[2], true))
  if not kind:
    return batch, true
  alike = kind == 'alike'
  share = np.ones(GROUP) if alike else filtration.weights(np.arange(GROUP), kind)
  chance = jnp.asarray(share)[order(keys[3], batch.reward)][:, None]
  rows = jax.random.categorical(keys[4], jnp.log(chance), shape=(prompts, GROUP))
  pick = lambda x: jnp.take_along_axis(x, rows, 1)
  behavior = jnp.take_along_axis(batch.behavior_logp, rows[..., None], 1)
  tokens = jnp.take_along_axis(batch.completions, rows[..., None], 1)
  batch = batch.replace(
    completions=tokens, behavior_logp=behavior, reward=pick(batch.reward)
  )
  return batch, pick(true)


def draw(state, key, **given):
  batch, _ = drawn(state, key, PROMPTS, **given)
  return batch, small.spent(batch)


def measure(state, key, **given):
  """The true reward of all completions; R^2 of the reward with it, of those kept."""
  plain, _ = drawn(state, key, 64)
  kept, true = drawn(state, key, 256, **given)
  fit = jnp.square(jnp.corrcoef(kept.reward.ravel(), true.ravel())[0, 1])
  return {'gold': gold(plain).mean(), 'fit': jnp.nan_to_num(fit)}


def parts(told):
  last = {k: x['gold'] for k, x in told.last.items()}
  noisy = ['PPO', *FILTERS]
  gain = lambda name, exact='': last[name + exact] - last['PPO' + exact]
  fits = np.stack([told.first[k]['fit'] for k in noisy], -1)
  golds = np.stack([last[k] for k in noisy], -1)
  places = lambda x: x.argsort(-1).argsort(-1)
  agree = [np.corrcoef(*x)[0, 1] for x in zip(places(fits), places(golds))]
  return {
    'true reward, best-random less PPO': gain('best-random'),
    'best-worst less PPO': gain('best-worst'),
    'PPO less best alone': -gain('best'),
    'gain of best-random less that with the exact reward': gain('best-random')
    - gain('best-random', ', exact'),
    'gain of best-worst less that with the exact reward': gain('best-worst')
    - gain('best-worst', ', exact'),
    'rank correlation of R^2 at the start with the true reward at the end': np.array(
      agree
    ),
  }
