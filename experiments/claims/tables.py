"""A world without networks: a policy is a table [X, V], and every expectation exact.

  logits of context x = base[x] + features[x] theta,  or base[x] + theta[x]

Every token of a completion is drawn from its context's row. small.run takes `forward`
in the place of a network; what the seeds' worlds are stands in State.frozen['world'].
"""

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxrl_llm.forward import sensor
from jaxrl_llm.types import Array, Batch, Outputs, State

NOTHING = {'rollouts': 0.0, 'tokens': 0.0}  # What stored completions take.


def logits(tree: dict, world: dict) -> Array:
  moved = tree['theta']
  return world['base'] + (world['features'] @ moved if 'features' in world else moved)


def forward(params, frozen, batch: Batch, needs) -> Outputs:
  """Log-probs of policy and reference, or whatever roles have a theta."""
  trees, found = {'params': params, 'frozen': frozen}, {}
  for need in needs:
    tree, role, _, _ = sensor(need)
    table = jax.nn.log_softmax(logits(trees[tree][role], frozen['world']))
    rows = table[batch.prompts[:, 0]][:, None, None]
    hot = jax.nn.one_hot(batch.completions, table.shape[-1])
    found[need] = jnp.sum(hot * rows, -1)
  return Outputs(**found)


def policy(state: State) -> Array:
  """Its log-probs [X, V]."""
  return jax.nn.log_softmax(logits(state.params['policy'], state.frozen['world']))


def kl(logp: Array, other: Array) -> Array:
  """From the first to the second, mean over contexts."""
  return jnp.sum(jnp.exp(logp) * (logp - other), -1).mean()


def begun(seeds: int, *shape: int) -> dict:
  """theta 0, which is the base, of every seed."""
  return {'theta': jnp.zeros((seeds, *shape))}


def train(method, draw, world: dict, shape, *, data=None, **how):
  """small.run from the base, which is the reference too; the records of each seed.

  Args:
    world: base [seeds, X, V], and features [seeds, X, V, D] where there are any.
    shape: of theta.
    data: arrays [seeds, ...] that `draw` finds in State.frozen['data'].
  """
  seeds = len(world['base'])
  frozen = {'world': world, 'ref': begun(seeds, *shape), 'data': data or {}}
  start = {'policy': begun(seeds, *shape)}
  return small.run(forward, draw, method, start, frozen=frozen, **how)[1]


# ---- Log-linear policies, and rankings by a reward of the same features --------------


def linear(seeds: int, *, contexts: int = 60, actions: int = 8, size: int = 6) -> dict:
  """Worlds with reward [seeds, X, V] = features w; `w` is what is to be learned."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(seeds, contexts, actions, size))
  w = 0.7 * rng.normal(size=(seeds, size))
  base = jax.nn.log_softmax(0.5 * rng.normal(size=(seeds, contexts, actions)))
  reward = np.einsum('sxvd,sd->sxv', features, w)
  found = dict(features=features, w=w, base=base, reward=reward)
  return {k: jnp.asarray(x, jnp.float32) for k, x in found.items()}


def ranked(world: dict, count: int, size: int) -> dict:
  """Of each seed `count` contexts, and `size` different completions of the reference
  as Plackett and Luce rank them by reward, the best first: of two, Bradley and Terry.
  """
  rng = np.random.default_rng(1)
  base, reward = np.asarray(world['base']), np.asarray(world['reward'])
  x = rng.integers(base.shape[1], size=(len(base), count))
  noisy = lambda table: (
    np.stack([t[i] for t, i in zip(table, x)])
    + rng.gumbel(size=(*x.shape, base.shape[2]))
  )
  drawn = np.argsort(-noisy(base), -1)[..., :size]
  by_worth = np.argsort(-np.take_along_axis(noisy(reward), drawn, -1), -1)
  y = np.take_along_axis(drawn, by_worth, -1)
  return {'x': jnp.asarray(x[..., None]), 'y': jnp.asarray(y[..., None])}


def all_of(state: State, key: Array):
  """Every example of `ranked` at once; `reward` counts down from the best."""
  del key
  data = state.frozen['data']
  batch = small.stored(data['x'], data['y'])
  worth = jnp.arange(batch.length.shape[1])[::-1]
  return batch.replace(reward=jnp.broadcast_to(1.0 * worth, batch.length.shape)), {
    **NOTHING
  }


def gain(state: State, key: Array) -> dict:
  """The mean reward above that of the reference, and the distance from it."""
  del key
  world, logp = state.frozen['world'], policy(state)
  base, mean = world['base'], lambda p: jnp.sum(p * world['reward'], -1).mean()
  return {
    'gain': mean(jnp.exp(logp)) - mean(jnp.exp(base)),
    'kl': kl(logp, base),
  }


def within(curves, bound: float, kept: int):
  """Records with the best gain so far while the KL was at most `bound`, every
  `kept`-th of them.
  """
  for records in curves:
    best = 0.0
    for record in records:
      best = max(best, record['gain']) if record['kl'] <= bound else best
      record['best'] = best
  return [records[::kept] for records in curves]
