"""Who picks the right one of many chains of sums: a judge of steps, or of outcomes."""

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.methods.orm import orm
from jaxrl_llm.methods.prm import prm
from jaxrl_llm.ops import mlp, step_scores
from jaxrl_llm.types import Outputs

METHODS = ('prm', 'orm')
METRICS = ('right', 'sound', 'majority', 'one')
BASE, LENGTH, ERRORS = 5, 6, 0.25  # A step is wrong so often.
SEEDS, STEPS, QUESTIONS, ANSWERS = 8, 2400, 5000, 64


def run():
  data = jax.vmap(lambda i: written(jax.random.key(i + 500), QUESTIONS, 4))(
    jnp.arange(SEEDS)
  )
  steps = prm(labels='signed')
  return {
    'ORM': trained(orm(), some, data, lambda score, mask: score[..., -1]),
    'PRM, product': trained(steps, up_to_wrong, data, step_scores.prod),
    'PRM, least': trained(steps, up_to_wrong, data, step_scores.least),
  }


def trained(method, draw, data, join):
  keys = jax.random.split(jax.random.key(0), SEEDS)
  start = {'reward': jax.vmap(born)(keys)}
  how = dict(rate=3e-3, steps=STEPS, every=STEPS // 10, measure=measure(join))
  return small.run(forward, draw, method, start, frozen={'data': data}, **how)[1]


def written(key, questions, answers):
  """Digits [B, T], and chains of their sums [B, G, T], each step from the one before;
  a wrong step is off by any number.
  """
  keys = jax.random.split(key, 3)
  digits = jax.random.randint(keys[0], (questions, LENGTH), 0, BASE)
  shape = (questions, answers, LENGTH)
  wrong = jax.random.bernoulli(keys[1], ERRORS, shape)
  off = wrong * jax.random.randint(keys[2], shape, 1, BASE)
  return digits, jnp.cumsum(digits[:, None] + off, -1) % BASE, ~wrong


def some(state, key):
  """Solutions with their labels, of all steps and of the outcome."""
  rows = jax.random.randint(key, (32,), 0, QUESTIONS)
  digits, chains, sound = (x[rows] for x in state.frozen['data'])
  batch = small.stored(digits, chains)
  right = chains[..., -1] == (digits.sum(-1) % BASE)[:, None]
  told = {'step_label': jnp.where(sound, 1.0, -1.0)}
  return batch.replace(reward=1.0 * right, extra=told), small.spent(batch)


def up_to_wrong(state, key):
  """Without the steps after the first wrong one."""
  batch, took = some(state, key)
  wrong = batch.extra['step_label'] < 0
  return batch.replace(mask=1.0 * (jnp.cumsum(wrong, -1) - wrong == 0)), took


def born(key):
  """A network of each step, and one of that and of all steps up to it together."""
  one, two = jax.random.split(key)
  return {
    'step': mlp.init(one, (3 * BASE, 64, 32)),
    'chain': mlp.init(two, (64, 64, 1)),
  }


def forward(params, frozen, batch, needs):
  """The score at each step, which is seen."""
  del frozen, needs
  return Outputs(token_score=scores(params['reward'], batch))


def scores(tree, batch):
  chains = batch.completions
  before = jnp.pad(chains, ((0, 0), (0, 0), (1, 0)))[..., :-1]
  digits = jnp.broadcast_to(batch.prompts[:, None], chains.shape)
  seen = jax.nn.one_hot(jnp.stack([digits, before, chains], -1), BASE)
  step = mlp.apply(tree['step'], seen.reshape(*chains.shape, -1), jnp.tanh)
  both = jnp.concatenate([step, jnp.cumsum(step, -2)], -1)
  return mlp.apply(tree['chain'], both, jnp.tanh)[..., 0]


def measure(join):
  """How often the best of 64 is right, and right in all steps; majority, and one."""

  def look(state, key):
    digits, chains, sound = written(key, 256, ANSWERS)
    batch = small.stored(digits, chains)
    at = join(scores(state.params['reward'], batch), batch.mask).argmax(-1)[:, None]
    due = digits.sum(-1) % BASE
    right, sound = chains[..., -1] == due[:, None], sound.all(-1)
    votes = jax.nn.one_hot(chains[..., -1], BASE).sum(1)
    return {
      'right': jnp.take_along_axis(right, at, -1).mean(),
      'sound': jnp.take_along_axis(sound, at, -1).mean(),
      'majority': (votes.argmax(-1) == due).mean(),
      'one': right.mean(),
    }

  return look


def parts(told):
  steps, outcomes = told.last['PRM, product'], told.last['ORM']
  return {
    'right: PRM less ORM': steps['right'] - outcomes['right'],
    'right: PRM less majority': steps['right'] - steps['majority'],
    'right in all steps: PRM less ORM': steps['sound'] - outcomes['sound'],
  }
