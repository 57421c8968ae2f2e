"""IPO's bandit: three arms, of which each pair is always judged the same way."""

import jax
import jax.numpy as jnp
import small
import tables

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.methods.ipo import ipo

METHODS = ('ipo',)
METRICS = ('best_arm', 'optimum', 'error')
PAIRS = jnp.array([[0, 1], [1, 2], [0, 2]])
TAUS, SEEDS, STEPS = (0.1, 0.5, 1.0, 10.0), 10, 18_000


def run():
  found = {}
  for tau in TAUS:
    found[f'DPO, beta {tau}'] = arm(dpo(beta=tau), tau)
    found[f'IPO, tau {tau}'] = arm(ipo(tau=tau), tau)
  return found


def arm(method, tau):
  world = {'base': jnp.zeros((SEEDS, 1, 3))}
  how = dict(rate=0.01, steps=STEPS, every=STEPS // 20)
  return tables.train(method, draw, world, (1, 3), measure=measure(tau), **how)


def draw(state, key):
  """Nine pairs, the better arm first."""
  del state
  chosen = PAIRS[jax.random.randint(key, (9,), 0, len(PAIRS))]
  return small.stored(jnp.zeros((9, 1), jnp.int32), chosen[..., None]), {
    **tables.NOTHING
  }


def measure(tau):
  """IPO's optimum over these pairs has logits 1 / (3 tau) apart."""
  due = jax.nn.softmax(-jnp.arange(3) / (3 * tau))

  def found(state, key):
    del key
    p = jnp.exp(tables.policy(state)[0])
    return {'best_arm': p[0], 'optimum': due[0], 'error': abs(p - due).max()}

  return found


def parts(told):
  last = told.last
  return {
    f'best arm under DPO less 0.99, beta {tau}': last[f'DPO, beta {tau}']['best_arm']
    - 0.99
    for tau in TAUS
  } | {
    f"0.03 less IPO's error, tau {tau}": 0.03 - last[f'IPO, tau {tau}']['error']
    for tau in TAUS
  }
