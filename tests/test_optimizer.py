"""Learning rates, decay, clipping and roles: what each update really does (AT-58)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxrl_llm import build, train
from jaxrl_llm.types import InputError

HALF = math.sqrt(3) / 2


@pytest.mark.parametrize(
  ('options', 'rates'),
  [
    # Constant: the first update is at the full rate.
    (dict(), [1] * 10),
    # Warm-up: update i has (i + 1) / 4 of the rate; none is zero.
    (dict(warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
    # Linear to 0 at update 10, which is the one after the last: the last is not zero.
    (dict(decay='linear'), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    # After 4 of warm-up, 6 are left: 1 - i / 6.
    (
      dict(decay='linear', warmup_steps=4),
      [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    ),
    # To a half: 1 - (i / 10) / 2.
    (
      dict(decay='linear', final=0.5),
      [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55],
    ),
    # (1 + cos(pi i / 6)) / 2: cosines 1, sqrt(3)/2, 1/2, 0, -1/2, -sqrt(3)/2.
    (
      dict(decay='cosine', warmup_steps=4),
      [0.25, 0.5, 0.75, 1, 1, (1 + HALF) / 2, 0.75, 0.5, 0.25, (1 - HALF) / 2],
    ),
  ],
)
def test_ten_rates_by_hand(options, rates):
  rate = build.schedule(learning_rate=2.0, total_steps=10, **options)
  got = [float(rate(i)) for i in range(10)]
  np.testing.assert_allclose(got, 2 * np.array(rates), rtol=1e-6)


def role(name='sgd', rate=1.0, **options):
  return dict(name=name, learning_rate=rate, options=options)


def moved(config, params, grads, updates=1, total=10):
  """Parameter changes of each update."""
  tx, rates = build.optimizer(config, total)
  state, changes = tx.init(params), []
  for _ in range(updates):
    change, state = tx.update(grads, state, params)
    changes.append(change)
  return changes, rates


def test_the_rate_named_is_the_rate_applied():
  """Under SGD the change is minus rate times gradient: the rate can be read off."""
  c = role(rate=0.5) | dict(warmup_steps=4, decay='linear')
  grads = {'policy': {'w': jnp.full(3, 4.0)}}
  changes, rates = moved({'policy': c}, grads, grads, updates=10)
  used = [float(-x['policy']['w'][0] / 4.0) for x in changes]
  due = [0.125, 0.25, 0.375, 0.5, 0.5, 2.5 / 6, 2 / 6, 1.5 / 6, 1 / 6, 0.5 / 6]
  np.testing.assert_allclose(used, due, rtol=1e-6)
  np.testing.assert_allclose([float(rates['policy'](i)) for i in range(10)], due, 1e-6)


def test_the_rate_logged_is_the_rate_used():
  """|change| = rate |gradient| in a run of 2 updates per step and 6 steps: 12 updates.

  Linear decay from 0.12 in 12 updates: the first of step s has 0.12 - 0.02 s.
  """
  c = runs.config('sft', plan=dict(minibatches=2))
  c.optimizer = dict(policy=role(rate=0.12) | dict(decay='linear'))
  run = runs.assembled(c)
  state, meta = run.state, {'step': 0}
  logged = []
  for _ in range(3):
    state, metrics, _ = train.one_step(run, state, meta)
    logged.append(metrics['lr/policy'])
  np.testing.assert_allclose(logged, [0.12, 0.10, 0.08], rtol=1e-6)
  assert int(state.applied) == 6

  c = runs.config('sft', steps=3)
  c.optimizer = dict(policy=role(rate=0.3) | dict(warmup_steps=2))
  run = runs.assembled(c)
  state, meta = run.state, {'step': 0}
  for due in (0.15, 0.3):
    before = jax.tree.map(np.array, state.params['policy'])
    state, metrics, _ = train.one_step(run, state, meta)
    change = jax.tree.map(
      lambda a, b: np.asarray(a) - b, state.params['policy'], before
    )
    length = math.sqrt(sum(float(np.square(x).sum()) for x in jax.tree.leaves(change)))
    used = length / metrics['grad_norm/policy']
    np.testing.assert_allclose(metrics['lr/policy'], due, rtol=1e-6)
    np.testing.assert_allclose(
      used, due, rtol=1e-2
    )  # The change is a small difference.


def test_decay_spares_norms_and_scalars():
  """No gradient: AdamW's change is -rate decay w = -0.5 * 0.1 * 2 for what decays."""
  two = lambda *shape: jnp.full(shape, 2.0)
  params = {
    'critic': {
      'embed': two(3, 2),
      'final_norm': two(2),
      'layers': {'q': two(1, 2, 2), 'attn_norm': two(1, 2), 'mlp_norm': two(1, 2)},
      'scores': two(2),
    }
  }
  grads = jax.tree.map(jnp.zeros_like, params)
  c = role('adamw', 0.5, weight_decay=0.1) | dict(no_decay='norm|scores')
  changes, _ = moved({'critic': c}, params, grads)
  got = {k: float(v.ravel()[0]) for k, v in leaves(changes[0])}
  due = {'embed': -0.1, 'layers/q': -0.1}
  assert got.keys() > due.keys()
  for name, value in got.items():
    assert value == pytest.approx(due.get(name, 0.0), abs=1e-7)
  changes, _ = moved({'critic': c | dict(no_decay='')}, params, grads)
  assert {round(float(v.ravel()[0]), 6) for _, v in leaves(changes[0])} == {-0.1}


def leaves(tree):
  found = jax.tree_util.tree_leaves_with_path(tree['critic'])
  return [(jax.tree_util.keystr(p, simple=True, separator='/'), x) for p, x in found]


def test_roles_have_optimizers_of_their_own():
  """Adam's first change is -rate sign(g); SGD's is -rate g; gradients 4 and -3."""
  params = {'policy': {'w': jnp.ones(1)}, 'critic': {'w': jnp.ones(1)}}
  grads = {'policy': {'w': jnp.array([4.0])}, 'critic': {'w': jnp.array([-3.0])}}
  config = {'policy': role('adam', 0.1), 'critic': role('sgd', 0.5)}
  (change,), rates = moved(config, params, grads)
  np.testing.assert_allclose(change['policy']['w'], [-0.1], rtol=1e-5)
  np.testing.assert_allclose(change['critic']['w'], [1.5], rtol=1e-6)
  assert [float(rates[r](0)) for r in ('policy', 'critic')] == [
    pytest.approx(0.1),
    pytest.approx(0.5),
  ]


def test_each_role_is_clipped_by_its_own_norm():
  """Norm 5 clips to 1: (3, 4) -> (0.6, 0.8). The critic's norm 0.5 is let alone."""
  grads = {'policy': {'w': jnp.array([3.0, 4.0])}, 'critic': {'w': jnp.array([0.5])}}
  config = {r: role() | dict(clip=1.0) for r in grads}
  (change,), _ = moved(config, grads, grads)
  np.testing.assert_allclose(change['policy']['w'], [-0.6, -0.8], rtol=1e-6)
  np.testing.assert_allclose(change['critic']['w'], [-0.5], rtol=1e-6)
  (change,), _ = moved({r: role() | dict(clip=0) for r in grads}, grads, grads)
  np.testing.assert_allclose(change['policy']['w'], [-3.0, -4.0], rtol=1e-6)


def test_other_optimizers_by_name():
  """Lion's first change is -rate sign(g); momentum 0.5 makes SGD's second 1.5 g."""
  grads = {'policy': {'w': jnp.array([4.0, -0.01])}}
  (change,), _ = moved({'policy': role('lion', 0.1, weight_decay=0)}, grads, grads)
  np.testing.assert_allclose(change['policy']['w'], [-0.1, 0.1], rtol=1e-6)
  changes, _ = moved({'policy': role('sgd', 1.0, momentum=0.5)}, grads, grads, 2)
  np.testing.assert_allclose(changes[1]['policy']['w'], [-6.0, 0.015], rtol=1e-6)
  # A dotted path: prodigy is optax.contrib's, and its own first rate is 1e-6.
  (change,), _ = moved({'policy': role('optax.contrib.prodigy', 1.0)}, grads, grads)
  assert (np.sign(change['policy']['w']) == [-1, 1]).all()


def test_an_option_of_another_optimizer_is_refused():
  with pytest.raises(InputError, match=r"config\.optimizer\.policy: no option 'b1'"):
    build.optimizer({'policy': role('sgd', b1=0.9)}, 10)
