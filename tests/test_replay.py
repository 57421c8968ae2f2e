"""Groups of earlier steps: what is kept, what comes back, and how it is weighed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_identities import close, update
from test_safe import carried

from jaxrl_llm import assemble, build, checkpoint, feeds, replay, sharding
from jaxrl_llm.forward import OBSERVED
from jaxrl_llm.ops import importance, metrics
from jaxrl_llm.step import clean, weigh
from jaxrl_llm.types import InputError

WEIGHED = dict(importance='token', importance_cap=50.0)
KEEPS = dict(replay=4, replay_size=12)


def keeping(like, name='grpo', *, size=12, fresh=4):
  return replay.remembered(build.method(name), like, size=size, fresh=fresh)


def cut(batch, rows, width=None):
  """These prompts of a batch, and of their completions the first so many tokens."""
  short = lambda x: x[rows] if x.ndim < 3 else x[rows][..., :width]
  return jax.tree.map(short, batch)


def sampled(seed=0):
  """The toy's batch with log-probs of a sampler, and nothing in extra but a cost."""
  batch = toy.batch(seed)
  extra = {'cost': batch.extra['cost']}
  return batch.replace(behavior_logp=-batch.mask, extra=extra)


def test_the_last_groups_are_kept_by_hand():
  """Room for 3, two a step: after (a, b) and (c, d) it holds d, b, c; then d, e, f."""
  batch = sampled()
  m = keeping(batch, 'reinforce', size=3, fresh=2)
  state = carried(m)
  narrow = [cut(batch, np.arange(i, i + 2), 3) for i in (0, 2, 4)]
  for turn, place in zip(narrow, ([0, 1], [3, 1, 2], [3, 4, 5])):
    prepared = turn.replace(prompt_id=turn.prompt_id, old_logp=turn.behavior_logp)
    state, _ = m.prepare(state, prepared)
    extra, count = state.extra, int(state.extra['replay_filled'])
    assert count == len(place)
    assert extra['replay_prompt_id'][:count].tolist() == place
    # Three tokens of room for five: the rest is zeros.
    ids = extra['replay_completions'][:count]
    np.testing.assert_array_equal(
      ids[..., :3], batch.completions[np.array(place), :, :3]
    )
    assert not ids[..., 3:].any()
    cost = batch.extra['cost'][np.array(place)]
    np.testing.assert_array_equal(extra['replay_extra_cost'][:count], cost)


def test_keeping_changes_no_update():
  """Of a batch of which half is replayed, by the weight pi / mu of each token."""
  batch = sampled()
  replayed = jnp.repeat(jnp.array([0.0, 1.0]), 4)
  batch = batch.replace(extra=batch.extra | {'replayed': replayed})
  m = keeping(sampled())
  weigh = functools.partial(importance.token, cap=50.0)
  state, metrics = update(m, batch, carried(m), importance=weigh)
  plain = update(build.method('grpo'), batch, importance=weigh)[0]
  jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
  # Only of the fresh half is the sampler asked whether it agrees.
  logp = toy.logp(toy.state().params['policy'], batch)
  gap = (jnp.abs(logp + 1.0) * batch.mask)[:4].sum() / batch.mask[:4].sum()
  assert float(metrics['mismatch']) == pytest.approx(float(gap), rel=1e-5)
  # What was sampled e times too often counts 1 / e: as if it had been weighed so.
  often = batch.replace(behavior_logp=(logp + 1.0) * batch.mask)
  exact = batch.replace(behavior_logp=logp * batch.mask)
  move = lambda b: update(m, b, carried(m), importance=weigh)[0].params['policy']
  start = toy.state().params['policy']
  close(move(often) - start, (move(exact) - start) / np.e)


@pytest.mark.parametrize('plan', [WEIGHED, dict(trust_sampler=True)])
def test_what_comes_back_is_what_was_sampled(plan):
  run = runs.assembled(runs.config(source=KEEPS, plan=plan))
  state, seen, counts = run.state, {}, []
  for step in range(4):
    drawn = run.source(state, step)
    batch = drawn.batch
    assert batch.completions.shape[0] == 12
    assert batch.extra['replayed'].tolist() == [0.0] * 8 + [1.0] * 4
    counts.append((drawn.metrics['replayed'], batch.valid[8:, 0].sum()))
    old = [int(i) for i, v in zip(batch.prompt_id[8:], batch.valid[8:, 0]) if v]
    assert len({*old}) == len(old) and {*old} <= {*seen}
    for row, i in enumerate(old, 8):
      then, at = seen[i]
      for name in ('completions', 'mask', 'behavior_logp'):
        both = [vars(b)[name][r] for b, r in ((batch, row), (then, at))]
        width = min(x.shape[-1] for x in both)
        np.testing.assert_array_equal(*(x[..., :width] for x in both))
        assert not any(x[..., width:].any() for x in both)
      for name in ('reward', 'length', 'truncated', 'prompt_length'):
        np.testing.assert_array_equal(vars(batch)[name][row], vars(then)[name][at])
      assert batch.extra['question'][row] == then.extra['question'][at]
    seen |= {int(i): (batch, row) for row, i in enumerate(batch.prompt_id[:8])}
    state, metrics = run.update(state, sharding.put_batch(batch, run.mesh))
    if 'max/mismatch' in metrics:
      assert float(metrics['max/mismatch']) < 1e-4
  assert counts == [(0, 0), (4, 4), (4, 4), (4, 4)]


def test_the_past_survives_a_restart(tmp_path):
  """The same groups come back after a checkpoint as without it."""
  c = runs.config(source=KEEPS, plan=WEIGHED)
  run = runs.assembled(c)
  state = run.state
  for step in range(2):
    batch = run.source(state, step).batch
    state, _ = run.update(state, sharding.put_batch(batch, run.mesh))
  checkpoint.save(tmp_path, state, {}, keep=1)
  again = checkpoint.restore(tmp_path, runs.assembled(c).state)[0]
  first, second = (run.source(s, 2).batch for s in (state, again))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert first.extra['replayed'].sum() == first.valid[8:, 0].sum() == 4


@pytest.mark.parametrize('name', ['reinforce', 'raft', 'rloo', 'online_ipo'])
def test_the_sampler_is_not_trusted_without_a_ratio(name):
  """The loss never reads old_logp: what older parameters sampled stays unweighed."""
  sections = dict(source=KEEPS, plan=dict(trust_sampler=True))
  with pytest.raises(InputError, match=f"importance='token'.*{name}'s loss has no"):
    feeds.refuse_uncorrected(runs.config(name, **sections), 'replay')
  feeds.refuse_uncorrected(runs.config('grpo', **sections), 'replay')


COUNTING = {  # Those that carry what they have seen, and what of it a batch moves.
  'prompt_gdro': dict(prompts=16, history=4, count=3),
  'rollout_gdro': dict(prompts=16, history=4, count=3, least=2, most=4, mean=2),
  'ppo': dict(reward_scale='norm', kl_target=1.0, kl_horizon=10.0),
  'safe_rlhf': dict(window=12),
  'hc_rlhf': dict(window=12),
  'safe': dict(),
}


@pytest.mark.parametrize('name', COUNTING)
def test_what_comes_back_is_not_counted_again(name):
  """Visits, moments, costs and KL move as if the fresh half were all."""
  m = build.method(name, **COUNTING[name])
  batch = clean(toy.batch())
  seen = {k: -batch.mask for k in ('old_logp', 'old_entropy')}
  seen |= {k: 0.5 * batch.mask for k in OBSERVED if k not in seen}
  batch = batch.replace(**seen)
  fresh = cut(batch, np.arange(4))
  old = jnp.repeat(jnp.array([0.0, 1.0]), 4)
  both = batch.replace(extra=batch.extra | {'replayed': old})
  found = []
  for rows in (fresh, both):
    state, rows = m.prepare(carried(m), rows)
    if name == 'ppo':
      total, count = metrics.kl_paid(weigh(rows, m))['kl_ref_seq']
      state = m.after(state, rows, {'kl_ref_seq': total / count})
    found.append(state.extra)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *found)
  assert any((found[0][k] != x).any() for k, x in carried(m).extra.items())


def test_replay_refuses():
  def refused(match, plan=WEIGHED, **source):
    with pytest.raises(InputError, match=match):
      assemble.assemble(runs.config(source=KEEPS | source, plan=plan))

  refused("config.plan.importance='token'", plan={})
  refused('replay_size=7: keep at least the 8', replay_size=7)
  refused("there is \\['pool'\\]", pool=24)
  refused('replay=-1', replay=-1)
