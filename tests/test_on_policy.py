"""The on-policy family: its papers' sentences as equalities, and numbers by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import check, loss, one, row
from test_identities import (
  ALL,
  LOGITS,
  PROBS,
  at_reference,
  bandit,
  close,
  expected,
  gradient,
  off_policy,
  update,
)

from jaxrl_llm import (
  assemble,
  build,
  controllers,
  entropy,
  filtration,
  sharding,
  types,
  wrapped,
)
from jaxrl_llm.ops import advantages, bins, sequences
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import clean, weigh
from jaxrl_llm.types import InputError, Outputs

method = build.method


def equal_lengths(batch):
  """Every token of every completion is the policy's."""
  full = jnp.full_like(batch.length, toy.T)
  return batch.replace(mask=jnp.ones_like(batch.mask), length=full)


# ---- Advantages ----------------------------------------------------------------------


def test_two_grpo_by_hand():
  # A = (1, -1); ratios 1.5 (held at 1.28) and 0.5 (counts as 0.8): -(1.28 - .8) / 2.
  logp = jnp.log(jnp.array([[[0.6], [0.2]]]))
  fields = dict(reward=row(7, 3), old_logp=jnp.log(jnp.array([[[0.4], [0.4]]])))
  check(loss('two_grpo', {}, Outputs(logp=logp), **fields), -0.24)


def test_two_grpo_is_grpo_of_two():
  """Population deviation, eps 0."""
  same = 'group_norm(eps=1e-30)'
  want = method('grpo', beta=0.0, clip_high=0.28, advantage=same)
  batch = off_policy(toy.batch())
  close(gradient(method('two_grpo'), batch), gradient(want, batch))


@pytest.mark.parametrize('p', [0.1, 0.3, 0.5])
def test_two_grpo_given_the_reward_has_advantage_reward_less_p(p):
  """Over all pairs of a Bernoulli reward: E[A | R] = R - p."""
  pairs = np.array(list(itertools.product((0.0, 1.0), repeat=2)), np.float32)
  chance = np.where(pairs[:, 1] > 0, p, 1 - p)
  adv = np.asarray(advantages.pair_sign(pairs, np.ones_like(pairs)))[:, 0]
  for r in (0.0, 1.0):
    mine = pairs[:, 0] == r
    close((adv * chance)[mine].sum(), r - p)


def test_pair_sign_wants_pairs():
  with pytest.raises(InputError, match='group=2'):
    advantages.pair_sign(row(1, 2, 3), row(1, 1, 1))


def test_gpg_by_hand():
  # Two groups, one tied: twice (1/2, -1/2); log-probs -1, -3: -(1 * -1 - 1 * -3) / 4.
  logp = jnp.array([[[-1.0], [-3.0]], [[-1.0], [-1.0]]])
  reward = jnp.array([[1.0, 0.0], [1.0, 1.0]])
  check(loss('gpg', {}, Outputs(logp=logp), reward=reward), -0.5)


def test_gpg_without_ties_is_reinforce_with_the_groups_mean():
  reward = jax.random.normal(jax.random.key(0), (toy.B, toy.G))
  batch = toy.batch().replace(reward=reward)
  want = method('reinforce', advantage='group_mean')
  close(gradient(method('gpg'), batch), gradient(want, batch))
  half = batch.replace(reward=jnp.where(jnp.arange(toy.B)[:, None] < 4, 1.0, reward))
  close(gradient(method('gpg'), half), 2 * gradient(want, half))


def test_opo_by_hand():
  # Lengths 2 and 1, R = (3, 0): b = 2, A = (1, -2); sums -3 and -4: -(-3 + 8) / 2.
  logp = jnp.array([[[-1.0, -2.0], [-4.0, 0.0]]])
  mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
  check(loss('opo', {}, Outputs(logp=logp), mask=mask, reward=row(3, 0)), -2.5)


def test_opo_of_equal_lengths_has_the_groups_mean():
  batch = equal_lengths(toy.batch(1, g=4))
  want = method('reinforce', advantage='group_mean', aggregate='seq_sum')
  close(gradient(method('opo'), batch), gradient(want, batch))


# ---- Ratios --------------------------------------------------------------------------


def test_gmpo_by_hand():
  # Log ratios .6 (held at .4) and -.2 for A = 1: e^.1; for A = -1 .6 counts, -.2 too.
  logp = jnp.array([[[0.6, -0.2], [0.6, -0.2]]]) - 2.0
  fields = dict(reward=row(1, 0), old_logp=jnp.full((1, 2, 2), -2.0))
  want = -(np.exp(0.1) - np.exp(0.2)) / 2
  check(loss('gmpo', {}, Outputs(logp=logp), **fields), want)
  # With a bound of .1 the second's -.2 is held at -.1.
  want = -(np.exp(-0.05) - np.exp(0.25)) / 2
  check(loss('gmpo', {'log_clip': 0.1}, Outputs(logp=logp), **fields), want)


def test_gmpo_without_a_clip_is_gspo_without_one():
  batch, wide = off_policy(toy.batch()), 1e6
  want = method('gspo', clip_low=wide, clip_high=wide)
  close(gradient(method('gmpo', log_clip=wide), batch), gradient(want, batch))


def test_sapo_by_hand():
  # Ratios 2 and 1/2, A = (1, -1): 4 sigmoid(1); 4 / 1.05 sigmoid(-.525).
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  logp = jnp.array([[[-1.0], [-1.0]]])
  fields = dict(reward=row(1, 0), old_logp=logp - jnp.log(jnp.array([[[2.0], [0.5]]])))
  want = -(4 * sigmoid(1.0) - 4 / 1.05 * sigmoid(-0.525)) / 2
  check(loss('sapo', {}, Outputs(logp=logp), **fields), want)


def test_sapo_on_policy_is_grpo():
  close(gradient(method('sapo')), gradient(method('grpo', beta=0.0)))


def test_reinforce_pp_by_hand():
  # One row, beta 1, d = (1, 2): A = R - (3, 2), whitened (-1, 1) whatever R is; ratios
  # 1 and 1.5, held at 1.2: -(-1 + 1.2) / 2.
  old = one(-1, -1)
  fields = dict(reward=row(5), old_logp=old, ref_logp=one(-2, -3))
  out = Outputs(logp=old + jnp.log(one(1, 1.5)))
  check(loss('reinforce_pp', {'beta': 1.0}, out, **fields), -0.1)


def test_reinforce_pp_is_reinforce_with_whitened_rewards():
  batch = equal_lengths(toy.batch())
  white = lambda r, valid: (r - r.mean()) / r.std()
  want = gradient(method('reinforce', advantage=white), batch)
  close(gradient(method('reinforce_pp', beta=0.0), batch), want)


def test_reinforce_pp_baseline_by_hand():
  # A = (1, -1) whitened is itself; ratios 1.5 and 1; d = log 2 for both.
  logp = jnp.log(jnp.array([[[0.6], [0.4]]]))
  old = jnp.log(jnp.array([[[0.4], [0.4]]]))
  fields = dict(reward=row(4, 2), old_logp=old, ref_logp=logp - np.log(2.0))
  want = -(1.2 - 1.0) / 2 + 0.1 * np.log(2.0) ** 2 / 2
  check(
    loss('reinforce_pp_baseline', {'beta': 0.1}, Outputs(logp=logp), **fields), want
  )


def test_reinforce_pp_baseline_divides_by_the_batchs_deviation():
  batch = equal_lengths(toy.batch())
  centred = advantages.group_mean(batch.reward, batch.valid)
  want = gradient(method('reinforce', advantage='group_mean'), batch) / centred.std()
  close(gradient(method('reinforce_pp_baseline', beta=0.0), batch), want)


# ---- Baselines and pairs -------------------------------------------------------------


def test_remax_by_hand():
  # R - greedy = (2, -1), beta .5 with d = (1, 0): A = (1.5, -1) on log-probs -1, -4.
  logp = jnp.array([[[-1.0], [-4.0]]])
  fields = dict(
    reward=row(3, 0),
    extra={'greedy_reward': jnp.array([1.0])},
    old_logp=logp,
    ref_logp=logp - jnp.array([[[1.0], [0.0]]]),
  )
  check(loss('remax', {'beta': 0.5}, Outputs(logp=logp), **fields), -(-1.5 + 4) / 2)


def test_remax_is_unbiased_whatever_greedy_gets():
  """Over all completions the baseline's part of the gradient is zero."""
  at = lambda x: ALL.replace(
    reward=jnp.arange(5.0)[None], extra={'greedy_reward': jnp.array([x])}
  )
  m = method('remax', beta=0.0, aggregate=expected)
  want = -jax.grad(lambda z: jnp.sum(jax.nn.softmax(z) * jnp.arange(5.0)))(LOGITS)
  close(gradient(m, at(0.0))[0], want)
  close(gradient(m, at(3.0))[0], want)


def test_remax_says_what_it_lacks():
  with pytest.raises(InputError, match=r'source\.greedy=True'):
    update(method('remax'), toy.batch().replace(extra={}))


def test_rebel_by_hand():
  # h = (.5, -.5), R = reward - .5 KL = (2 - .5, 1): (1 - 2 * .5)^2 with eta 2.
  old = jnp.array([[[-2.0], [-2.0]]])
  fields = dict(
    reward=row(2, 1), old_logp=old, ref_logp=old - jnp.array([[[1.0], [0.0]]])
  )
  logp = old + jnp.array([[[0.5], [-0.5]]])
  check(loss('rebel', {'eta': 2.0, 'beta': 0.5}, Outputs(logp=logp), **fields), 0.0)
  check(loss('rebel', {'eta': 4.0, 'beta': 0.5}, Outputs(logp=logp), **fields), 1.0)


def test_rebel_fitted_exactly_tilts_the_policy_by_the_reward():
  """pi proportional to pi_old exp(eta r): the regression over all pairs is solved."""
  scores, eta = jnp.array([0.0, 1.0, -0.5, 2.0, 0.7]), 0.6
  pairs = np.array(list(itertools.permutations(range(toy.V), 2)))
  old = jnp.log(PROBS)[pairs][..., None]
  batch = bandit(pairs).replace(reward=scores[pairs], old_logp=old)
  m = method('rebel', eta=eta, beta=0.0)
  batch = m.prepare(None, batch)[1].replace(
    prompt_weight=jnp.full(len(pairs), 1 / len(pairs))
  )

  def value(table):
    out = toy.forward({'policy': table}, {}, batch, ('logp',))
    return m.loss(out, batch)[0]

  step = lambda table, _: (table - 0.5 * jax.grad(value)(table), None)
  table = jax.lax.scan(step, toy.state().params['policy'], None, 400)[0]
  want = jax.nn.softmax(jnp.log(PROBS) + eta * scores)
  close(jax.nn.softmax(table[0]), want, 1e-4)


def test_rebel_with_kl_in_the_reward_rests_at_the_regularised_optimum():
  """Steps fitted exactly, each from the last: ref exp(r / beta) / Z, from elsewhere."""
  scores, eta, beta = jnp.array([0.0, 1.0, -0.5, 2.0, 0.7]), 0.8, 0.5
  pairs = np.array(list(itertools.permutations(range(toy.V), 2)))
  ref = jnp.log(PROBS)
  want = jax.nn.log_softmax(ref + scores / beta)
  batch = bandit(pairs).replace(reward=scores[pairs], ref_logp=ref[pairs][..., None])
  m = method('rebel', eta=eta, beta=beta)

  def misfit(logits, old):
    from_old = batch.replace(old_logp=old[pairs][..., None])
    out = Outputs(logp=jax.nn.log_softmax(logits)[pairs][..., None])
    return m.loss(out, weigh(m.prepare(None, from_old)[1], m))[0]

  @jax.jit
  def fitted(old):
    step = lambda x, _: (x - 0.5 * jax.grad(misfit)(x, old), None)
    return jax.nn.log_softmax(jax.lax.scan(step, old, None, 60)[0])

  now = jax.nn.log_softmax(jnp.array([1.0, -1.0, 0.5, 0.0, 2.0]))
  close(fitted(now), jax.nn.log_softmax(0.6 * now + 0.4 * want), 1e-4)
  for _ in range(25):  # The gap shrinks by 1 - eta beta each time.
    now = fitted(now)
  close(now, want, 1e-4)


def test_raft_by_hand():
  # The second is best: its tokens of -4 and -2 average 3.
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 2, 2), np.int32), [[2, 2]]
  ).replace(reward=row(0, 1))
  m = method('raft')
  batch = weigh(m.prepare(None, batch)[1], m)
  out = Outputs(logp=jnp.array([[[-1.0, -9.0], [-4.0, -2.0]]]))
  check(m.loss(out, batch), 3.0)


def test_the_prior_of_superhf_by_hand():
  # As above with KL(ref || pi) of .2 and .4 at the best's tokens: 3 + .5 * .3.
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 2, 2), np.int32), [[2, 2]]
  ).replace(reward=row(0, 1))
  m = method('raft', beta=0.5)
  batch = weigh(m.prepare(None, batch)[1], m)
  assert float(batch.extra['jsd_beta'][0]) == 0.0  # Of the reference, to the policy.
  logp = jnp.array([[[-1.0, -9.0], [-4.0, -2.0]]])
  apart = jnp.array([[[9.0, 9.0], [0.2, 0.4]]])
  check(m.loss(Outputs(logp=logp, ref_divergence=apart), batch), 3.15)


def test_the_prior_of_superhf_rests_at_the_reference():
  """With the policy at the reference the prior has no slope, and elsewhere it has."""
  state, batch = at_reference(), toy.batch(2)
  prior, plain = (method('raft', beta=beta) for beta in (2.0, 0.0))
  close(gradient(prior, batch, state), gradient(plain, batch, state), 1e-5)
  assert abs(gradient(prior, batch) - gradient(plain, batch)).max() > 1e-2


@pytest.mark.parametrize('name', ['raft', 'opo', 'grpo_process', 'cgpo_codpo'])
def test_a_group_of_one_is_refused(name):
  """AT-10: also where the baseline is of tokens, or the best of the group is taken."""
  with pytest.raises(InputError, match='at least two completions per prompt'):
    update(method(name), toy.batch(g=1))


def test_raft_is_sft_on_the_best():
  batch = toy.batch(2, g=3).replace(
    reward=jax.random.normal(jax.random.key(0), (toy.B, 3))
  )
  best = batch.reward.argmax(1)
  take = lambda x: x[jnp.arange(toy.B), best][:, None]
  rows = {k: take(vars(batch)[k]) for k in ('completions', 'length', 'mask', 'reward')}
  ones = {k: jnp.ones((toy.B, 1)) for k in ('valid', 'truncated', 'temperature')}
  alone = batch.replace(**rows, **ones)
  close(gradient(method('raft'), batch), gradient(method('sft'), alone))


# ---- Prompts by difficulty -----------------------------------------------------------


def carried(m):
  """The toy's state with what a method starts from."""
  extra = {k: jnp.array(v, jnp.float32) for k, v in m.extra.items()}
  return toy.state().replace(extra=extra)


def test_bins_by_hand():
  """Prompt 1 of three, two bins, margin .1: shares 1, 1/2, 1/3 over three visits."""
  extra = {k: jnp.array(v) for k, v in bins.start(3, 2).items()}
  seen = []
  for passed in (True, False, False, False):
    extra = bins.visited(extra, jnp.array([1]), jnp.array([passed]), 2, 0.1)
    seen.append(float(extra['gdro_bin'][1]))
  # 1 is past .6, so bin 1; 1/2 is not below .4; then the first visit is forgotten.
  assert seen == [1, 1, 0, 0]
  np.testing.assert_array_equal(extra['gdro_visits'], [0, 4, 0])
  np.testing.assert_array_equal(extra['gdro_bin'], [0, 0, 0])
  np.testing.assert_array_equal(extra['gdro_passed'][0], [-1, -1])
  size, mean = bins.means(
    jnp.array([0, 1, 1]), jnp.array([[4.0], [1.0], [2.0]]), jnp.ones((3, 1)), 3
  )
  close(size, [1, 2, 0])
  close(mean, [4, 1.5, 0])


def test_a_question_twice_in_a_batch_is_visited_twice():
  """Four visits of one among others, in room for four and for three; then one more."""
  who, passed = jnp.array([1, 0, 1, 1, 1]), jnp.array([1, 0, 0, 1, 1])
  for room, want in ((4, [1, 0, 1, 1]), (3, [1, 0, 1])):  # The first place is the last.
    extra = {k: jnp.array(v) for k, v in bins.start(3, room).items()}
    extra = bins.visited(extra, who, passed, 10, 0.03)
    np.testing.assert_array_equal(extra['gdro_passed'][1], want)
    np.testing.assert_array_equal(extra['gdro_visits'], [1, 4, 0])
    np.testing.assert_array_equal(extra['gdro_passed'][2], -1)
    assert float(extra['gdro_bin'][1]) == int(10 * np.mean(want))
    again = bins.visited(extra, jnp.array([1]), jnp.array([0]), 10, 0.03)
    place = 4 % room
    assert float(again['gdro_passed'][1, place]) == 0


def test_a_group_that_is_not_valid_is_no_visit():
  m = method('prompt_gdro', prompts=16, history=2, count=3)
  batch = toy.batch()
  batch = clean(batch.replace(valid=batch.valid.at[2].set(0.0)))
  extra = m.prepare(carried(m), batch)[0].extra
  want = np.arange(16) < toy.B
  want[2] = False
  np.testing.assert_array_equal(extra['gdro_visits'], want)
  np.testing.assert_array_equal(extra['gdro_passed'][2], -1)


@pytest.mark.parametrize('told', ['accuracy', 'solved'])
def test_a_visit_is_passed_by_what_is_right(told):
  """Not by the whole reward where a part says it, nor by what a filter or hint left."""
  m = method('prompt_gdro', prompts=16, history=2, count=3)
  right = jnp.arange(toy.B) % 2.0
  said = {'accuracy': right[:, None] * jnp.ones((1, toy.G)), 'solved': right}[told]
  batch = clean(toy.batch())
  batch = batch.replace(reward=9.0 * batch.valid, extra=batch.extra | {told: said})
  extra = m.prepare(carried(m), batch)[0].extra
  np.testing.assert_array_equal(extra['gdro_passed'][: toy.B, 0], right)


@pytest.mark.parametrize('name', ['prompt_gdro', 'rollout_gdro'])
def test_bins_of_mixed_groups_alone_are_refused(name):
  c = runs.config(name, source=dict(name='until_mixed', limit=2))
  with pytest.raises(InputError, match='every prompt would count as solved'):
    wrapped.make_method(c)


def test_prompt_gdro_by_hand():
  # Scores (log 2, 0) / eta: weights 2 and 1. A = (1, -1); ratios 1.5 and 1 in both:
  # gains 1.28 - 1 = .28 a group, doubled in the first: -(2 * .28 + .28) / 4.
  m = method('prompt_gdro', prompts=4, count=2, eta=0.5, beta=0.0)
  state = carried(m)
  told = {'gdro_score': jnp.array([2 * np.log(2.0), 0.0])}
  told['gdro_bin'] = jnp.array([0.0, 1.0, 0.0, 0.0])
  state = state.replace(extra=state.extra | told)
  batch = types.make_batch(
    np.zeros((2, 1), np.int32),
    np.ones(2),
    np.zeros((2, 2, 1), np.int32),
    np.ones((2, 2)),
  ).replace(
    reward=jnp.array([[1.0, 0.0]] * 2),
    old_logp=jnp.zeros((2, 2, 1)),
    prompt_id=jnp.array([0, 5]),
  )
  batch = weigh(m.prepare(state, batch)[1], m)
  logp = jnp.log(jnp.array([[[1.5], [1.0]]] * 2))
  got = m.loss(Outputs(logp=logp), batch)
  check(got, -(2 * 0.28 + 0.28) / 4)
  # Of each bin the loss without the weight: -.28 / 2.
  for i in (0, 1):
    total, weight = got[1][f'gdro_loss/{i}']
    close(total / weight, -0.14)


def test_on_policy_the_losses_of_bins_are_zero():
  """The card's trap: prompt_gdro is then grpo, for ever."""
  m = method('prompt_gdro', prompts=16, beta=0.0, clip_high=0.2)
  state, found = update(m, state=carried(m))
  close(state.extra['gdro_score'], 0.0)
  assert all(abs(float(found[f'gdro_loss/{i}'])) < 1e-6 for i in range(10))
  want = update(method('grpo', beta=0.0))[0].params['policy']
  close(state.params['policy'], want)


def test_the_reward_says_which_bins_lose():
  """EMA .5 of minus the mean reward over the bin's share, by hand; absent bins stay."""
  m = method('prompt_gdro', prompts=16, count=4, ema=0.5, signal='reward', history=4)
  state = carried(m)
  told = {'gdro_bin': jnp.array([0.0, 1.0] * 8), 'gdro_score': jnp.arange(4.0)}
  state = state.replace(extra=state.extra | told)
  reward = jnp.where(jnp.arange(toy.B)[:, None] % 2 == 0, 0.25, 1.0)
  batch = toy.batch().replace(reward=reward * jnp.ones((toy.B, toy.G)))
  got = update(m, batch, state)[0].extra
  close(got['gdro_score'], [0.5 * -0.25 / 0.5, 0.5 + 0.5 * -1 / 0.5, 2, 3])
  # A quarter is no pass: prompts of even id stay hardest, the others are solved.
  np.testing.assert_array_equal(got['gdro_bin'][:8], [0, 3] * 4)


def test_bins_follow_the_prompt_and_not_its_place():
  m = method('prompt_gdro', prompts=64, history=4)
  batch = toy.batch().replace(prompt_id=jnp.arange(toy.B) * 7)
  state = update(m, batch, carried(m))[0]
  turned = jax.tree.map(lambda x: x[::-1], batch)
  again = update(m, turned, carried(m))[0]
  for name in ('gdro_visits', 'gdro_bin', 'gdro_passed'):
    np.testing.assert_array_equal(state.extra[name], again.extra[name])
  visited = np.flatnonzero(state.extra['gdro_visits'])
  np.testing.assert_array_equal(visited, np.arange(toy.B) * 7)


# ---- PPO's relatives -----------------------------------------------------------------


def ready(**fields):
  """A batch with the log-probs and values that prepare reads."""
  batch = clean(toy.batch())
  draw = lambda i: -jax.random.uniform(jax.random.key(i), batch.mask.shape)
  names = ('old_logp', 'ref_logp', 'dpo_logp', 'old_prm_logp', 'old_value')
  found = {name: draw(i) * batch.mask for i, name in enumerate(names)}
  return batch.replace(**(found | fields))


def test_macro_actions_by_hand():
  # Runs of 2 over 4 tokens: (1, 2), (3), and the last alone. Rewards (1, 3 | 5 | 7)
  # average 2, 5, 7; values (2, 4 | 1 | 3) average 3, 1, 3. lam = discount = 1:
  # returns 14, 12, 7, less the values.
  reward, value = one(1, 3, 5, 7, 0), one(2, 4, 1, 3, 0)
  adv, target = advantages.macro_gae(
    reward, value, one(1, 1, 1, 1, 0), n=2, discount=1.0, lam=1.0
  )
  close(target, one(14, 14, 12, 7, 0))
  close(adv, one(11, 11, 11, 4, 0))


def test_ma_rlhf_of_one_token_is_ppo():
  batch = toy.batch()
  want = method('ppo', reward_clip=2.5)
  for role in ('policy', 'critic'):
    got = update(method('ma_rlhf', n=1), batch)[0].params[role]
    close(got, update(want, batch)[0].params[role])


def test_rto_without_the_dpo_reward_is_ppo():
  batch = toy.batch()
  want = method('ppo', beta=0.01, reward_clip=10.0)
  for role in ('policy', 'critic'):
    got = update(method('rto', beta1=0.0), batch)[0].params[role]
    close(got, update(want, batch)[0].params[role])


def test_rto_by_hand():
  # beta1 .5 on log dpo / ref = (2, -.1), held at .3: (.3, -.05); beta2 .1 on (1, 0).
  # Rewards (.2, -.05 + 1); V = 0, lam 1: targets (1.15, .95).
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 1, 2), np.int32), [[2]]
  ).replace(
    reward=row(1),
    old_logp=one(-1, -1),
    ref_logp=one(-2, -1),
    dpo_logp=one(0, -1.1),
    old_value=one(0, 0),
  )
  m = method('rto', beta1=0.5, dpo_clip=0.3, beta2=0.1, lam=1.0)
  close(m.prepare(None, batch)[1].target, one(1.15, 0.95))


def test_rto_with_the_exact_dpo_policy_has_the_reward_less_a_constant():
  """dpo = ref exp(r / beta) / Z: beta log dpo / ref sums to r - beta log Z."""
  scores, beta = jnp.array([0.0, 1.0, -0.5, 2.0, 0.7]), 0.4
  ref = jnp.log(PROBS)
  dpo = jax.nn.log_softmax(ref + scores / beta)
  batch = ALL.replace(
    reward=jnp.zeros((1, toy.V)),
    old_logp=ref[None, :, None],
    ref_logp=ref[None, :, None],
    dpo_logp=dpo[None, :, None],
    old_value=jnp.zeros((1, toy.V, 1)),
  )
  m = method('rto', beta1=beta, dpo_clip=0.0, beta2=0.0, lam=1.0)
  target = m.prepare(None, batch)[1].target[0, :, 0]
  start = beta * jax.nn.logsumexp(ref + scores / beta)
  close(target, scores - start, 1e-5)


def test_prime_without_the_process_is_the_whitened_outcome():
  batch = toy.batch()
  want = method('reinforce_pp_baseline', beta=0.0)
  close(gradient(method('prime', process=0.0), batch), gradient(want, batch))


def test_prime_by_hand():
  # q = (1, 3 | 2, 0): means 2 and 1. K = 2: 2 q - 3 = (-1, 3 | 1, -3); outcomes +1, -1
  # at the last. To go, process 1: (3, 4 | -3, -4), mean 0, deviation sqrt(12.5).
  zero = jnp.zeros((1, 2, 2))
  q = jnp.array([[[1.0, 3.0], [2.0, 0.0]]])
  fields = dict(reward=row(1, 0), old_prm_logp=q, ref_logp=zero, old_logp=zero)
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 2, 2), np.int32), [[2, 2]]
  ).replace(**fields)
  got = method('prime', process=1.0).prepare(None, batch)[1].advantage
  close(got, jnp.array([[[3.0, 4.0], [-3.0, -4.0]]]) / np.sqrt(12.5))
  # The model's logit: .5 * (2, -2) for outcomes 1, 0: both right, softplus(-1).
  out = Outputs(logp=zero, prm_logp=jnp.array([[[1.0, 1.0], [-1.0, -1.0]]]))
  found = loss('prime', {'prm_beta': 0.5}, out, dict(advantage=zero), **fields)
  check(found, np.log1p(np.exp(-1.0)))


def test_the_outcome_of_prime_is_the_part_that_is_right():
  m, batch = method('prime'), ready()
  out = Outputs(logp=batch.old_logp, prm_logp=batch.old_prm_logp)
  loss = lambda b: m.loss(out, weigh(m.prepare(None, b)[1], m))[1]['prm_accuracy'][0]
  wrong = batch.extra | {'accuracy': jnp.zeros_like(batch.reward)}
  paid = batch.replace(reward=batch.reward + 9.0)
  assert float(loss(paid) + loss(paid.replace(extra=wrong))) == pytest.approx(1.0)


def test_dense_rewards_reach_the_critics_target():
  """A reward of each token, where the batch has one, adds to ppo's."""
  batch = ready()
  bonus = jnp.arange(toy.T, dtype=jnp.float32)[None, None] * batch.mask
  m = method('ppo', lam=1.0)
  plain = m.prepare(None, batch)[1].target
  extra = batch.extra | {'token_reward': bonus}
  got = m.prepare(None, batch.replace(extra=extra))[1].target
  close(got - plain, sequences.to_go(bonus) * batch.mask, 1e-5)


# ---- Controllers ---------------------------------------------------------------------


def test_the_adaptive_kl_by_hand():
  """Target 6, horizon 40, 8 completions: by 1 +- .2 * 8 / 40, or what the error is."""
  after, start = controllers.adaptive_kl(0.1, 6.0, 40.0)
  state = toy.state().replace(extra={k: jnp.float32(v) for k, v in start.items()})
  batch, seen = toy.batch(g=1), []
  for kl in (12.0, 3.0, 6.6, 6.0):
    state = after(state, batch, {'kl_ref_seq': jnp.float32(kl)})
    seen.append(float(state.extra['beta']))
  want = np.cumprod([0.1 * 1.04, 0.96, 1.02, 1.0])
  np.testing.assert_allclose(seen, want, rtol=1e-6)


def test_ppo_moves_its_beta():
  """Far above the target beta grows; it is the state's that the reward sees."""
  m = method('ppo', beta=0.05, kl_target=1e-3, kl_horizon=16.0)
  state = toy.state().replace(extra={k: jnp.float32(v) for k, v in m.extra.items()})
  moved, found = update(m, state=state)
  assert float(found['kl_ref_seq']) > 1e-3
  np.testing.assert_allclose(moved.extra['beta'], 0.05 * 1.2, rtol=1e-6)
  high = state.replace(extra={'beta': jnp.float32(5.0)})
  want = update(method('ppo', beta=5.0), state=high)[0].params['policy']
  close(update(m, state=high)[0].params['policy'], want)


@pytest.mark.parametrize('kind', ['scale', 'norm'])
def test_rewards_by_running_moments(kind):
  """Two batches; invalid rows count in neither."""
  scaled, start = controllers.reward_scaler(kind, 0.5)
  state = toy.state().replace(extra={k: jnp.float32(v) for k, v in start.items()})
  rng, seen = np.random.default_rng(0), []
  for _ in range(2):
    reward = rng.normal(3.0, 2.0, (toy.B, toy.G)).astype(np.float32)
    valid = np.ones_like(reward)
    valid[0] = 0
    seen.append(reward[1:])
    batch = toy.batch().replace(reward=jnp.asarray(reward), valid=jnp.asarray(valid))
    state, score = scaled(state, batch)
    past = np.concatenate(seen)
    mean = past.mean() if kind == 'norm' else 0.0
    want = np.clip((reward - mean) / past.std(), -0.5, 0.5)
    np.testing.assert_allclose(score, want, rtol=1e-4, atol=1e-5)


def test_the_policy_rests_while_the_critic_learns():
  m = method('ppo', critic_steps=1)
  first, _ = update(m)
  start = toy.state().params
  np.testing.assert_array_equal(first.params['policy'], start['policy'])
  assert (np.asarray(first.params['critic']) != np.asarray(start['critic'])).any()
  second, _ = update(m, state=first)
  assert (np.asarray(second.params['policy']) != np.asarray(start['policy'])).any()


def test_controllers_refuse():
  with pytest.raises(InputError, match='kl_target=6'):
    method('ppo', beta=0.0, kl_target=6.0)
  with pytest.raises(InputError, match="'none', 'scale' or 'norm'"):
    method('ppo', reward_scale='max')


@pytest.mark.parametrize('name', ['grpo', 'dpo', 'ppo'])
def test_the_entropy_bonus_adds_its_own_gradient(name):
  plain, state = method(name), toy.state()
  batch = toy.batch()
  w = weigh(clean(batch), plain).weight

  def mean(policy):
    return jnp.sum(w * toy.entropy(policy, batch))

  got = gradient(entropy.with_entropy(plain, coef=0.3), batch)
  own = 0.3 * jax.grad(mean)(state.params['policy'])
  close(got, gradient(plain, batch) - own)
  found = update(entropy.with_entropy(plain, coef=0.3), batch)[1]
  close(found['entropy'], mean(state.params['policy']))
  close(found['entropy_coef'], 0.3)


def test_the_entropy_is_steered_by_hand():
  """Entropies 1, 3, 1 of target 2, delta .05: the bonus counts after a low one."""
  m = entropy.with_entropy(method('grpo', beta=0.0), coef=0.1, target=2.0, delta=0.05)
  state = toy.state().replace(extra={k: jnp.float32(v) for k, v in m.extra.items()})
  seen = []
  for h in (1.0, 3.0, 1.0):
    state, batch = m.prepare(state, toy.batch())
    seen.append(float(batch.extra['entropy_coef'][0]))
    state = m.after(state, batch, {'entropy': jnp.float32(h)})
  np.testing.assert_allclose(seen, [0.1, 0.15, 0.0], rtol=1e-6)
  np.testing.assert_allclose(state.extra['entropy_coef'], 0.15, rtol=1e-6)


def test_entropy_refuses():
  with pytest.raises(InputError, match='trains no policy'):
    entropy.with_entropy(method('bradley_terry'), coef=0.1)
  with pytest.raises(InputError, match='entropy_delta=0'):
    entropy.with_entropy(method('grpo'), coef=0.1, target=1.0)


def test_the_entropy_bonus_by_flag():
  plan = dict(entropy_coef=0.01, entropy_target=9.0, entropy_delta=0.005)
  run = runs.assembled(runs.config('grpo', plan=plan))
  batch = run.source(run.state, 0).batch
  state, found = run.update(run.state, sharding.put_batch(batch, run.mesh))
  assert 0 < float(found['entropy']) < 9
  np.testing.assert_allclose(state.extra['entropy_coef'], 0.015, rtol=1e-6)


# ---- Filtration ----------------------------------------------------------------------


def test_filtration_weights_by_hand():
  reward = np.array([1.0, 3.0, -2.0])
  want = {
    'best': [0, 1, 0],
    'best_random': [0.1, 0.4, 0.1],
    'best_worst': [0, 1, 1],
    'power': [1, 9, 4],
  }
  for kind, weights in want.items():
    np.testing.assert_allclose(filtration.weights(reward, kind), weights, atol=1e-9)


def test_rto_says_what_it_lacks():
  c = runs.config('rto')
  c.model.dpo = ''
  with pytest.raises(InputError, match=r'rto needs config\.model\.dpo'):
    assemble.assemble(c)
  c.model.dpo = 'smollm2'
  with pytest.raises(InputError, match='another vocabulary'):
    assemble.assemble(c)


def test_the_greedy_reward_is_that_of_the_likeliest_completions():
  run = runs.assembled(runs.config('remax', source=dict(filter='best_random')))
  drawn = run.source(run.state, 0)
  held = drawn.batch.extra['greedy_reward']
  assert held.shape == drawn.batch.prompts.shape[:1]
  assert drawn.metrics['rollouts'] == 8 * (4 + 1)
  assert drawn.metrics['reward_greedy'] == pytest.approx(float(held.mean()))
  # One token likelier than all others: every draw is the greedy one.
  sharp = jax.tree.map(lambda x: 100.0 * x, run.state.params['policy']['embed'])
  params = {'policy': run.state.params['policy'] | {'embed': sharp}}
  batch = run.source(run.state.replace(params=params), 0).batch
  want = np.broadcast_to(batch.extra['greedy_reward'][:, None], batch.reward.shape)
  np.testing.assert_array_equal(batch.reward, want)


def test_filtered_groups_hold_what_was_drawn():
  """Rows move as a whole, by the state's key and the step alone."""
  batch = jax.tree.map(np.asarray, toy.batch(0, g=4))
  batch = batch.replace(reward=np.arange(toy.B * 4, dtype=np.float32).reshape(-1, 4))
  source = filtration.filtered(lambda state, step: Drawn(batch, {}, []), 'best_worst')
  got = source(toy.state(), 3).batch
  again = source(toy.state(), 3).batch
  jax.tree.map(np.testing.assert_array_equal, got, again)
  which = (got.reward - batch.reward[:, :1]).astype(int)
  assert set(which.ravel()) == {0, 3}
  for b, row_ in enumerate(which):
    for g, w in enumerate(row_):
      np.testing.assert_array_equal(got.completions[b, g], batch.completions[b, w])
      assert got.length[b, g] == batch.length[b, w]
  np.testing.assert_array_equal(got.prompts, batch.prompts)
  with pytest.raises(InputError, match='best_random'):
    filtration.filtered(source, 'worst')


def test_nothing_is_learned_from_what_ran_out_of_room():
  """Overlong filtering, by flag: the rows keep their reward and lose their mask."""
  plain, masked = (
    runs.assembled(runs.config(source=dict(mask_truncated=flag)))
    for flag in (False, True)
  )
  want, got = (r.source(r.state, 0).batch for r in (plain, masked))
  out = np.asarray(want.truncated) > 0
  assert out.any() and not out.all()
  np.testing.assert_array_equal(got.reward, want.reward)
  np.testing.assert_array_equal(got.mask[out], 0.0)
  np.testing.assert_array_equal(got.mask[~out], want.mask[~out])


def test_a_signal_that_is_always_zero_is_refused():
  c = runs.config('prompt_gdro')
  c.method.signal = 'loss'
  with pytest.raises(InputError, match=r'Set config\.plan\.minibatches=4'):
    wrapped.make_method(c)
  c.plan.minibatches = 2
  assert wrapped.make_method(c).needs


def test_an_entropy_bonus_may_start_at_nothing():
  """Steered from 0 it is there; a target or a step alone is a mistake."""
  c = runs.config(plan=dict(entropy_target=0.5, entropy_delta=0.01))
  assert 'entropy' in wrapped.make_method(c).needs
  c.plan.entropy_target = 0.0
  with pytest.raises(InputError, match='both above 0, or neither'):
    wrapped.make_method(c)
