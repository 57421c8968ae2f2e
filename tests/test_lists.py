"""Lists, self-play against the past, and losses with parts of their own: identities,
numbers by hand, and golden ones from NumPy.
"""

import contextlib
import itertools
import json
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from oracles import preference_lists as oracle
from test_by_hand import check, loss, row
from test_games import GAMES, PAIRS, nash, played, spelled, three
from test_identities import at_reference, bandit, close, gradient, update
from test_scripts import script

from configs import online
from jaxrl_llm import assemble, build, collect, log, pairing
from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.judges import verdicts
from jaxrl_llm.ops import preferences, weights
from jaxrl_llm.rewards.margins import margins, sample
from jaxrl_llm.rewards.sample import Batched
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import clean, weigh
from jaxrl_llm.tasks.records import Record, Task, chat
from jaxrl_llm.types import InputError, Outputs

method = build.method
GOLDEN = json.loads(oracle.FILE.read_text())


def column(*x):
  """Completions of one token each: [1, G, 1]."""
  return jnp.array([[[v] for v in x]], jnp.float32)


def test_the_golden_file_is_fresh():
  numbers = lambda table: [
    (r['inputs'], r['value'], r['slope']) for r in table.values()
  ]
  chex.assert_trees_all_close(numbers(oracle.table()), numbers(GOLDEN), rtol=1e-12)
  assert list(GOLDEN) == list(oracle.LOSSES)


@pytest.mark.parametrize('wide', [True, False])
@pytest.mark.parametrize('title', oracle.LOSSES)
def test_losses_of_lists(title, wide):
  """AT-47: value and slope in each completion's log-prob, against NumPy."""
  want = GOLDEN[title]
  m = method(title.split(',')[0], **want['options'])
  with toy.float64() if wide else contextlib.nullcontext():
    x = {k: jnp.asarray(np.array(v), float) for k, v in want['inputs'].items()}
    mask = (jnp.arange(6)[None, None] < x['length'][..., None]).astype(float)
    spread = lambda total: total[..., None] / x['length'][..., None] * mask
    batch = bandit(np.zeros(x['logp'].shape)).replace(
      mask=mask,
      reward=x['reward'],
      ref_logp=spread(x['ref']),
      old_logp=spread(x['old']),
    )
    batch = weigh(m.prepare(None, batch)[1], m)

    def value_of(logp):
      out = Outputs(logp=spread(logp), ref_divergence=spread(x['drift']))
      return m.loss(out, batch)[0]

    value, slope = jax.value_and_grad(value_of)(x['logp'])
    atol = 1e-6 if wide else 1e-5 * max(1.0, abs(want['value']))
  close(value, want['value'], atol)
  close(slope, want['slope'], atol)


@pytest.mark.parametrize('name', ['plackett_luce_dpo', 'pro', 'cpl', 'tdpo', 'spin'])
@pytest.mark.parametrize('size', [1e3, -1e3])
def test_wide_margins_are_finite(name, size):
  """AT-49: value and gradient at margins of +-1000 nats."""

  def at(x):
    zero = jnp.zeros_like(x)
    out = Outputs(logp=x, ref_divergence=zero)
    return loss(name, {}, out, ref_logp=zero, reward=row(1, 0))[0]

  x = column(0, -1e3) if size > 0 else column(-1e3, 0)
  value, slope = jax.value_and_grad(at)(x)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


# ---- Lists ---------------------------------------------------------------------------


def test_weights_of_ragged_lists():
  # Lists of two (2 tokens and 1), of one, and of none: the first alone counts.
  mask = jnp.array([[[1, 1], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], jnp.float32)
  got = weights.lists(mask)
  close(got[0], [[0.25, 0.25], [0.5, 0]])
  close(got[1:], 0)
  close(weights.lists(mask * 0), 0)


def test_who_is_ranked_below_whom():
  reward, there = row(1, 2, 1, 5), row(1, 1, 1, 0)
  strict = [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
  np.testing.assert_array_equal(preferences.ranked(reward, there)[0], strict)
  strict[0][2] = 1  # As the first of the two.
  got = preferences.ranked(reward, there, ties=True)
  np.testing.assert_array_equal(got[0], strict)


def untied(batch):
  """The batch with one of a pair better than the other."""
  best = jnp.arange(batch.reward.shape[0]) % 2
  return batch.replace(reward=jnp.stack([best, 1 - best], 1).astype(jnp.float32))


def best_first(batch):
  """The rows of pairs with the higher reward first."""
  order = jnp.argsort(-batch.reward, 1)
  rows = jnp.arange(len(order))[:, None]
  turn = lambda x: x[rows, order] if x.ndim > 1 and x.shape[:2] == order.shape else x
  return jax.tree.map(turn, batch)


def test_plackett_luce_of_two_is_dpo():
  """Whatever the order the two come in."""
  batch = untied(toy.batch())
  got = update(method('plackett_luce_dpo', beta=0.7), batch)
  want = update(method('dpo', beta=0.7), best_first(batch))
  close(got[0].params['policy'], want[0].params['policy'])
  for name in ('loss', 'margin', 'accuracy'):
    close(got[1][name], want[1][name])


def ranking_loss(name, scores, reward, **options):
  logp = column(*scores)
  fields = dict(reward=row(*reward), ref_logp=jnp.zeros_like(logp))
  return loss(name, options, Outputs(logp=logp), **fields)[0]


def test_plackett_luce_is_a_distribution_over_orders():
  """The chances of all rankings of four add up to 1; log Z(x) is in none of them."""
  scores = [0.3, -1.2, 0.8, 0.1]
  total = lambda shift: sum(
    np.exp(-ranking_loss('plackett_luce_dpo', np.add(scores, shift), order, beta=1.5))
    for order in itertools.permutations(range(4))
  )
  close(total(0.0), 1.0)
  close(total(5.5), 1.0)
  same = ranking_loss('plackett_luce_dpo', [-0.7] * 5, range(5))
  close(same, math.log(math.factorial(5)))


def test_plackett_luce_by_hand():
  # beta .1, rho (.7, -.4, .1), ranked first, third, second: s = (.07, .01, -.04):
  # log(e^.07 + e^.01 + e^-.04) - .07 + log(e^.01 + e^-.04) - .01 = 1.711418.
  found = ranking_loss('plackett_luce_dpo', (0.7, -0.4, 0.1), (2, 0, 1), beta=0.1)
  close(found, 1.711418)


def test_what_is_tied_is_not_compared():
  """Of three with one tie: log of the best against both, and nothing between these."""
  got = ranking_loss('plackett_luce_dpo', (0.7, -0.4, 0.1), (1, 0, 0), beta=1.0)
  close(got, np.log(np.exp([0.7, -0.4, 0.1]).sum()) - 0.7)
  alike = untied(toy.batch()).replace(reward=jnp.ones((toy.B, toy.G)))
  close(gradient(method('plackett_luce_dpo'), alike), 0)


@pytest.mark.parametrize('name', ['plackett_luce_dpo', 'pro'])
def test_what_is_not_valid_has_no_rank(name):
  """A list of four without its second is the list of the other three; alone, none."""
  batch = toy.batch(0, g=4)
  batch = batch.replace(reward=jnp.argsort(toy.batch(1, g=4).length, 1) * 1.0)
  rest = lambda x: x[:, np.array([0, 2, 3])]
  others = jax.tree.map(
    lambda x: rest(x) if x.ndim > 1 and x.shape[:2] == (toy.B, 4) else x, batch
  )
  m = method(name)
  without = batch.replace(valid=batch.valid.at[:, 1].set(0.0))
  close(gradient(m, without), gradient(m, others))
  assert abs(gradient(m, others)).max() > 1e-3
  single = batch.replace(valid=batch.valid.at[:, 1:].set(0.0))
  close(gradient(m, single), 0)


def test_pro_by_hand():
  # Means (-1, -1.4, -.9), rewards (1.2, .3, -.5). First: gaps .9 and 1.7, own 1.7:
  # log(e^-1.7 + e^-1.26 + e^-1.53) + 1.7; second, gap .8: log(e^-1.12 + e^-.72) + 1.12.
  # Imitation: .05 * 2^2 * 1, of a first completion of one token.
  scores, reward = (-1.0, -1.4, -0.9), (1.2, 0.3, -0.5)
  bare = np.log(np.exp([-1.7, -1.26, -1.53]).sum()) + 1.7
  bare += np.log(np.exp(-1.12) + np.exp(-0.72)) + 1.12
  close(bare, 2.231569)
  close(ranking_loss('pro', scores, reward, sft=0.0), bare)
  close(ranking_loss('pro', scores, reward), bare + 0.2)
  # In another order, the same.
  close(ranking_loss('pro', scores[::-1], reward[::-1]), bare + 0.2)


def test_pro_of_two_is_bradley_terry_of_means():
  """softplus(-gap (s_1 - s_2)); gaps of 0 make log n!, whatever the scores."""
  got = ranking_loss('pro', (-1.0, -1.6), (2.0, 0.5), sft=0.0)
  close(got, np.log1p(np.exp(-1.5 * 0.6)))
  got = ranking_loss('pro', (-1.0, -2.0, -0.3, -4.0), (1, 1, 1, 1), sft=0.0)
  close(got, np.log(24.0), 1e-5)


# ---- Pairs ---------------------------------------------------------------------------


def test_cpl_anchored_is_dpo():
  got = gradient(method('cpl', alpha=0.3, lam=1.0, anchored=True))
  close(got, gradient(method('dpo', beta=0.3)))


def test_cpl_by_hand():
  # alpha 1/2, discount 1/2, tokens chosen at 0 and 2: A = (-1 - 4 / 2) / 2 = -1.5 and
  # (-2 - 2 / 2) / 2 = -1.5: log(1 + exp(-.75 + 1.5)) for lam 1/2.
  logp = jnp.array([[[-1.0, -9.0, -4.0], [-2.0, -9.0, -2.0]]])
  mask = jnp.array([[[1.0, 0.0, 1.0]] * 2])
  options = dict(alpha=0.5, lam=0.5, discount=0.5)
  found = loss('cpl', options, Outputs(logp=logp), mask=mask)
  check(found, np.log1p(np.exp(0.75)))
  with pytest.raises(InputError, match=r'lam=0\.0'):
    method('cpl', lam=0.0)


def test_a_smaller_lam_keeps_both_likely():
  """At equal regrets the sum of both slopes is -(1 - lam) alpha sigmoid(...)."""
  x = column(-2, -2)
  for lam in (0.5, 1.0):
    value = lambda x, lam=lam: loss('cpl', dict(lam=lam), Outputs(logp=x))[0]
    slope = jax.grad(value)(x).sum()
    late = 1 / (1 + np.exp(-0.2 * (1 - lam)))
    close(slope, -0.1 * (1 - lam) * late)


def test_tdpo_without_alpha_is_dpo():
  close(gradient(method('tdpo', alpha=0.0)), gradient(method('dpo')))


@pytest.mark.parametrize('detach', [True, False])
def test_tdpo_starts_as_dpo(detach):
  """At the reference D and its slope are 0: log 2 and dpo's first step."""
  m, state = method('tdpo', alpha=1.0, detach=detach), at_reference()
  close(update(m, state=state)[1]['loss'], np.log(2))
  close(gradient(m, state=state), gradient(method('dpo'), state=state))


def test_tdpo_by_hand():
  # beta .1, rho (.7, -.4), D (.25, .4): h - (D_l - D_w) = .95, and 1.025 at alpha 1/2.
  out = Outputs(logp=column(0.7, -0.4), ref_divergence=column(0.25, 0.4))
  zero = dict(ref_logp=column(0, 0))
  first = dict(alpha=1.0, detach=False)
  check(loss('tdpo', first, out, **zero), 0.6467749)
  check(loss('tdpo', {}, out, **zero), 0.6432099)


@pytest.mark.parametrize('detach', [True, False])
def test_tdpo_holds_the_kl_from_the_reference(detach):
  """sum_v ref (log ref - log pi) at each token, its slope where it has one."""
  state, batch = toy.state(), toy.batch()
  ref = toy.distribution(state.frozen['ref'], batch)
  inside = batch.mask

  def value(table):
    p = toy.distribution(table, batch)
    apart = (inside * jnp.sum(jnp.exp(ref) * (ref - p), -1)).sum(-1)
    chosen = jax.lax.stop_gradient(apart[:, 0]) if detach else apart[:, 0]
    at = lambda t: (inside * toy.logp(t, batch)).sum(-1)
    rho = at(table) - at(state.frozen['ref'])
    h = rho[:, 0] - rho[:, 1] - 0.8 * (apart[:, 1] - chosen)
    return -jax.nn.log_sigmoid(0.3 * h).mean()

  m = method('tdpo', beta=0.3, alpha=0.8, detach=detach)
  close(gradient(m), jax.grad(value)(state.params['policy']))


# ---- Self-play -----------------------------------------------------------------------


def expected_spin(lam, policy, data, opponent):
  """Value and gradient of spin over all pairs (data's, opponent's) of one token."""
  m = method('spin', lam=lam)
  pairs = np.array(list(itertools.product(range(toy.V), repeat=2)))
  batch = bandit(pairs)
  share = jnp.outer(jnp.exp(data), jnp.exp(opponent)).ravel()
  old = jnp.tile(opponent[None], (toy.V, 1))
  batch = batch.replace(ref_logp=toy.logp(old, batch))
  batch = weigh(batch, m).replace(prompt_weight=share)

  def value(logits):
    table = jnp.tile(logits[None], (toy.V, 1))
    return m.loss(Outputs(logp=toy.logp(table, batch)), batch)[0]

  return jax.value_and_grad(value)(policy)


DATA = jax.nn.log_softmax(jnp.array([0.5, -1.0, 0.2, 1.1, -0.3]))
OPPONENT = jax.nn.log_softmax(jnp.array([-0.2, 0.4, 0.9, -0.6, 0.1]))


@pytest.mark.parametrize('lam', [0.5, 1.0, 2.0])
def test_a_round_of_spin_ends_between_opponent_and_data(lam):
  """p (data / p)^(1 / lam), and at lam 1 the data themselves."""
  rest = OPPONENT + (DATA - OPPONENT) / lam
  close(expected_spin(lam, rest, DATA, OPPONENT)[1], 0)
  start = expected_spin(lam, OPPONENT, DATA, OPPONENT)[1]
  assert abs(start).max() > 1e-2
  # The loss is convex in the logits, so that this is its only minimum.


def test_spin_rests_at_the_data():
  """In expectation: log 2, and no slope."""
  value, slope = expected_spin(0.1, DATA, DATA, DATA)
  close(value, np.log(2))
  close(slope, 0)


def test_the_chance_against_a_group_by_hand():
  # Scores 0, log 3, not valid: sigmoid(log 3) = 3/4; with itself (1/2 + 3/4) / 2.
  batch = clean(toy.batch(0, g=3)).replace(
    reward=row(0, np.log(3), 9), valid=row(1, 1, 0)
  )
  of = lambda b: preferences.against_group(preferences.bradley_terry, b)
  close(of(batch), row(0.375, 0.625, 0))
  # A judge of texts says that the first always wins: (1/2 + 1) / 2.
  duel = jnp.array([[[0.0, 1, 1], [-1, 0, 1], [-1, -1, 0]]])
  close(of(batch.replace(extra={'duel': duel})), row(0.75, 0.25, 0))


def test_sppo_by_hand():
  # eta 10, sums of log(pi / old) .7 and -.4 at P of .9 and .2:
  # ((.7 - 4)^2 + (-.4 + 3)^2) / 2.
  fields = dict(old_logp=column(0, 0), reward=row(1, 0))
  out = Outputs(logp=column(0.7, -0.4))
  found = loss('sppo', dict(eta=10.0), out, dict(advantage=row(0.4, -0.3)), **fields)
  check(found, 8.825)


def test_sppo_keeps_the_ends():
  """The middle of three is not looked at; of equals the first alone, towards 0."""
  m = method('sppo', judge='better')
  batch = clean(toy.batch(0, g=3)).replace(reward=jnp.tile(row(1, 0, 2), (toy.B, 1)))
  np.testing.assert_array_equal(m.prepare(None, batch)[1].valid, [[0, 1, 1]] * toy.B)
  alike = batch.replace(reward=jnp.zeros((toy.B, 3)))
  got = m.prepare(None, alike)[1]
  np.testing.assert_array_equal(got.valid, [[1, 0, 0]] * toy.B)
  close(got.advantage, 0)


def seen(m, policy, old, ref, batch):
  """The batch of all pairs, prepared, each with its chance under `old`."""
  say = lambda table: toy.logp(table, batch)
  batch = batch.replace(old_logp=say(old), ref_logp=say(ref))
  batch = weigh(m.prepare(None, batch)[1], m)
  p = jax.nn.softmax(old[0])[:3]
  chance = jnp.outer(p, p).ravel()
  rows = chance[:, None] * batch.valid / 2
  batch = batch.replace(prompt_weight=chance, seq_weight=rows)
  value = lambda table: m.loss(Outputs(logp=toy.logp(table, batch)), batch)[0]
  return jax.grad(value)(policy)


def all_pairs():
  return clean(bandit(PAIRS).replace(reward=jnp.asarray(PAIRS, jnp.float32)))


@pytest.mark.parametrize('game', GAMES)
def test_on_policy_self_play_is_one_direction(game):
  """Where pi is pi_old: inpo is 4 / eta times nash_md, sppo eta times that of tau 0."""
  state, options = toy.state(), dict(judge=spelled(game))
  policy, ref = three(state.params['policy']), three(state.frozen['ref'])
  mine = jax.nn.softmax(policy[0])[:3]
  play = lambda tau: played(method('nash_md', tau=tau, **options), policy, ref, mine)
  at = lambda m: seen(m, policy, policy, ref, all_pairs())
  assert abs(play(0.3)).max() > 1e-2
  close(at(method('inpo', eta=0.8, tau=0.3, **options)), 4 / 0.8 * play(0.3), 1e-5)
  close(at(method('sppo', eta=3.0, **options)), 3.0 * play(0.0), 1e-5)


@pytest.mark.parametrize('game', GAMES)
def test_inpo_fitted_is_mirror_descent(game):
  """exp(P(y beats old) / eta) ref^(tau / eta) old^(1 - tau / eta) has no slope."""
  eta, tau, state = 0.9, 0.3, toy.state()
  old, ref = three(state.params['policy']), three(state.frozen['ref'])
  m = method('inpo', eta=eta, tau=tau, judge=spelled(game))
  p = jax.nn.softmax(old[0])[:3]
  wins = jnp.array(GAMES[game]) @ p
  log = lambda table: jax.nn.log_softmax(table[0])[:3]
  new = wins / eta + tau / eta * log(ref) + (1 - tau / eta) * log(old)
  rest = old.at[0, :3].set(new)
  assert abs(seen(m, old, old, ref, all_pairs())).max() > 1e-2
  close(seen(m, rest, old, ref, all_pairs()), 0)


@pytest.mark.parametrize('game', GAMES)
def test_inpo_comes_to_rest_at_the_regularised_nash(game):
  """The last policy, by descent in self-play, each batch of the policy itself."""
  state, tau = toy.state(), 0.4
  policy, ref = three(state.params['policy']), three(state.frozen['ref'])
  want = nash(game, np.asarray(jax.nn.softmax(ref[0])[:3]), tau)
  m = method('inpo', eta=1.0, tau=tau, judge=spelled(game))

  @jax.jit
  def rest(policy):
    step = lambda table, _: (
      table - 0.1 * seen(m, table, table, ref, all_pairs()),
      None,
    )
    return jax.lax.scan(step, policy, None, 3000)[0]

  close(jax.nn.softmax(rest(policy)[0])[:3], want, 1e-4)


def test_inpo_between_reference_and_itself():
  """tau = eta: online_ipo; tau above eta is refused."""
  close(
    gradient(method('inpo', eta=0.3, tau=0.3)), gradient(method('online_ipo', tau=0.3))
  )
  with pytest.raises(InputError, match='at most eta'):
    method('inpo', eta=0.1, tau=0.2)


def test_inpo_by_hand():
  # Margins of policy, reference and old 1.4, .3 and .6; eta .5, tau .2:
  # (1.4 - .4 * .3 - .6 * .6 - 1)^2 where the first surely wins.
  fields = dict(ref_logp=column(0.3, 0), old_logp=column(0.6, 0), reward=row(1, 0))
  options = dict(eta=0.5, tau=0.2, judge='better')
  check(loss('inpo', options, Outputs(logp=column(1.4, 0)), **fields), 0.0064)


# ---- Fresh pairs ---------------------------------------------------------------------


def test_two_of_a_group_by_hand():
  rng = np.random.default_rng(0)
  ends = lambda *reward, margin=0.0: pairing.two(
    np.array(reward), 'best_worst', margin, rng
  )
  assert ends(1, 3, 0, 2) == (1, 2)
  assert ends(1, 1) is None
  assert ends(2) is None
  assert ends(1, 0.5, margin=0.5) is None
  assert ends(1, 0.5, margin=0.4) == (0, 1)
  any_of = [
    pairing.two(np.array([1, 3, 0, 3]), 'best_random', 0.0, rng) for _ in range(64)
  ]
  # A tie with the best is no pair, one time in three.
  assert set(any_of) == {(1, 0), (1, 2), None}
  assert 8 < any_of.count(None) < 36


def grouped(reward, valid=None):
  """A source of the toy's groups with these rewards, and a cost of 10 less."""
  reward = np.tile(np.array(reward, np.float32), (toy.B, 1))
  batch = jax.tree.map(np.asarray, toy.batch(0, g=reward.shape[1]))
  there = np.ones_like(reward) if valid is None else np.tile(valid, (toy.B, 1))
  extra = {'cost': reward - 10, 'anchor_reward': reward[:, 0]}
  batch = batch.replace(reward=reward, valid=np.float32(there), extra=extra)
  return batch, lambda state, step: Drawn(batch, {'reward': 1.0}, [])


def test_pairs_have_the_better_one_first():
  batch, source = grouped([1, 4, 0, 2])
  found = pairing.paired(source, 'best_worst', 0.0)(toy.state(), 0)
  np.testing.assert_array_equal(found.batch.reward, [[4, 0]] * toy.B)
  np.testing.assert_array_equal(found.batch.extra['cost'], [[-6, -10]] * toy.B)
  np.testing.assert_array_equal(found.batch.extra['anchor_reward'], [1] * toy.B)
  np.testing.assert_array_equal(found.batch.completions, batch.completions[:, [1, 2]])
  np.testing.assert_array_equal(found.batch.prompts, batch.prompts)
  assert found.metrics == {'reward': 1.0, 'paired': 1.0}


def test_groups_without_a_pair_are_not_valid():
  """A margin that is too small, and rows that were no part of the group."""
  _, source = grouped([1, 4, 0, 2])
  found = pairing.paired(source, 'best_worst', 4.0)(toy.state(), 0)
  assert found.batch.valid.shape == (toy.B, 2)
  assert found.batch.valid.sum() == found.metrics['paired'] == 0
  close(gradient(method('dpo'), jax.tree.map(jnp.asarray, found.batch)), 0)
  _, source = grouped([1, 4, 0, 2], [1, 0, 0, 1])
  found = pairing.paired(source, 'best_worst', 0.0)(toy.state(), 0)
  np.testing.assert_array_equal(found.batch.reward, [[2, 1]] * toy.B)
  with pytest.raises(InputError, match="pair='best'"):
    pairing.paired(source, 'best', 0.0)


def test_random_pairs_depend_on_key_and_step_alone():
  _, source = grouped([1, 4, 0, 2])
  draw = pairing.paired(source, 'best_random', 0.0)
  first, again, other = (draw(toy.state(), step).batch.reward for step in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_dpo_learns_from_fresh_pairs():
  """The whole assembly: groups of four, of which a pair is trained."""
  c = online.get_config('dpo')
  c.source.update(prompts=8, group=4, max_prompt=8, max_length=4)
  c.task.test_size, c.mesh.fsdp, c.plan.refresh = 8, 1, 2
  run = assemble.assemble(c)
  drawn = run.source(run.state, 0)
  batch = drawn.batch
  assert batch.completions.shape[:2] == (8, 2)
  gap = batch.reward[:, 0] - batch.reward[:, 1]
  np.testing.assert_array_equal(gap > 0, batch.valid[:, 0] > 0)
  state, found = run.update(run.state, batch)
  close(found['loss'], np.log(2) * (batch.valid.sum() > 0), 1e-5)
  assert int(state.applied) == 1


@pytest.mark.parametrize(
  ('method', 'source', 'words'),
  [
    ('dpo', dict(pair=''), "dpo: .* come in no order. .*pair='best_worst'"),
    ('exo', dict(pair=''), 'exo: .* come in no order'),
    ('nash_md', dict(pair='best_worst'), "the opponent's"),
  ],
)
def test_an_order_that_the_method_would_misread(method, source, words):
  """Else the first that was drawn would be the chosen one, whatever its reward."""
  with pytest.raises(InputError, match=words):
    pairing.check_method({'name': method}, source)
  pairing.check_method({'name': 'exo', 'temperature': 0.5}, {'pair': ''})


def test_fresh_pairs_are_put_in_order():
  c = online.get_config('dpo')
  c.source.update(group=2, pair='')
  c.task.test_size, c.mesh.fsdp = 8, 1
  with pytest.raises(InputError, match='come in no order'):
    assemble.assemble(c)


def test_pairs_to_keep_by_hand():
  """Texts that ended, each once; SPIN's are the task's answer and another text."""
  asked = [Record(i, chat(f'q{i}'), 'right', {}) for i in range(3)]
  task = Task('t', lambda i: asked[i], (), None)
  said = [('a', 1.0), ('b', 3.0), ('c', 0.0), ('right', 1.0), ('a', 2.0), ('a', 2.0)]
  said += [('right', 1.0), ('right', 1.0), ('cut', 9.0)]
  batch, _ = grouped([0, 0, 0])
  truncated = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1]])
  batch = jax.tree.map(lambda x: x[:3], batch).replace(
    prompt_id=np.arange(3), truncated=truncated
  )
  samples = [{'completion': text, 'reward': r} for text, r in said]

  def kept(pair, margin=0.0):
    rng = np.random.default_rng(0)
    rows = collect.paired(
      Drawn(batch, {}, samples), task, rng, pair=pair, margin=margin
    )
    return [
      (row['prompt'][0]['content'], row['chosen'], row['rejected']) for row in rows
    ]

  assert kept('best_worst') == [('q0', 'b', 'c'), ('q1', 'a', 'right')]
  assert kept('best_worst', 1.0) == [('q0', 'b', 'c')]
  assert kept('answer') == [('q0', 'right', 'a'), ('q1', 'right', 'a')]
  asked[0] = asked[0]._replace(extra={'reference': 'whole'})
  assert kept('answer')[0] == ('q0', 'whole', 'a')
  asked[0] = asked[0]._replace(extra={'reference': 'a '})  # Not two texts to a table.
  assert kept('answer')[0] == ('q0', 'a ', 'b')
  with pytest.raises(InputError, match=r"config\.collect: pair='worst'"):
    kept('worst')


# ---- Tables --------------------------------------------------------------------------

SCORED = {'prompt': 'q', 'completions': list('abcd'), 'scores': [1.0, 4.0, 1.0, 2.5]}


def test_pairs_of_scores_by_hand():
  found = lambda **options: [
    (row['chosen'], row['rejected'], row['margin'])
    for row in reshape.pairs([SCORED], **options)
  ]
  assert found() == [
    *[('b', 'd', 1.5), ('b', 'a', 3), ('b', 'c', 3), ('d', 'a', 1.5), ('d', 'c', 1.5)]
  ]
  assert found(margin=1.5) == [('b', 'a', 3), ('b', 'c', 3)]
  assert found(ends=True) == [('b', 'c', 3)]
  ranked = {'prompt': 'q', 'completions': ['x', 'y'], 'ranks': [1, 0]}
  assert [r['chosen'] for r in reshape.pairs([ranked])] == ['y']


def test_grades_are_what_a_judge_asks_and_reads():
  label = {'prompt': chat('q'), 'completion': 'a', 'label': True}
  right, wrong = reshape.grades([label, label | {'label': False}])
  asked = verdicts.graded('q', 'a', low=0, high=5)
  assert right['prompt'] == wrong['prompt'] == asked.messages
  assert right['completion'] == f'{asked.mark} 5'
  read = lambda row: verdicts.grade(row['completion'], asked.mark, low=0, high=5)
  assert (read(right), read(wrong)) == (1.0, 0.0)
  found = [row['completion'][-1] for row in reshape.grades([SCORED], low=1)]
  assert found == ['4', '2', '1', '1']
  with pytest.raises(InputError, match='a score of 4; grades are from 0 to 3'):
    list(reshape.grades([SCORED], high=3))


def test_rankings_of_scores_by_hand():
  (row,) = reshape.rankings([SCORED])
  assert (row['completions'], row['ranks']) == (list('bdac'), [0, 1, 2, 2])
  (row,) = reshape.rankings([SCORED], size=3)
  assert kinds.rankings(row).reward == [0, -1, -2]
  assert list(reshape.rankings([SCORED], size=5)) == []
  (row,) = reshape.rankings(
    [{'prompt': 'q', 'completions': ['x', 'y'], 'ranks': [1, 0]}]
  )
  assert (row['completions'], row['ranks']) == (['y', 'x'], [0, 1])


def test_labels_of_scores_and_of_pairs():
  pair = {'prompt': 'q', 'chosen': 'x', 'rejected': 'y'}
  found = [kinds.labels(row) for row in reshape.labels([pair, SCORED], threshold=2.0)]
  said = [(e.completions[0], e.reward[0]) for e in found]
  assert said == [('x', 1), ('y', -1), ('b', 1), ('d', 1), ('a', -1), ('c', -1)]


def test_labels_of_what_has_no_threshold():
  """Ranks have no zero, a score of 7 is not good by itself, a tie is neither."""
  ranked = {'prompt': 'q', 'completions': ['x', 'y'], 'ranks': [0, 1]}
  for rated, words in ((ranked, 'pairs of them'), (SCORED, r'threshold=\.\.\.')):
    with pytest.raises(InputError, match=words):
      list(reshape.labels([rated]))
  tied = pair('x', 'y') | {'tie': True}
  found = reshape.labels([tied, pair('x', 'y') | {'tie': False}])
  assert [made['label'] for made in found] == [True, False]


def test_a_prompt_by_another_name():
  """Messages in 'messages' or 'context' tell prompts apart, and come along."""
  for name in ('messages', 'context'):
    asked = lambda text, name=name: {name: chat(text)}
    rows = [
      asked(q) | {'chosen': a, 'rejected': b} for q, a, b in ('qyn', 'rny', 'qyn')
    ]
    assert list(reshape.consistent(rows)) == rows
    assert list(reshape.flip_rate(rows)) == [{'pairs': 3, 'flip_rate': 0.0}]
    with pytest.raises(InputError, match='in common'):
      list(reshape.agreement(rows[:1], others=rows[1:2]))
    scored = asked('q') | {'completions': ['x', 'y'], 'scores': [0.0, 1.0]}
    for change in (reshape.pairs, reshape.rankings):
      (made,) = change([scored])
      assert made['prompt'] == chat('q')


def pair(chosen, rejected, prompt='q', **more):
  return {'prompt': prompt, 'chosen': chosen, 'rejected': rejected} | more


def test_equal_and_contradicting_rows():
  """Of the two, one comes twice and once the other way: all of them contradict."""
  rows = [pair('a', 'b'), pair('a', 'b'), pair('b', 'a'), pair('a', 'b', 'other')]
  assert list(reshape.deduplicated(rows)) == [rows[0], *rows[2:]]
  assert list(reshape.consistent(rows)) == [rows[3]]
  assert list(reshape.flip_rate(rows)) == [{'pairs': 4, 'flip_rate': 0.75}]


def test_agreement_by_hand():
  """Of four that both have, three the same; Wilson's interval of 3 / 4."""
  one = [pair('a', 'b', str(i)) for i in range(5)]
  other = [*one[:3], pair('b', 'a', '3'), pair('a', 'c', '4')]
  (found,) = reshape.agreement(one, others=other)
  assert (found['pairs'], found['agreement']) == (4, 0.75)
  assert found['low'] == pytest.approx(0.3006, abs=1e-3)
  assert found['high'] == pytest.approx(0.9544, abs=1e-3)
  with pytest.raises(InputError, match='in common'):
    list(reshape.agreement(one[:1], others=other[1:]))


def test_known_noise():
  """A share of all rows, the same ones each time; a table's beginning is its own."""
  rows = [pair(f'good {i}', f'bad {i}') for i in range(400)]
  found = list(reshape.flipped(rows, share=0.3))
  turned = [row['chosen'].startswith('bad') for row in found]
  assert turned == [row['flipped'] for row in found]
  assert 0.2 < np.mean(turned) < 0.4
  assert list(reshape.flipped(rows[:9], share=0.3)) == found[:9]
  assert list(reshape.flipped(rows, share=0.3, seed=1)) != found
  assert [r['flipped'] for r in reshape.flipped(rows, share=0.0)] == [False] * 400
  told = [{'prompt': 'q', 'completion': 'x', 'label': True}]
  assert next(reshape.flipped(told, share=1.0))['label'] is False
  with pytest.raises(InputError, match=r'share=1\.5'):
    list(reshape.flipped(rows, share=1.5))


def test_answers_made_worse():
  text = 'one two 3 four 55 six seven eight'
  rows = [{'prompt': 'q', 'completion': text}, pair('nine ten', 'old')]
  first, second = reshape.corrupted(rows, how='drop', share=0.5)
  assert first['chosen'] == text
  kept = first['rejected'].split()
  assert len(kept) == 4
  assert [w for w in text.split() if w in kept] == kept
  assert second['rejected'] in ('nine', 'ten')
  (only,) = reshape.corrupted(rows, how='digits', share=1.0)  # The other has no digit.
  assert re.sub('[0-9]', '#', only['rejected']) == re.sub('[0-9]', '#', text)
  assert all(a != b for a, b in zip(only['rejected'], text) if b.isdigit())
  words = {w for row in rows for w in reshape.good(row).split()}
  for made in reshape.corrupted(rows, how='swap', share=0.2, seed=3):
    assert set(made['rejected'].split()) <= words
    differ = [a != b for a, b in zip(made['rejected'].split(), made['chosen'].split())]
    assert 1 <= sum(differ) <= 2
  with pytest.raises(InputError, match="how='blur'"):
    list(reshape.corrupted(rows, how='blur'))


def test_messages_made_worse():
  """As transcripts has them, hh-rlhf's."""
  said = lambda text: [{'role': 'assistant', 'content': text}]
  row = pair(said('one 2'), said('old'), [{'role': 'user', 'content': 'q'}])
  (made,) = reshape.corrupted([row], how='digits')
  assert (made['prompt'], made['chosen']) == (row['prompt'], row['chosen'])
  assert made['rejected'][0]['role'] == 'assistant'
  assert re.fullmatch('one [013-9]', made['rejected'][0]['content'])
  assert sample(0, row, 'chosen').completion == 'one 2'
  with pytest.raises(InputError, match="'chosen' has 2 messages"):
    sample(0, row | {'chosen': 2 * said('x')}, 'chosen')


def test_easy_and_hard_pairs():
  """MPO: by the median of 1, 2, 5, which is 2, and by a margin of one's own."""
  rows = [pair('a', 'b', margin=m) for m in (5.0, 1.0, 2.0)]
  told = lambda found: [row['margin'] for row in found]
  assert told(reshape.easy(rows)) == [5]
  assert told(reshape.hard(rows)) == [1, 2]
  assert told(reshape.easy(rows, margin=1.0)) == [5, 2]
  assert told(reshape.hard(rows, margin=1.0)) == [1]
  # What the reward model sets apart the wrong way round is easy for it too.
  assert told(reshape.easy([rows[1], pair('a', 'b', margin=-5.0)])) == [-5]


def by_length():
  return Batched(lambda samples: [float(len(s.completion)) for s in samples])


def test_the_row_that_has_no_margin_is_named(tmp_path):
  table = tmp_path / 'in.jsonl'
  log.write_lines(
    table, [pair('a', 'b'), {'prompt': 'q', 'chosen': 'x'}, pair('c', 'd')]
  )
  call = "jaxrl_llm.rewards.margins.margins(by={'name': 'test_lists.by_length'})"
  with pytest.raises(InputError, match="line 2: 'rejected' is missing"):
    script('reshape').main([call, str(table), str(tmp_path / 'out')])


def test_a_reward_says_the_margins():
  rows = [pair('abc', 'd'), pair('e', 'fg') | {'prompt': chat('q')}]
  found = list(margins(rows, by={'name': 'test_lists.by_length'}))
  assert [r['margin'] for r in found] == [2, -1]
  assert [r | {'margin': 0} for r in found] == [r | {'margin': 0} for r in rows]
  with pytest.raises(InputError, match='scores single answers'):
    list(margins(rows, by={'name': 'letter_share', 'letter': 'a'}))


def test_a_table_is_reshaped_by_a_script(tmp_path):
  table, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  log.write_lines(table, [SCORED, SCORED | {'scores': [1.0]}])
  run = lambda call: script('reshape').main([call, str(table), str(out)])
  with pytest.raises(
    InputError, match=r'in\.jsonl, line 2: 4 completions and 1 scores'
  ):
    run('pairs')
  log.write_lines(table, [SCORED])
  run('pairs(margin=1.5)')
  assert log.read_lines(out) == list(reshape.pairs([SCORED], margin=1.5))
  with pytest.raises(InputError, match='there already'):
    run('pairs')
  with pytest.raises(InputError, match="Did you mean 'pairs'"):
    script('reshape').main(['pair', str(table), str(tmp_path / 'none')])


def test_a_script_says_how_far_tables_agree(tmp_path):
  paths = [tmp_path / f'{name}.jsonl' for name in 'abcd']
  log.write_lines(paths[0], [pair('a', 'b'), pair('b', 'a'), pair('a', 'b', 'other')])
  log.write_lines(paths[1], [pair('a', 'b', 'other')])
  run = lambda call, out: script('reshape').main([call, str(paths[0]), str(out)])
  run(f'agreement(others="{paths[1]}")', paths[2])
  assert log.read_lines(paths[2])[0]['agreement'] == 1.0
  run('flip_rate', paths[3])
  assert log.read_lines(paths[3]) == [{'pairs': 3, 'flip_rate': pytest.approx(2 / 3)}]
  paths[2].write_bytes(b'{"prompt": "\xff"}')
  with pytest.raises(InputError, match=r'^[^ ]*c\.jsonl, line 1: not UTF-8'):
    script('reshape').main(['flip_rate', str(paths[2]), str(tmp_path / 'none')])
  with pytest.raises(InputError, match=r'write agreement\(others=...\)'):
    run('agreement', tmp_path / 'none')
