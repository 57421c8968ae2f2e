"""Two halves of the users want the opposite: one order for all, or one for each."""

import jax
import jax.numpy as jnp
import small
import tables
import vectors

from jaxrl_llm.methods.bradley_terry import bradley_terry
from jaxrl_llm.methods.vpl import vpl

METHODS = ('vpl',)
METRICS = ('accuracy', 'unknown')
SEEDS, STEPS, USERS, SIZE = 6, 400, 64, 3


def run():
  small_vpl = dict(latent=4, hidden=32)
  return {
    'Bradley-Terry, 5 pairs': everybody(5),
    'VPL, 4 known': of_users(vpl(**small_vpl), 5),
    'VPL, 8 known': of_users(vpl(**small_vpl), 9),
    'VPL, 4 known, KL at 0.01': of_users(vpl(kl_coef=0.01, **small_vpl), 5),
  }


def users(key, count, pairs):
  """Completions [count, 2 pairs, D], in twos the better one for the user first: that
  with the greater first number for half of the users, for the others the smaller one.
  """
  x = jax.random.normal(key, (count, pairs, 2, SIZE))
  likes = jnp.sign(jnp.arange(count) % 2 - 0.5)[:, None, None]
  order = jnp.argsort(-x[..., 0] * likes, -1)
  return jnp.take_along_axis(x, order[..., None], 2).reshape(count, -1, SIZE)


def of_users(method, pairs):
  """A group is a user: the pair that is asked about, and the others that are known."""
  keys = jax.random.split(jax.random.key(0), SEEDS)
  start = {'own': jax.vmap(lambda key: method.own(key, SIZE))(keys)}

  def score(params, x):
    batch = vectors.compared(x)
    return method.serve(vectors.forward(params, {}, batch, method.needs))

  return train(method, start, pairs, lambda x: x, score)


def everybody(pairs):
  """As many pairs, each by itself."""
  start = {'reward': vectors.born(SEEDS, SIZE, 32, 32, 1)}
  score = lambda params, x: vectors.say(params['reward'], x)[..., 0]
  return train(bradley_terry(), start, pairs, lambda x: x.reshape(-1, 2, SIZE), score)


def train(method, start, pairs, grouped, score):
  def draw(state, key):
    x = grouped(users(key, USERS, pairs))
    return vectors.compared(x), dict(tables.NOTHING)

  def measure(state, key):
    """Of new users: the pair that is asked about, with the others known and without."""
    x = users(key, 512, pairs)
    right = lambda s: (s[:, 0] > s[:, 1]).mean()
    told = lambda x: right(score(state.params, x))
    return {'accuracy': told(x), 'unknown': told(x[:, :2])}

  how = dict(rate=3e-3, steps=STEPS, every=STEPS // 10, measure=measure)
  return small.run(vectors.forward, draw, method, start, **how)[1]


def parts(told):
  last = told.last
  single, known = last['Bradley-Terry, 5 pairs'], last['VPL, 4 known']
  return {
    'accuracy: VPL less Bradley-Terry': known['accuracy'] - single['accuracy'],
    'accuracy of VPL less 0.95': known['accuracy'] - 0.95,
    '0.55 less the accuracy of Bradley-Terry': 0.55 - single['accuracy'],
  }
