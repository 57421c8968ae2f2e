"""A game like rock, paper, scissors: whose last policy is at rest."""

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.evaluate.exploitability import gap, regularised_gap
from jaxrl_llm.methods.inpo import inpo
from jaxrl_llm.methods.nash_md import nash_md
from jaxrl_llm.methods.sppo import sppo
from jaxrl_llm.ops import preferences

METHODS = ('nash_md', 'inpo', 'sppo')
METRICS = ('exploitability', 'average', 'regularised')
GAME = ((0.5, 0.9, 0.2), (0.1, 0.5, 0.8), (0.8, 0.2, 0.5))
TABLE, TAU, SHARE = jnp.array(GAME), 0.1, 0.05
SEEDS, ROUNDS, WIDTH, BEGIN = 6, 400, 512, (0.4, 0.1, -0.3)


def run():
  judge = lambda reward: preferences.matrix(reward, table=GAME)
  step = 0.5  # Of mirror descent; INPO's eta is 1 / step, tau of eta the share.
  return {
    'SPPO': arm(sppo(eta=step, ends=False, judge=judge), 4, epochs=10),
    'INPO': arm(inpo(eta=1 / step, tau=TAU, judge=judge), 2, epochs=10),
    'Nash-MD': arm(nash_md(tau=TAU, judge=judge), 2, mixture=SHARE),
  }


def arm(method, group, *, mixture=0.0, epochs=1):
  """`epochs` updates fit what the round's batch says."""
  both = method._replace(extra=method.extra | {'sum': jnp.zeros(3)}, after=summed)
  world = {'base': jnp.zeros((SEEDS, 1, 3))}
  frozen = {'world': world, 'ref': tables.begun(SEEDS, 1, 3)}
  start = {'policy': {'theta': jnp.tile(jnp.array(BEGIN), (SEEDS, 1, 1))}}
  draw = lambda state, key: drawn(state, key, group, mixture)
  how = dict(rate=0.01, steps=ROUNDS, every=20, measure=measure, epochs=epochs)
  return small.run(tables.forward, draw, both, start, frozen=frozen, **how)[1]


def summed(state, batch, metrics):
  """Adds up the policies of all rounds."""
  del batch, metrics
  p = jnp.exp(tables.policy(state)[0])
  return state.replace(extra=state.extra | {'sum': state.extra['sum'] + p})


def drawn(state, key, group, mixture):
  """The policy's arms; with a mixture the second one's is drawn from that."""
  mine = tables.policy(state)[0]
  rows = jnp.tile(mine, (group, 1))
  if mixture:
    rows = rows.at[1].set((1 - mixture) * mine)  # The reference is uniform.
  arms = jax.random.categorical(key, rows, shape=(WIDTH, group))
  batch = small.stored(jnp.zeros((WIDTH, 1), jnp.int32), arms[..., None])
  return batch.replace(reward=arms.astype(jnp.float32)), small.spent(batch)


def measure(state, key):
  """By how much the best answer to a policy beats it: it, their average, and with the
  pull to the reference counted.
  """
  del key
  p, count = jnp.exp(tables.policy(state)[0]), jnp.maximum(state.step, 1)
  return {
    'exploitability': gap(TABLE, p),
    'average': gap(TABLE, state.extra['sum'] / count),
    'regularised': regularised_gap(TABLE, p, jnp.full(3, 1 / 3), tau=TAU),
  }


def parts(told):
  last = {arm: found['exploitability'] for arm, found in told.last.items()}
  return {
    'exploitability: SPPO less Nash-MD': last['SPPO'] - last['Nash-MD'],
    'the same: SPPO less INPO': last['SPPO'] - last['INPO'],
    "SPPO's last policy less the average of all": last['SPPO']
    - told.last['SPPO']['average'],
    "0.05 less Nash-MD's": 0.05 - last['Nash-MD'],
    "0.05 less INPO's": 0.05 - last['INPO'],
  }
