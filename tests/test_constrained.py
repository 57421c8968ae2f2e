"""Methods that are judged by more than a reward: costs, duels and anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import one, row
from test_identities import close, gradient, update
from test_on_policy import carried

from jaxrl_llm import assemble, beside, build, controllers, filtration, types
from jaxrl_llm.rewards import better, combine, letter_share
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import clean, weigh
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError, Outputs

method = build.method


def sample(completion, answer='d'):
  return Sample('q', completion, len(completion), False, Record(0, [], answer, {}))


def told(extra, batch=None):
  """The toy's batch with these fields of `extra` in place of its own."""
  batch = toy.batch() if batch is None else batch
  return batch.replace(extra=batch.extra | extra)


# ---- What a source says beside the reward --------------------------------------------


def test_costs_by_hand():
  """Shares of a: 1/2 and 1 and 0, of which .4 is allowed; of b 1/2, 0 and 0."""
  parts = {
    'a': (2.0, letter_share.letter_share(letter='a', allowed=0.4)),
    'b': (1.0, letter_share.letter_share(letter='b')),
  }
  rows = [sample('ab'), sample('aa'), sample('cd'), sample('')]
  extra, metrics, columns = beside.costs(combine.weighted(parts))(rows, (2, 2))
  close(extra['cost'], [[0.7, 1.2], [-0.8, -0.8]])
  np.testing.assert_array_equal(extra['feasible'], [[0, 0], [1, 1]])
  close(columns['cost/a'], [0.1, 0.6, -0.4, -0.4])
  want = {'cost': 0.075, 'cost/a': -0.025, 'cost/b': 0.125, 'feasible': 0.5}
  assert metrics == pytest.approx(want)


def test_a_letter_is_one_character():
  with pytest.raises(InputError, match="letter='ab'"):
    letter_share.letter_share(letter='ab')


def test_the_source_fills_in_the_costs():
  run = runs.assembled(runs.config('safe_rlhf', source=dict(greedy=True)))
  drawn = run.source(run.state, 0)
  share = lambda text: text.count('a') / max(len(text), 1) - 0.1
  due = [share(row['completion']) for row in drawn.samples]
  close([row['cost'] for row in drawn.samples], due)
  close(drawn.batch.extra['cost'].ravel(), due)
  np.testing.assert_array_equal(drawn.batch.extra['feasible'].ravel(), np.less(due, 0))
  assert drawn.metrics['cost'] == pytest.approx(np.average(due), abs=1e-6)
  assert drawn.batch.extra['greedy_reward'].shape == (8,)


def test_the_anchor_is_the_tasks_answer():
  """Answers d and a: the one's share of d is 1, the other's 0."""
  rows = [sample('ab', 'd')] * 2 + [sample('dd', 'a')] * 2
  score = combine.weighted({'d': (3.0, letter_share.letter_share(letter='d'))})
  extra, metrics, _ = beside.anchor(score)(rows, (2, 2))
  np.testing.assert_array_equal(extra['anchor_reward'], [3, 0])
  assert metrics == {'reward_anchor': 1.5}


def test_duels_by_hand():
  """Scores 0, 2, 1; a judge that gives the first .5 more; both orders even it out."""
  scores = {'x': 0.0, 'y': 2.0, 'z': 1.0}
  judge = lambda one, other: scores[one.completion] - scores[other.completion] + 0.5
  rows = [sample(c) for c in 'xyz']
  got = beside.duels(judge)(rows, (1, 3)).extra['duel'][0]
  np.testing.assert_array_equal(got, [[0, -1.5, -0.5], [1.5, 0, 1.5], [0.5, -1.5, 0]])
  got = beside.duels(judge, both=True)(rows, (1, 3)).extra['duel'][0]
  np.testing.assert_array_equal(got, [[0, -2, -1], [2, 0, 1], [1, -1, 0]])
  with pytest.raises(InputError, match=r"reward 'judge'.*KeyError"):
    beside.duels(judge)([sample('w'), *rows[:1]], (1, 2))


def test_the_checker_as_a_judge():
  task = Task('t', None, (), lambda text, record: text.count(record.answer))
  judge = better.better(task=task)
  pairs = [('d', 'a'), ('a', 'd'), ('d', 'd')]
  assert [judge(sample(x), sample(y)) for x, y in pairs] == [1, -1, 0]


def test_what_is_told_moves_with_its_completion():
  reward = np.arange(toy.B * 3, dtype=np.float32).reshape(-1, 3) % 7
  duel = reward[:, :, None] - reward[:, None]
  batch = jax.tree.map(np.asarray, toy.batch(0, g=3)).replace(
    reward=reward, extra={'cost': -reward, 'duel': duel, 'anchor_reward': reward[:, 0]}
  )
  source = filtration.filtered(lambda state, step: Drawn(batch, {}, []), 'best_random')
  got = source(toy.state(), 3).batch
  assert (got.reward != reward).any()
  np.testing.assert_array_equal(got.extra['cost'], -got.reward)
  want = got.reward[:, :, None] - got.reward[:, None]
  np.testing.assert_array_equal(got.extra['duel'], want)
  np.testing.assert_array_equal(got.extra['anchor_reward'], reward[:, 0])


# ---- A multiplier --------------------------------------------------------------------


def pressed(state, moved, costs, valid=None):
  costs = jnp.array([costs], jnp.float32)
  return moved(state, costs, jnp.ones_like(costs) if valid is None else row(*valid))


def with_start(start, step=0):
  extra = {k: jnp.array(x, jnp.float32) for k, x in start.items()}
  return toy.state().replace(extra=extra, step=jnp.int32(step))


def test_the_multiplier_by_hand():
  """Window 2, threshold .5, rate 1, from 1: it rests at the threshold, grows above."""
  moved, start = controllers.multiplier(1.0, 1.0, most=3.0, threshold=0.5, size=2)
  state = with_start(start)
  state, found = pressed(state, moved, [0.5, 0.5])
  close(found.multiplier, 1.0)
  # The newest and one older: (1, .5), .25 above the threshold.
  state, found = pressed(state, moved, [1.0])
  close(found.multiplier, np.exp(0.25))
  # (1, 1); what is not valid is not seen.
  state, found = pressed(state, moved, [1.0, 9.0], [1, 0])
  log = 0.25 + np.exp(0.25) * 0.5
  close(found.multiplier, np.exp(log))
  state, found = pressed(state, moved, [9.0, 9.0])
  close(found.multiplier, 3.0)
  # Below the threshold it shrinks: (0, 0).
  state, found = pressed(state, moved, [0.0, 0.0])
  close(found.multiplier, np.exp(np.log(3.0) - 3.0 * 0.5))


def test_the_multiplier_of_a_bound_by_hand():
  """Costs (1, 0, 1, 0), kappa 3, threshold 2: mean 1/2, std sqrt(1/3).

  A batch that is larger than the window counts as a whole.
  """
  moved, start = controllers.multiplier(
    1.0, 1.0, most=9.0, threshold=2.0, size=2, kappa=3.0
  )
  state, found = pressed(with_start(start), moved, [1.0, 0.0, 1.0, 0.0])
  np.testing.assert_array_equal(state.extra['costs'], [1, 0])
  close(found.mean, 0.5)
  close(found.std, 3**-0.5)
  close(found.multiplier, np.exp(0.5 + 3**0.5 - 2.0))


def test_the_multiplier_rests_at_first_and_at_zero():
  moved, start = controllers.multiplier(
    2.0, 1.0, most=9.0, threshold=0.0, size=2, delay=3
  )
  close(pressed(with_start(start, 2), moved, [0.1])[1].multiplier, 2.0)
  close(pressed(with_start(start, 3), moved, [0.1])[1].multiplier, 2 * np.exp(0.2))
  moved, start = controllers.multiplier(0.0, 1.0, most=9.0, threshold=0.0, size=2)
  close(pressed(with_start(start), moved, [5.0])[1].multiplier, 0.0)
  with pytest.raises(InputError, match='a window of at least 2'):
    controllers.multiplier(1.0, 1.0, most=9.0, threshold=0.0, size=1)


# ---- Safe-RLHF -----------------------------------------------------------------------


def test_safe_rlhf_by_hand():
  # lambda 1, lam 1, beta .5 with d = (1, 2), R = 3, C = 1: r = (-.5, 2), c = (.5, 2),
  # critics of 0: A_R = (1.5, 2), A_C = (2.5, 2), A = (-.5, 0); ratio 1.5: gain
  # (1.5 * -.5 + 0) / 2. Critics: halves of (1.5^2 + 2^2) / 2 and (2.5^2 + 2^2) / 2.
  m = method('safe_rlhf', rate=0.0, beta=0.5, lam=1.0, value_coef=0.1)
  zero, old = one(0, 0), one(-1, -1)
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 1, 2), np.int32), [[2]]
  ).replace(
    reward=row(3),
    extra={'cost': row(1)},
    old_logp=old,
    ref_logp=one(-2, -3),
    old_value=zero,
    old_cost_value=zero,
  )
  _, batch = m.prepare(carried(m), batch)
  close(batch.advantage, one(-0.5, 0))
  close(batch.extra['cost_target'], one(2.5, 2))
  out = Outputs(logp=old + jnp.log(one(1.5, 1)), value=zero, cost_value=zero)
  got, found = m.loss(out, weigh(batch, m))
  close(got, 0.375 + 0.1 * (1.5625 + 2.5625))
  close(found['cost_value_loss'][0], 2.5625)
  close(found['multiplier'][0] / found['multiplier'][1], 1.0)


def test_safe_rlhf_without_a_multiplier_is_ppo():
  m = method('safe_rlhf', multiplier=0.0, whiten=True)
  same = dict(clip=0.1, value_clip=5.0, beta=0.1, reward_clip=50.0)
  want = update(method('ppo', **same))[0].params
  got = update(m, state=carried(m))[0].params
  for role in ('policy', 'critic'):
    close(got[role], want[role])
  # The critic of costs learns as a critic of ppo would, of minus the KL.
  turned = toy.state()
  turned = turned.replace(
    params=turned.params | {'critic': turned.params['cost_critic']}
  )
  batch = toy.batch().replace(reward=toy.batch().extra['cost'])
  same['beta'] = 0.0
  m = method('safe_rlhf', beta=0.0)
  got = update(m, state=carried(m))[0].params['cost_critic']
  close(got, update(method('ppo', **same), batch, turned)[0].params['critic'])


@pytest.mark.parametrize('weight', [0.5, 3.0])
def test_the_policy_feels_the_same_kl_whatever_the_multiplier(weight):
  """Neither reward nor cost: what is left is ppo's beta, undivided."""
  none = jnp.zeros_like(toy.batch().reward)
  batch = told({'cost': none}, toy.batch().replace(reward=none))
  found = {}
  for name, options in {
    'ppo': {},
    'safe_rlhf': dict(multiplier=weight, whiten=True),
  }.items():
    m = method(name, beta=0.2, value_clip=5.0, clip=0.1, **options)
    state = carried(m)
    silent = {k: jnp.zeros_like(state.params[k]) for k in ('critic', 'cost_critic')}
    state = state.replace(params=state.params | silent)
    found[name] = gradient(m, batch, state)
  close(found['safe_rlhf'], found['ppo'])


def test_a_cost_is_a_negative_reward():
  """C = -R, the critics too: A is that of the reward alone, whatever lambda is."""
  m = lambda weight: method('safe_rlhf', beta=0.0, multiplier=weight, rate=0.0)
  state = carried(m(1.0))
  turned = state.params | {'cost_critic': -state.params['critic']}
  state = state.replace(params=turned)
  batch = told({'cost': -toy.batch().reward})
  start = lambda w: state.replace(extra=carried(m(w)).extra)
  want = gradient(m(0.0), batch, start(0.0))
  assert abs(want).max() > 0.01
  close(gradient(m(4.0), batch, start(4.0)), want)


def test_costs_that_are_not_there_are_asked_for():
  batch = clean(toy.batch()).replace(extra={})
  with pytest.raises(InputError, match=r'safe_rlhf: it needs the cost.*config\.costs'):
    method('safe_rlhf').prepare(toy.state(), batch)
  c = runs.config('safe_rlhf')
  del c.costs
  with pytest.raises(InputError, match=r'section config\.costs'):
    assemble.assemble(c)
  c.costs = dict(a=dict(name='letter_share', letr='a'))
  with pytest.raises(InputError, match=r"config\.costs\.a: no option 'letr'"):
    assemble.assemble(c)
