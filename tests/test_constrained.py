"""Methods that are judged by more than a reward: costs, duels and anchors."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import check, one, row
from test_identities import ALL, LOGITS, PROBS, REF, bandit, close, gradient, update
from test_on_policy import carried

from jaxrl_llm import assemble, beside, build, controllers, filtration, types
from jaxrl_llm.evaluate import safety
from jaxrl_llm.ops import advantages, costs
from jaxrl_llm.rewards import better, combine, letter_share
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import clean, make_update_step, weigh
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
  run = runs.assembled(runs.config('safe_rlhf'))
  drawn = run.source(run.state, 0)
  share = lambda text: text.count('a') / max(len(text), 1) - 0.1
  due = [share(row['completion']) for row in drawn.samples]
  close([row['cost'] for row in drawn.samples], due)
  close(drawn.batch.extra['cost'].ravel(), due)
  np.testing.assert_array_equal(drawn.batch.extra['feasible'].ravel(), np.less(due, 0))
  assert drawn.metrics['cost'] == pytest.approx(np.average(due), abs=1e-6)


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


def constrained_optimum(weight, beta, kappa, scale):
  """Ten completions of one token in the shares of a policy p, and rewards for which
  scale (R - lambda c') = beta log(p / ref): p is best for lambda and beta.
  """
  actions = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3, 4])
  log = jnp.log(jnp.bincount(actions) / 10)
  cost = jnp.array([0.5, 0.3, -1.0, 0.2, 0.0])[actions]
  mean, std = cost.mean(), cost.std(ddof=1)
  paid = weight * costs.inflated(cost, mean, std, kappa)
  reward = beta / scale * (log - REF)[actions] + paid
  batch = bandit([actions]).replace(reward=reward[None], extra={'cost': cost[None]})
  policy = toy.state().params['policy'].at[0].set(log)
  return batch, policy, float(mean + kappa * std)


@pytest.mark.parametrize('off', [0.0, 0.1])
@pytest.mark.parametrize('name', ['safe_rlhf', 'hc_rlhf'])
def test_at_the_constrained_optimum_nothing_moves(name, off):
  """The bound is at the threshold: lambda rests, and so does the policy. A threshold
  that is .1 lower moves both: log lambda by rate lambda .1.
  """
  weight, beta, rate = 2.0, 0.7, 0.3
  safe = name == 'safe_rlhf'
  kappa = 0.0 if safe else costs.margin(256, 0.1) + costs.margin(1000, 0.1)
  scale = 1 / (1 + weight) if safe else 1.0
  batch, policy, threshold = constrained_optimum(weight, beta, kappa, scale)
  options = dict(multiplier=weight, rate=rate, beta=beta, threshold=threshold - off)
  m = method(name, **options)
  state = carried(m)
  silent = {k: jnp.zeros_like(state.params[k]) for k in ('critic', 'cost_critic')}
  state = state.replace(params=state.params | silent | {'policy': policy})
  moved = update(m, batch, state)[0]
  due = np.log(weight) + rate * weight * off
  close(moved.extra['log_multiplier'], due, 1e-5)
  step = abs(moved.params['policy'] - policy).max()
  assert step > 1e-3 if off else step < 1e-6


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


# ---- HC-RLHF -------------------------------------------------------------------------


def test_the_margin_of_a_bound_by_hand():
  # Tables of Student's t: 1.282 of 999 and 1.638 of 3 degrees of freedom at .9.
  assert costs.margin(4, 0.1) == pytest.approx(1.6377 / 2, abs=1e-4)
  assert costs.margin(1000, 0.1) == pytest.approx(1.2824 / 1000**0.5, abs=1e-4)
  # Costs 1, 3, 1, 3: mean 2, deviation sqrt(4 / 3).
  want = 2 + 1.6377 / 2 * (4 / 3) ** 0.5
  assert float(safety.upper_bound([1, 3, 1, 3], delta=0.1)) == pytest.approx(want, 1e-4)
  assert safety.is_safe([1, 3, 1, 3], threshold=want + 1e-3, delta=0.1)
  assert not safety.is_safe([1, 3, 1, 3], threshold=want - 1e-3, delta=0.1)
  with pytest.raises(InputError, match='at least two costs'):
    costs.margin(1, 0.1)


def test_inflated_costs_have_the_gradient_of_the_bound():
  """Over all arms: sum_a grad pi(a) c'(a) is grad of mean + kappa std."""
  cost, kappa = jnp.array([0.3, -1.0, 2.0, 0.0, 0.7]), 1.7

  def moments(z):
    p = jax.nn.softmax(z)
    mean = p @ cost
    return mean, jnp.sqrt(p @ jnp.square(cost - mean))

  bound = lambda z: moments(z)[0] + kappa * moments(z)[1]
  paid = costs.inflated(cost, *moments(LOGITS), kappa)
  got = jax.grad(lambda z: jax.nn.softmax(z) @ paid)(LOGITS)
  close(got, jax.grad(bound)(LOGITS))
  # By the method: reward 0, lambda 1, weights undone to the policy's own probabilities.
  exact = lambda reward, valid: reward * valid * toy.V * PROBS[None]
  m = method('hc_rlhf', beta=0.0, rate=0.0, c1=0.0, c2=0.0, advantage=exact)
  batch = ALL.replace(extra={'cost': cost[None]})
  close(gradient(m, batch, carried(m))[0], jax.grad(lambda z: moments(z)[0])(LOGITS))
  np.testing.assert_array_equal(costs.inflated(cost, 0.0, 0.0, kappa), cost)


def test_hc_rlhf_by_hand():
  # Window 4, delta .1: kappa = c1 1.6377 / 2 with c1 = 2 / 1.6377, so 1; costs 0 and 2:
  # mean 1, std sqrt 2, c' = (0, 2 + (4 - 4) / ..) = (0, 2). lambda 1, R = (1, 2):
  # (1, 0) less 1/2; sums of log-probs -1 and -3: -(.5 * -1 - .5 * -3) / 2.
  m = method(
    'hc_rlhf', window=4, c1=1 / costs.margin(4, 0.1), c2=0.0, rate=0.5, beta=0.0
  )
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 2, 1), np.int32), [[1, 1]]
  ).replace(reward=row(1, 2), extra={'cost': row(0, 2)})
  out = Outputs(logp=jnp.array([[[-1.0], [-3.0]]]))
  still = carried(m).replace(step=jnp.int32(0))
  wait = method(
    'hc_rlhf', window=4, c1=1 / costs.margin(4, 0.1), c2=0.0, delay=1, beta=0.0
  )
  _, ready = wait.prepare(still, batch)
  check(wait.loss(out, weigh(ready, wait)), -0.5)
  # The multiplier has moved by .5 (1 + sqrt 2): lambda c' = (0, 2 e^that).
  _, ready = m.prepare(still, batch)
  now = np.exp(0.5 * (1 + 2**0.5))
  close(ready.extra['multiplier'], now)
  gap = (1 - (2 - 2 * now)) / 2
  close(ready.advantage, [[gap, -gap]], 1e-5)


def test_hc_rlhf_without_a_multiplier_is_rloo_with_the_groups_mean():
  m = method('hc_rlhf', multiplier=0.0, beta=0.2)
  want = method('rloo', beta=0.2, advantage='group_mean')
  close(gradient(m, state=carried(m)), gradient(want))


def optimum(gain, price, threshold, beta):
  """(lambda, p): p proportional to ref exp((R - lambda C) / beta), E[C] = threshold.

  By bisection: the mean cost falls with lambda.
  """
  at = lambda weight: jax.nn.softmax(REF + (gain - weight * price) / beta)
  low, high = 0.0, 20.0
  assert at(low) @ price > threshold > at(high) @ price
  for _ in range(50):
    middle = (low + high) / 2
    above = at(middle) @ price > threshold
    low, high = (middle, high) if above else (low, middle)
  return low, at(low)


@pytest.mark.parametrize('weight', [0.1, 5.0])
def test_the_constrained_optimum_is_found_from_both_sides(weight):
  """600 updates, 256 sampled arms each; no lambda was chosen. With c1 = c2 = 0 the mean
  itself is held; without a constraint it would be .63.
  """
  gain, price = jnp.array([[1, 0.5, 0.2, 0, -0.5], [1, 0.3, -0.2, 0.5, 0]])
  options = dict(multiplier=weight, rate=0.1, beta=0.5, threshold=0.2, c1=0.0, c2=0.0)
  m = method('hc_rlhf', **options)
  step = make_update_step(toy.forward, toy.SGD, m)
  blank = bandit(np.zeros((1, 256)))

  def one(state, key):
    table = state.params['policy'][0]
    arm = jax.random.categorical(key, table, shape=(1, 256))
    batch = blank.replace(completions=arm[..., None], reward=gain[arm])
    state, _ = step(state, batch.replace(extra={'cost': price[arm]}))
    return state, (jax.nn.softmax(table), jnp.exp(state.extra['log_multiplier']))

  keys = jax.random.split(jax.random.key(0), 600)
  _, (policy, found) = jax.jit(lambda state: jax.lax.scan(one, state, keys))(carried(m))
  due, best = optimum(gain, price, 0.2, 0.5)
  close(policy[-100:].mean(0), best, 0.015)
  close(found[-100:].mean(), due, 0.03)


def test_the_guarantee_by_simulation():
  """What is returned and unsafe is at most delta of all; without the bound half is.

  A policy is its true mean cost theta, and the better the higher; costs are theta plus
  noise. Training picks the highest theta whose bound on n costs keeps the threshold 0.
  """
  rng, runs_, n, m, delta = np.random.default_rng(0), 4000, 64, 100, 0.1
  noise, fresh = rng.normal(size=(runs_, n)), rng.normal(size=(runs_, m))
  kappa = costs.margin(n, delta) + costs.margin(m, delta)
  pick = lambda k: -noise.mean(1) - k * noise.std(1, ddof=1)
  test = lambda theta: safety.is_safe(theta[:, None] + fresh, threshold=0, delta=delta)
  slack = lambda p: 3 * (p * (1 - p) / runs_) ** 0.5
  careless, careful = pick(0.0), pick(kappa)
  assert (careless > 0).mean() == pytest.approx(0.5, abs=slack(0.5))
  assert (careful > 0).mean() < 0.1
  for theta in (careless, careful):
    assert (test(theta) & (theta > 0)).mean() <= delta + slack(delta)
  # At the boundary itself the test errs as often as it may.
  assert test(np.full(runs_, 1e-9)).mean() == pytest.approx(delta, abs=slack(delta))
  # Being careful pays: it is returned where fresh and old noise differ by less than
  # t / sqrt(n), of deviation sqrt(1 / n + 1 / m): .83 of the time, not .30.
  spread = (1 / n + 1 / m) ** 0.5
  normal = statistics.NormalDist().cdf
  edges = (careful, costs.margin(n, delta)), (careless, -costs.margin(m, delta))
  for theta, edge in edges:
    share = normal(edge / spread)
    assert test(theta).mean() == pytest.approx(share, abs=slack(share) + 0.01)


# ---- Duels and anchors ---------------------------------------------------------------


def test_think_rm_is_grpo_where_a_duel_is_a_difference():
  batch = toy.batch(2, g=4)
  batch = batch.replace(
    reward=jax.random.normal(jax.random.key(0), (toy.B, 4)),
    valid=batch.valid.at[0, 1].set(0.0).at[1, 2:].set(0.0),
  )
  m = method('think_rm_pairwise', beta=0.3)
  want = method('grpo', beta=0.3, advantage='group_norm(ddof=1)')
  close(gradient(m, batch), gradient(want, batch), 3e-6)
  duel = batch.reward[:, :, None] - batch.reward[:, None]
  asked = told({'duel': duel}, batch.replace(reward=jnp.zeros_like(batch.reward)))
  close(gradient(m, asked), gradient(want, batch), 3e-6)


def test_an_advantage_of_duels_by_hand():
  # 0 beats 1 by 3, 1 beats 2 by 1, 0 ties with 2: means (1, -2/3, -1/3); squares
  # 2 (9 + 1) over 2 * 3 * 2: sqrt(5 / 3).
  duel = jnp.array([[[0.0, 3, 0], [-3, 0, 1], [0, -1, 0]]])
  got = advantages.of_duels(duel, row(1, 1, 1))
  close(got, np.array([[1, -2 / 3, -1 / 3]]) / (5 / 3) ** 0.5)
  # Without the last: +-1.5 by sqrt(18 / 4).
  close(advantages.of_duels(duel, row(1, 1, 0)), [[0.5**0.5, -(0.5**0.5), 0]])


def test_a_judge_in_circles_prefers_nobody():
  """Rock, paper, scissors: 0. With a fourth that loses to all: 3 / 4 by sqrt(1 / 2)."""
  circle = np.array([[0, 1, -1, 1], [-1, 0, 1, 1], [1, -1, 0, 1], [-1, -1, -1, 0]])
  close(advantages.of_duels(jnp.array([circle[:3, :3]]), row(1, 1, 1)), 0.0)
  got = advantages.of_duels(jnp.array([circle]), row(1, 1, 1, 1), eps=0.0)
  close(got, np.array([[0.25, 0.25, 0.25, -0.75]]) * 2**0.5)
  # Whoever wins: all of G - 1 duels are at most (G - 1) / G by sqrt(1 / 2).
  wins = np.sign(np.random.default_rng(0).normal(size=(500, 4, 4)))
  wins = np.triu(wins, 1) - np.triu(wins, 1).swapaxes(1, 2)
  got = np.abs(advantages.of_duels(jnp.array(wins), jnp.ones((500, 4)), eps=0.0))
  assert got.max() == pytest.approx(0.75 * 2**0.5)


def test_the_judge_of_a_config_decides():
  """By the sample's texts: +1 for the larger share of the asked letter."""
  judge = dict(name='better', both_orders=True)
  c = runs.config('think_rm_pairwise')
  c.judge = judge
  run = runs.assembled(c)
  drawn = run.source(run.state, 0)
  score = lambda row_: (
    row_['completion'].count(row_['prompt'][-1]) / max(len(row_['completion']), 1)
  )
  share = np.array([score(r) for r in drawn.samples]).reshape(8, 4)
  want = np.sign(share[:, :, None] - share[:, None])
  assert want.any()
  np.testing.assert_array_equal(drawn.batch.extra['duel'], want)


def test_pairwise_ppo_is_ppo_of_the_chance_to_win():
  batch = toy.batch()
  won = 1 / (1 + jnp.exp(batch.extra['anchor_reward'][:, None] - batch.reward))
  m = method('pairwise_ppo')
  want = update(method('ppo'), batch.replace(reward=won))[0].params
  got = update(m, batch)[0].params
  for role in ('policy', 'critic'):
    close(got[role], want[role])


def test_what_all_answers_of_a_prompt_get_cancels():
  offset = jnp.arange(toy.B) * 5.0
  batch = toy.batch()
  moved = told({'greedy_reward': batch.extra['greedy_reward'] + offset}, batch)
  moved = moved.replace(reward=batch.reward + offset[:, None])
  m = method('pairwise_ppo', anchor='greedy')
  close(gradient(m, moved), gradient(m, batch))


def test_anchors_that_are_not_there_are_asked_for():
  bare = clean(toy.batch()).replace(extra={})
  for anchor, words in {
    'answer': 'source.anchor=True',
    'greedy': 'greedy=True',
  }.items():
    with pytest.raises(InputError, match=words):
      method('pairwise_ppo', anchor=anchor).prepare(toy.state(), bare)
  with pytest.raises(InputError, match="'answer' or 'greedy'"):
    method('pairwise_ppo', anchor='none').prepare(toy.state(), bare)


# ---- CGPO ----------------------------------------------------------------------------


def judged(reward, feasible, gap, anchor=0.2):
  """One prompt whose completions are one token, `gap` nats above the reference."""
  reward, gap = row(*reward), jnp.array(gap)[None, :, None]
  g = reward.shape[1]
  return types.make_batch(
    np.zeros((1, 1), np.int32),
    np.ones(1),
    np.zeros((1, g, 1), np.int32),
    np.ones((1, g)),
  ).replace(
    reward=reward,
    old_logp=jnp.full_like(gap, -1.0),
    ref_logp=-1.0 - gap,
    extra={'feasible': row(*feasible), 'anchor_reward': jnp.array([anchor])},
  )


def test_crpg_by_hand():
  # The card's: R 1, anchor .2, ratio 3 of 10: sigmoid(.8) .7 = .482982; the second
  # breaks a constraint, the third is past kl_max, the fourth below the reference: 1.2.
  half = 1.2 / 2
  batch = judged([1, 5, 9, 0.2], [1, 0, 1, 1], [3.0, 1.0, 12.0, -2.0])
  for cap, last in ((False, half), (True, 0.5)):
    _, got = method('cgpo_crpg', cap=cap).prepare(None, batch)
    want = np.array([0.482982, 0, 0, last])
    close(got.advantage, [want - want.mean()])
  m = method('cgpo_crpg')
  logp = jnp.array([[[-1.0], [-2.0], [-3.0], [-4.0]]])
  _, got = m.prepare(None, batch)
  want = np.array([0.482982, 0, 0, half])
  loss = -((want - want.mean()) * [-1, -2, -3, -4]).mean()
  check(m.loss(Outputs(logp=logp), weigh(got, m)), loss)


def test_crpg_near_the_reference_is_reinforce_of_the_calibrated_reward():
  """No constraint broken, kl_max past all bounds."""
  batch = told({'feasible': jnp.ones((toy.B, toy.G))})
  won = jax.nn.sigmoid(batch.reward - batch.extra['anchor_reward'][:, None])
  centred = lambda reward, valid: reward - reward.mean()
  want = method('reinforce', advantage=centred, aggregate='seq_sum')
  got = gradient(method('cgpo_crpg', kl_max=1e9), batch)
  close(got, gradient(want, batch.replace(reward=won)))


def test_crraft_by_hand():
  # The best that passes within 5 nats is the last: sigmoid(.8) on a log-prob of -4.
  batch = judged([0, 5, 9, 1], [1, 0, 1, 1], [3.0, 1.0, 12.0, -2.0])
  m = method('cgpo_crraft', kl_max=5.0)
  _, ready = m.prepare(None, batch)
  np.testing.assert_array_equal(ready.valid, [[0, 0, 0, 1]])
  logp = jnp.array([[[-1.0], [-2.0], [-3.0], [-4.0]]])
  check(m.loss(Outputs(logp=logp), weigh(ready, m)), 4 / (1 + np.exp(-0.8)))
  _, none = m.prepare(None, judged([1, 2], [0, 0], [0.0, 0.0]))
  assert float(none.mask.sum()) == 0


def test_crraft_without_constraints_is_raft_of_what_is_won():
  """One anchor far below all rewards: each best counts 1; lengths equal."""
  batch = toy.batch(1, g=3)
  full = jnp.full_like(batch.length, toy.T)
  batch = batch.replace(mask=jnp.ones_like(batch.mask), length=full)
  ones = {'feasible': jnp.ones((toy.B, 3)), 'anchor_reward': jnp.full(toy.B, -99.0)}
  got = gradient(method('cgpo_crraft', kl_max=1e9), told(ones, batch))
  close(got / toy.T, gradient(method('raft'), batch))


def test_codpo_by_hand():
  """Which pair: the best that passes, the worst that fails or, if none does, of all."""
  sides = {
    ((1, 3, 0, 9), (1, 1, 0, 0)): [0, 1, -1, 0],
    ((1, 3, 0, 9), (1, 1, 1, 1)): [0, 0, -1, 1],
    ((1, 3, 0, 9), (0, 0, 0, 0)): [0, 0, 0, 0],
    ((2, 2, 2, 2), (1, 1, 1, 1)): [0, 0, 0, 0],
  }
  m = method('cgpo_codpo', beta=0.5, nll=0.25)
  for (reward, feasible), want in sides.items():
    _, got = m.prepare(None, judged(reward, feasible, [0.0] * 4))
    np.testing.assert_array_equal(got.extra['side'], [want])
    np.testing.assert_array_equal(got.mask[..., 0], np.abs([want]))
  # Of the second and the third, whose reference says -2 and -3.
  _, got = m.prepare(None, judged((1, 3, 0, 9), (1, 1, 0, 0), [0.0, 1.0, 2.0, 0.0]))
  logp = jnp.array([[[-7.0], [-0.5], [-4.0], [-7.0]]])
  logit = 0.5 * ((-0.5 + 2) - (-4 + 3))
  want = np.log1p(np.exp(-logit)) + 0.25 * 0.5
  check(m.loss(Outputs(logp=logp), m.measure(None, weigh(got, m))), want)


def test_codpo_of_two_with_one_that_fails_is_dpo():
  side = jnp.where(toy.batch().reward[:, :1] > 0, row(1, -1), row(-1, 1))
  batch = told({'feasible': (side > 0) * 1.0})
  turn = lambda x: jnp.where(
    side[:, :1].reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, x[:, ::-1]
  )
  pairs = batch.replace(
    **{k: turn(vars(batch)[k]) for k in ('completions', 'length', 'mask')}
  )
  got = gradient(method('cgpo_codpo', beta=0.1, nll=0.0), batch)
  close(got, gradient(method('dpo', beta=0.1), pairs))


@pytest.mark.parametrize('name', ['cgpo_crpg', 'cgpo_codpo', 'cgpo_crraft', 'hc_rlhf'])
def test_constraints_that_are_not_there_are_asked_for(name):
  batch = clean(toy.batch())
  bare = batch.replace(extra={'anchor_reward': batch.extra['anchor_reward']})
  with pytest.raises(InputError, match=rf'{name}.*config\.costs'):
    method(name).prepare(carried(method(name)), bare)
