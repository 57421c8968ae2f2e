"""Tables that learn: each fails for one reason, and each optimum has a closed form.

Every completion, or every group of two, is in the batch, and counts by its probability
under the policy that is trained: an update is then the expected one, without noise.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import build, types
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import Outputs, State


def make_state(tx, params, ref):
  zero = jnp.int32(0)
  return State(zero, zero, zero, params, tx.init(params), ref, {}, jax.random.key(0))


def make_batch(prompts, completions, reward):
  """Prompts [B] of one token; completions [B, G, T], all of them whole."""
  completions = np.asarray(completions, np.int32)
  b, g, t = completions.shape
  batch = types.make_batch(
    np.asarray(prompts, np.int32).reshape(b, 1),
    np.ones(b, np.int32),
    completions,
    np.full((b, g), t, np.int32),
  )
  reward = np.asarray(reward, np.float32)
  return jax.tree.map(jnp.asarray, batch.replace(reward=reward))


def reader(row):
  """A `forward` of tables: `row(batch)` [B, G, T] is the row each token looks up."""

  def forward(params, frozen, batch, needs):
    place = row(batch)

    def logp(table):
      full = jax.nn.log_softmax(table)[place]
      return jnp.take_along_axis(full, batch.completions[..., None], -1)[..., 0]

    found = {}
    if 'logp' in needs:
      found['logp'] = logp(params['policy'])
    if 'ref_logp' in needs:
      found['ref_logp'] = logp(frozen['ref'])
    if 'value' in needs:
      found['value'] = params['critic'][place]
    return Outputs(**found)

  return forward


def expected(method):
  """`method` with each group counted by its probability instead of once."""

  def prepare(state, batch):
    state, batch = method.prepare(state, batch)
    logp = batch.old_logp.sum((1, 2))
    chance = len(logp) * jax.nn.softmax(logp)[:, None]
    return state, batch.replace(advantage=batch.advantage * chance)

  return method._replace(prepare=prepare)


def train(forward, tx, method, state, batch, steps):
  step = make_update_step(forward, tx, method)
  run = jax.jit(
    lambda state: jax.lax.scan(
      lambda state, _: (step(state, batch)[0], None), state, None, steps
    )[0]
  )
  return run(state)


def close(got, want, atol=1e-3):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def random(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def rloo_optimum(scores, beta, place, prompts):
  """Trains rloo on all pairs of tokens after each prompt: (probabilities, ref)."""
  n, v = scores.shape
  cases = np.array([(x, i, j) for x in prompts for i, j in np.ndindex(v, v)])
  pairs = cases[:, 1:]
  batch = make_batch(
    cases[:, 0], pairs[..., None], np.asarray(scores)[place(cases[:, :1]), pairs]
  )
  forward = reader(
    lambda b: jnp.broadcast_to(place(b.prompts)[:, None], (*pairs.shape, 1))
  )
  ref, tx = random(n, v), optax.sgd(2.0 * len(prompts))
  state = make_state(tx, {'policy': jnp.zeros((n, v))}, {'ref': ref})
  state = train(
    forward, tx, expected(build.method('rloo', beta=beta)), state, batch, 1000
  )
  return jax.nn.softmax(state.params['policy']), jax.nn.log_softmax(ref)


def test_one_token_is_right():
  """The optimum of E[r] - beta KL(pi || ref): ref exp(r / beta) / Z."""
  scores = jnp.array([[0.0, 0.0, 1.0, 0.0]])
  got, ref = rloo_optimum(scores, 0.5, lambda prompt: prompt * 0, [0])
  close(got, jax.nn.softmax(ref + scores / 0.5))


def test_it_depends_on_the_prompt():
  """The right token is the prompt's own: three optima, not their average."""
  scores = jnp.eye(3) + 0.3 * random(3, 3, seed=1)
  got, ref = rloo_optimum(scores, 0.5, lambda prompt: prompt, range(3))
  close(got, jax.nn.softmax(ref + scores / 0.5))


def test_it_depends_on_the_position():
  """The reward adds over three places, the policy factorises: an optimum per place."""
  t, v = 3, 3
  every = np.array(list(itertools.product(range(v), repeat=t)))[:, None]
  scores = np.eye(t, v) + 0.3 * np.asarray(random(t, v, seed=1))
  batch = make_batch(np.zeros(len(every)), every, scores[np.arange(t), every].sum(-1))
  forward = reader(
    lambda b: jnp.broadcast_to(jnp.arange(t)[None, None], b.completions.shape)
  )
  ref, tx = random(t, v), optax.sgd(2.0)
  state = make_state(tx, {'policy': jnp.zeros((t, v))}, {'ref': ref})
  method = expected(build.method('rloo', beta=0.5, advantage='none'))
  got = train(forward, tx, method, state, batch, 1000).params['policy']
  want = jax.nn.softmax(jax.nn.log_softmax(ref) + scores / 0.5)
  close(jax.nn.softmax(got), want)


# ---- Credit over time ----------------------------------------------------------------
# Two tokens, three times, a fair coin each: 8 completions, 7 states (a binary tree:
# the root is 1, the children of i are 2 i and 2 i + 1).

PATHS = np.array(list(itertools.product((0, 1), repeat=3)))[:, None]


def node(batch):
  """The state before each token: [B, G, T]."""
  y = batch.completions
  second = 2 + y[..., 0]
  return jnp.stack([jnp.ones_like(second), second, 2 * second + y[..., 1]], -1)


def taught(leaves, steps=2000):
  """A critic trained by ppo under a policy that stays put: (state, batch, method)."""
  batch = make_batch(np.zeros(8), PATHS, leaves[:, None])
  tx = optax.partition(
    {'policy': optax.set_to_zero(), 'critic': optax.sgd(2.0)},
    {'policy': 'policy', 'critic': 'critic'},
  )
  method = build.method('ppo', beta=0.0, value_coef=1.0, value_clip=1e3)
  params = {'policy': jnp.zeros((8, 2)), 'critic': random(8)}
  state = make_state(tx, params, {'ref': jnp.zeros((8, 2))})
  return train(reader(node), tx, method, state, batch, steps), batch, method


def test_the_critic_finds_the_true_values():
  """The mean of the leaves under each state, by lam 0.95."""
  leaves = np.asarray(random(8, seed=3))
  want = [leaves.mean(), *leaves.reshape(2, 4).mean(1), *leaves.reshape(4, 2).mean(1)]
  close(taught(leaves)[0].params['critic'][1:], want)


def test_credit_goes_to_the_token_that_earned_it():
  """The first token decides the reward (0 or 1); the others have no advantage.

  With true values (1/2 at the root, then 0 or 1) the advantages are +-1/2, 0, 0: of
  mean 0 and variance 1/12 over 24 tokens, so that the whitened one is +-sqrt 3.
  """
  first = PATHS[:, 0, 0].astype(np.float32)
  state, batch, method = taught(first)
  out = reader(node)(state.params, state.frozen, batch, ('logp', 'value', 'ref_logp'))
  batch = batch.replace(old_logp=out.logp, ref_logp=out.ref_logp, old_value=out.value)
  got = method.prepare(state, batch)[1].advantage[:, 0]
  close(got[:, 0], 3**0.5 * (2 * first - 1), 2e-3)
  close(got[:, 1:], np.zeros((8, 2)), 2e-3)


def test_a_late_reward_teaches_the_early_token():
  """From a fair coin, ppo learns the path of 1, 0, 1: its chance passes 95%."""
  leaves = np.where((PATHS[:, 0] == [1, 0, 1]).all(-1), 1.0, 0.0)
  batch = make_batch(np.zeros(8), PATHS, leaves[:, None])
  tx = optax.adam(0.05)
  params = {'policy': jnp.zeros((8, 2)), 'critic': jnp.zeros(8)}
  state = make_state(tx, params, {'ref': jnp.zeros((8, 2))})
  method = build.method('ppo', beta=0.0, value_coef=1.0)
  state = train(reader(node), tx, method, state, batch, 200)
  logp = reader(node)(state.params, {}, batch, ('logp',)).logp.sum(-1)[:, 0]
  assert float(jnp.exp(logp) @ leaves) > 0.95
