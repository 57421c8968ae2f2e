"""SAFE: two critics under a soft minimum, and a KL that costs above a threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import toy
from test_by_hand import one, row
from test_constrained import with_start
from test_identities import close, gradient, off_policy, update

from jaxrl_llm import build, controllers, initial, types
from jaxrl_llm.ops import advantages, kl, surrogates, weights
from jaxrl_llm.step import weigh
from jaxrl_llm.types import InputError, Outputs

method = build.method


def carried(m, **extra):
  """The toy's state with what a method starts from, and these in place of it."""
  return with_start(m.extra | extra)


def test_the_soft_minimum_by_hand():
  """alpha 1, values 0 and -log 3: -(log(1 + 3) - log 2) = -log 2."""
  soft = surrogates.soft_minimum
  close(soft(0.0, -np.log(3.0), alpha=1.0), -np.log(2.0))
  close(soft(0.7, 0.7, alpha=0.3), 0.7)
  close(soft(0.2, 0.9, alpha=1e-3), 0.2, atol=1e-3)
  close(soft(0.2, 0.9, alpha=1e3), 0.55, atol=1e-3)


def test_safe_by_hand():
  # Rewards 1 and -1, V_old 0: A = (1, -1). Ratio 1.5 twice: gain (1.2 - 1.5) / 2.
  # Both critics say 1 and near is .2: errors (0, .8), which is .5 (.8 - .25) = .275,
  # and (2, 1.2), .875 and .475: the mean over completions is .40625.
  m = method('safe', penalty=0.0, reward_scale='none')
  old, zero = jnp.full((1, 2, 1), -1.0), jnp.zeros((1, 2, 1))
  ids = np.zeros((1, 2, 1), np.int32)
  batch = types.make_batch(np.zeros((1, 1), np.int32), np.ones(1), ids, [[1, 1]])
  batch = jax.tree.map(jnp.asarray, batch).replace(
    reward=row(1, -1), old_logp=old, old_value=zero, old_twin_value=zero
  )
  _, batch = m.prepare(carried(m), batch)
  close(batch.advantage[..., 0], row(1, -1))
  out = Outputs(logp=old + np.log(1.5), value=zero + 1, twin_value=zero + 1)
  got, found = m.loss(out, weigh(batch, m))
  close(found['baseline_loss'][0], 0.40625)
  close(got, 0.15 + 0.5 * 0.40625)


def test_the_baseline_is_the_prompts():
  """Values after the first chosen token, and before it, are not looked at."""
  m = method('safe', reward_scale='none')
  batch = toy.batch()
  mask = batch.mask.at[..., 0].set(0.0).at[..., 1].set(1.0)
  base = batch.replace(
    mask=mask, ref_logp=-mask, old_logp=-mask, old_entropy=mask, old_value=mask
  )
  other = jnp.arange(toy.T) != 1
  prepared = lambda wild: m.prepare(
    carried(m), base.replace(old_value=mask + wild, old_twin_value=0.3 * mask + wild)
  )[1]
  got, want = prepared(9.0 * other[None, None]), prepared(0.0 * other[None, None])
  np.testing.assert_array_equal(got.advantage, want.advantage)
  value = -0.3 * (np.logaddexp(-1 / 0.3, -0.3 / 0.3) - np.log(2))
  due = advantages.whiten(batch.reward - value, batch.valid)
  close(got.advantage[..., 0], due)


def test_without_critics_and_penalty_it_is_reinforce_of_whitened_rewards():
  m = method('safe', penalty=0.0, reward_scale='none')
  state = carried(m)
  silent = {k: jnp.zeros(toy.V) for k in ('critic', 'twin_critic')}
  state = state.replace(params=state.params | silent)
  same = dict(advantage=advantages.whiten, aggregate=weights.token_mean)
  close(gradient(m, state=state), gradient(method('reinforce', **same)))
  assert 'ref_logp' not in m.needs + m.prepare_needs


def test_two_critics_alike_stay_alike():
  """So that one of them starts at random, wherever the other is zero."""
  m = method('safe')
  state = carried(m)
  state = state.replace(
    params=state.params | {'twin_critic': state.params['critic'] * 1.0}
  )
  moved = update(m, state=state)[0].params
  close(moved['critic'], moved['twin_critic'])
  assert abs(moved['critic'] - state.params['critic']).max() > 1e-3
  heads = {
    r: initial.head(r, 4096, {}, jax.random.key(0))['scores'] for r in initial.SCORED
  }
  assert not heads['critic'].any() and not heads['cost_critic'].any()
  assert float(heads['twin_critic'].std()) == pytest.approx(0.02, rel=0.05)


def test_the_gate_by_hand():
  """R 1 at the first step: ema .05, e = .049, and each of three parts sees it.

  threshold = (.3 + (.3 + .01 + .05) .049) 1.5; KL by k2 of d = 5 is 12.5, of which a
  tenth counts; H = .4, so that 2 / .5 = 4.
  """
  gated, _, start = controllers.kl_gate(0.1, kl.k2)
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 1, 2), np.int32), [[2]]
  ).replace(
    reward=row(1), old_logp=one(-1, -2), ref_logp=one(-6, -7), old_entropy=one(0.2, 0.6)
  )
  batch = jax.tree.map(jnp.asarray, batch)
  state, got = gated(with_start(start), batch)
  threshold = 1.5 * (0.3 + 0.36 * 0.049)
  close(got.extra['kl_threshold'], [threshold])
  close(got.extra['kl_price'], [0.02 * (1.25 - threshold) * 4])
  # Again: ema .0975, e = .0465, sum .0955, change -.0025; KL 0: short 1.125.
  state = state.replace(step=jnp.int32(1))
  _, got = gated(state, batch.replace(ref_logp=batch.old_logp))
  steer = 0.3 * 0.0465 + 0.01 * 0.0955 - 0.05 * 0.0025
  close(got.extra['kl_threshold'], [1.5 * (0.3 + steer)])
  close(got.extra['kl_price'], [0.02 * (1.125 - 1.5 * (0.3 + steer)) * 4])


@pytest.mark.parametrize(
  'now, before, step, want',
  [
    (0.9, 0.0, 49, 1.5),
    (0.9, 0.88, 50, 1.2),  # The one step before the last fifty.
    (0.9, 0.895, 200, 1.0),  # Steady and high.
    (0.6, 0.595, 200, 0.8),
    (0.6, 0.58, 200, 1.2),
  ],
)
def test_phases(now, before, step, want):
  rewards = np.full(100, now)
  known = np.arange(100) <= step
  rewards[50:] = before
  rewards = jnp.asarray(np.where(known, rewards, 0.0), jnp.float32)
  assert float(controllers.phase(rewards, jnp.int32(step))) == pytest.approx(want)


def test_the_penalty_has_the_slope_of_its_formula():
  """What is added to the gradient is that of coef (short - threshold)^2 / (H + .1)."""
  batch, before = off_policy(toy.batch()), 2.0
  on, off = method('safe', penalty=0.7), method('safe', penalty=0.0)
  state = carried(on, kl_short=before)
  got = gradient(on, batch, state) - gradient(off, batch, carried(off))
  told = on.prepare(state, observed(state, batch))[1].extra
  w = weights.token_mean(batch.mask)
  entropy = jnp.sum(w * toy.entropy(state.params['policy'], batch))

  def penalty(table):
    # The threshold looks at the policy that sampled, the slope at the one trained.
    away = kl.k2(toy.logp(table, batch), toy.logp(state.frozen['ref'], batch))
    seen = kl.k2(batch.old_logp, toy.logp(state.frozen['ref'], batch))
    apart = jnp.sum(w * (seen + away - jax.lax.stop_gradient(away)))
    over = 0.9 * before + 0.1 * apart - told['kl_threshold'][0]
    return 0.7 * jnp.square(over) * jnp.maximum(0.5, 2 / (entropy + 0.1))

  close(got, jax.grad(penalty)(state.params['policy']), atol=2e-6)
  assert abs(got).max() > 1e-3


def observed(state, batch):
  """The batch with what `prepare` reads."""
  needs = ('ref_logp', 'entropy', 'value', 'twin_value')
  out = toy.forward(state.params, state.frozen, batch, needs)
  return batch.replace(
    ref_logp=out.ref_logp * batch.mask,
    old_entropy=out.entropy * batch.mask,
    old_value=out.value * batch.mask,
    old_twin_value=out.twin_value * batch.mask,
  )


def test_the_twin_trains_in_a_run():
  run = runs.assembled(runs.config('safe'))
  born = run.state.params
  assert not born['critic']['scores'].any()
  assert float(optax.tree.norm(born['twin_critic']['scores'])) > 0.05
  same = {k: v for k, v in born['twin_critic'].items() if k != 'scores'}
  jax.tree.map(
    np.testing.assert_array_equal,
    same,
    {k: v for k, v in born['critic'].items() if k != 'scores'},
  )


def test_safe_refuses_a_penalty_without_a_slope():
  with pytest.raises(InputError, match='zero expected gradient'):
    method('safe', kl='k1')
