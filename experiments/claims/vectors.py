"""A world for reward models: of a completion they read a vector, extra['x'] [B, G, D].

small.run takes `forward` in the place of a network. A role is a small network of the
package (ops/mlp.py); an ensemble has one more leading axis, of its members.
"""

import jax
import jax.numpy as jnp
import small

from jaxrl_llm.ops import mlp
from jaxrl_llm.types import Array, Batch, Outputs


def forward(params, frozen, batch: Batch, needs) -> Outputs:
  """What is read of `x`, and of extra['asked'] [B, G, E], the prompt's own vector."""
  del frozen
  x, found = batch.extra['x'], {}
  read = {
    'score': lambda: say(params['reward'], x)[..., 0],
    'attributes': lambda: say(params['reward'], x),
    'members': lambda: each(params['ensemble'], x),
    'embedding': lambda: x,
    'asked': lambda: batch.extra['asked'],
    'own': lambda: params['own'],
  }
  for need in needs:
    found[need] = read[need]()
  return Outputs(**found)


def say(tree: dict, x: Array) -> Array:
  """[..., D] to [..., outputs]."""
  return mlp.apply(tree, x, jnp.tanh)


def each(ensemble: dict, x: Array) -> Array:
  """What every member says: [..., K]."""
  return jax.vmap(lambda tree: say(tree, x)[..., 0], out_axes=-1)(ensemble)


def born(seeds: int, *sizes: int, members: int = 0) -> dict:
  """Networks with a leading axis of seeds, and one of members if there are any."""
  shape = (seeds, members) if members else (seeds,)
  make = lambda key: mlp.init(key, sizes)
  for _ in shape:
    make = jax.vmap(make)
  return make(jax.random.split(jax.random.key(0), shape))


def compared(x: Array, **extra: Array) -> Batch:
  """Completions [B, G, D] without text, the best of a group first."""
  b, g, _ = x.shape
  none = jnp.zeros((b, g, 1), int)
  batch = small.stored(none[:, 0], none)
  worth = jnp.broadcast_to(1.0 * jnp.arange(g)[::-1], (b, g))
  return batch.replace(reward=worth, extra={'x': x} | extra)


def judged(key: Array, x: Array, score: Array, flipped: float = 0.0) -> Array:
  """Pairs [B, 2, D] with the chosen first: Bradley and Terry's choice by `score`, of
  which a share is turned round.
  """
  one, two = jax.random.split(key)
  first = jax.random.bernoulli(one, jax.nn.sigmoid(score[:, 0] - score[:, 1]))
  first ^= jax.random.bernoulli(two, flipped, first.shape)
  return jnp.where(first[:, None, None], x, x[:, ::-1])
