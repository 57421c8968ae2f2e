"""Batches of parameters one step old: which drew them, when, and what is said of it."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_identities import close, update
from test_resume import interrupt_at, killed_at, outcome

from jaxrl_llm import ahead, assemble, build, checkpoint, log, sharding, train
from jaxrl_llm.ops import importance
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import InputError

EARLY, WEIGHED = dict(ahead=True), dict(importance='token')
SOON = 60  # Seconds after which a test that waits for a thread has failed.


def config(**sections):
  return runs.config(**dict(source=EARLY, plan=WEIGHED) | sections)


@pytest.fixture
def shared_programs(monkeypatch):
  monkeypatch.setattr(assemble, 'assemble', runs.assembled)


def same(a, b):
  """Asserts that two trees, which may hold keys, are equal to the bit."""
  typed = lambda x: jax.dtypes.issubdtype(
    getattr(x, 'dtype', None), jax.dtypes.prng_key
  )
  plain = lambda x: np.asarray(jax.random.key_data(x) if typed(x) else x)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(plain(x), plain(y)), a, b)


# ---- A whole run ---------------------------------------------------------------------


def test_it_is_the_loop_with_delayed_parameters():
  """Batch k is what today's source draws of the parameters after update k - 2."""
  early, plain = (runs.assembled(config(source=s)) for s in (EARLY, {}))
  state, told = early.state, []
  past = [jax.device_get(plain.state.params['policy'])] * 2
  there = plain.state
  for k in range(4):
    drawn = early.source(state, k)
    due = there.replace(params={'policy': past[-2]}, step=np.int32(max(k - 1, 0)))
    batch = plain.source(due, k).batch
    same(drawn.batch, batch)
    state, metrics = early.update(state, sharding.put_batch(drawn.batch, early.mesh))
    there, _ = plain.update(there, sharding.put_batch(batch, plain.mesh))
    past.append(jax.device_get(there.params['policy']))
    same(past[-2:], [state.frozen['behind'], state.params['policy']])
    told.append(drawn.metrics | jax.device_get(metrics))
  assert [m['staleness'] for m in told] == [0, 1, 1, 1]
  # Sampler and trainer agree, of the parameters that sampled; later ones learn.
  assert max(m['max/mismatch'] for m in told) < 1e-4
  assert told[0]['lag_k3'] < 1e-6 < 1e-3 < min(m['lag_k3'] for m in told[1:])
  assert told[1]['max/ratio'] == pytest.approx(1.0)  # pi / pi_old, the learner's own.


def test_parameters_that_do_not_move_draw_what_they_drew():
  early, plain = (runs.assembled(config(source=s)) for s in (EARLY, {}))
  for k in range(3):
    drawn, due = early.source(early.state, k), plain.source(plain.state, k)
    same(drawn.batch, due.batch)
    assert drawn.samples == due.samples


LORA = dict(rank=2, alpha=4.0, targets='q|v')
ADAPTED = dict(model=dict(lora=LORA), plan=WEIGHED | dict(epochs=2, minibatches=2))


@pytest.mark.usefixtures('shared_programs')
@pytest.mark.parametrize(
  'sections', [{}, pytest.param(ADAPTED, marks=pytest.mark.slow)]
)
def test_killed_or_stopped_it_goes_on_as_if_nothing_had_been(sections, tmp_path):
  """With evaluations between. A life begins with other parameters than those of which
  the thread may still hold a batch.
  """
  c = config(**sections)
  train.main(c, str(tmp_path / 'whole'))
  whole = outcome(tmp_path / 'whole', c)
  assert whole['meta'] == 6
  for count in (1, 2, 4, 5):
    folder = tmp_path / f'killed{count}'
    with pytest.MonkeyPatch.context() as patch:
      killed_at(patch, train, 'one_step', count)
      with pytest.raises(BaseException, match='one_step'):
        train.main(c, str(folder))
    train.main(c, str(folder))
    assert outcome(folder, c) == whole
  with pytest.MonkeyPatch.context() as patch:
    interrupt_at(patch, train, 'one_step', 3)
    train.main(c, str(tmp_path / 'stopped'))
  assert checkpoint.steps(tmp_path / 'stopped') == [3]
  train.main(c, str(tmp_path / 'stopped'))
  assert outcome(tmp_path / 'stopped', c) == whole


CALLS = []


def failing():
  """A reward that raises at the 100th completion: of 32 a step, in the fourth."""

  def reward(sample):
    CALLS.append(sample)
    return 1.0 / (len(CALLS) != 100)

  return reward


def test_an_error_in_the_thread_ends_the_run_with_its_words(tmp_path):
  c = config(rewards=dict(bad=dict(name='test_ahead.failing', weight=1.0)))
  CALLS.clear()
  with pytest.raises(InputError, match=r"reward 'bad', record .* ZeroDivisionError"):
    train.main(c, str(tmp_path))
  assert checkpoint.steps(tmp_path) == [3]
  steps = [r for r in log.read_lines(tmp_path / 'metrics.jsonl') if 'loss' in r]
  assert len(steps) == 3


def test_refusals():
  def refused(match, *, plan=WEIGHED, mesh=None, **source):
    c = config(plan=plan, source=EARLY | source, mesh=mesh or {})
    with pytest.raises(InputError, match=match):
      assemble.assemble(c)

  refused("ahead: older .* Set config.plan.importance='token'", plan={})
  refused("\\['pool'\\] reads more of the state", pool=24)
  refused("\\['replay'\\] reads more", replay=4, replay_size=12)
  refused('from two threads, which 8 devices', mesh=dict(fsdp=8))


# ---- The thread ----------------------------------------------------------------------


def moved(state, k):
  """The toy's state at step k, after k updates that each add 1 to the policy."""
  policy = lambda n: {'policy': toy.tables(0)['policy'] + n}
  found = ahead.begun(state.replace(params=policy(max(k - 1, 0))))
  return found.replace(params=policy(k), step=jnp.int32(k))


def fake(asked):
  """A source that says what drew: the policy's first number, and which thread."""

  def source(state, step):
    asked.append((step, threading.get_ident()))
    first = float(state.params['policy'][0, 0] - toy.tables(0)['policy'][0, 0])
    return Drawn(None, {'drew': round(first), 'version': int(state.step)}, [])

  return source


def test_the_next_batch_is_drawn_while_the_caller_works():
  asked, begun, go = [], threading.Event(), threading.Event()

  def source(state, step):
    if step == 1:
      begun.set()
      assert go.wait(SOON)
    return fake(asked)(state, step)

  drawn, evaluate = ahead.overlapped(source, lambda state: len(asked), last=3)
  assert drawn(moved(toy.state(), 0), 0).metrics == dict(drew=0, version=0, staleness=0)
  assert begun.wait(SOON)  # It draws, and nobody has asked for it yet.
  assert [step for step, _ in asked] == [0]
  threading.Timer(0.2, go.set).start()
  assert evaluate(None) == 2  # The evaluation has waited for it.
  found = [drawn(moved(toy.state(), k), k).metrics for k in (1, 2)]
  assert found == [dict(drew=k - 1, version=k - 1, staleness=1) for k in (1, 2)]
  assert [step for step, _ in asked] == [0, 1, 2]  # Nothing beyond the last.
  here = threading.get_ident()
  assert [who == here for _, who in asked] == [True, False, False]


def test_what_another_state_drew_is_not_used():
  """Another run, or this one begun again: the same steps of other parameters."""
  asked = []
  drawn, _ = ahead.overlapped(fake(asked), None, last=9)
  for k, first in ((0, 0), (1, 0), (2, 1)):
    assert drawn(moved(toy.state(), k), k).metrics['drew'] == first
  other = moved(toy.state(), 3)
  drew = {'behind': other.frozen['behind'] + 5}
  assert drawn(other.replace(frozen=drew), 3).metrics['drew'] == 7
  drawn(moved(toy.state(), 3).replace(key=jax.random.key(9)), 4)
  assert drawn(moved(toy.state(), 1), 1).metrics == dict(drew=0, version=0, staleness=1)
  here = threading.get_ident()
  # Drawn anew: the first, the other policy, and step 4 of another key. In between the
  # thread drew on; what of that nobody asked for does not count.
  assert [step for step, who in asked if who == here] == [0, 3, 4, 1]


def test_the_threads_parameters_outlive_the_update():
  """The step donates its state, of which the thread draws at that moment."""
  go, seen = threading.Event(), []

  def source(state, step):
    if step:
      assert go.wait(SOON)
      seen.append(np.asarray(state.params['policy']))
    return Drawn(None, {}, [])

  drawn, evaluate = ahead.overlapped(source, lambda state: None, last=2)
  state = moved(toy.state(), 0)
  policy = np.array(state.params['policy'])
  drawn(state, 0)
  for leaf in jax.tree.leaves(state):
    leaf.delete()
  go.set()
  evaluate(None)
  np.testing.assert_array_equal(seen, [policy])


# ---- The step ------------------------------------------------------------------------


def test_the_step_remembers_and_asks_the_right_parameters():
  """It leaves the policy that learned, and asks agreement of the one that drew."""
  batch, drew = toy.batch(), toy.tables(7)['policy']
  batch = batch.replace(behavior_logp=toy.logp(drew, batch) + 0.25 * batch.mask)
  batch = batch.replace(behavior_logp=batch.behavior_logp.at[1:].add(0.5))
  weigh = functools.partial(importance.token, cap=50.0)
  m = build.method('grpo')
  plain, said = update(m, batch, importance=weigh)
  inner = make_update_step(toy.forward, toy.SGD, m, importance=weigh)
  step = jax.jit(ahead.remembering(inner, toy.forward))
  state = toy.state()
  old = state.frozen | {'behind': drew}
  found, metrics = step(state.replace(frozen=old), batch)
  same(found.params, plain.params)
  same(found.frozen, plain.frozen | {'behind': state.params['policy']})
  # Of the first group alone, a quarter too much: k3 is exp(-d) - 1 + d, d = 1 / 4.
  close(metrics['mismatch'], 0.25)
  close(metrics['max/mismatch'], 0.25)
  close(metrics['mismatch_k3'], np.exp(-0.25) - 1 + 0.25, atol=1e-6)
  assert metrics['lag_k3'] == said['mismatch_k3'] > 0.05
