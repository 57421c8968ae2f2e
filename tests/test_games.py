"""Preference games: what self-play with a judge comes to rest at, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import check, loss, row
from test_identities import bandit, close, update

from jaxrl_llm import assemble, build, forward, sharding
from jaxrl_llm.models.decoder import Decoder, head_kernel
from jaxrl_llm.ops import logprobs, preferences
from jaxrl_llm.step import clean, weigh
from jaxrl_llm.types import InputError, Outputs

method = build.method

# Rock, paper, scissors with a tilt, and two games of random numbers.
GAMES = {
  'tilted': ((0.5, 0.2, 0.9), (0.8, 0.5, 0.1), (0.1, 0.9, 0.5)),
  'ordered': ((0.5, 0.7, 0.9), (0.3, 0.5, 0.6), (0.1, 0.4, 0.5)),
  'near': ((0.5, 0.45, 0.7), (0.55, 0.5, 0.4), (0.3, 0.6, 0.5)),
}
PAIRS = np.array([[i, j] for i in range(3) for j in range(3)])


def spelled(game) -> str:
  """The judge as a config names it."""
  return f'matrix(table={GAMES[game]})'


def nash(game, ref, tau):
  """pi proportional to ref exp(P pi / tau), by damped iteration."""
  table, pi = np.array(GAMES[game]), np.array(ref)
  for _ in range(4000):
    new = ref * np.exp(table @ pi / tau)
    pi = 0.95 * pi + 0.05 * new / new.sum()
  new = ref * np.exp(table @ pi / tau)
  close(pi, new / new.sum(), 1e-8)
  return pi


def three(table):
  """The toy's policy after '0' with tokens 3 and 4 all but impossible."""
  return table.at[0, 3:].set(-30.0)


def played(m, policy, ref, opponent):
  """The gradient after '0', in expectation over all pairs of completions.

  `opponent` [3] says how likely each second completion is; the first is the policy's.
  """
  p = jax.nn.softmax(policy[0])[:3]
  chance = jnp.outer(p, opponent).ravel()
  batch = clean(bandit(PAIRS).replace(reward=jnp.asarray(PAIRS, jnp.float32)))
  say = lambda table: toy.logp(table, batch)
  batch = batch.replace(old_logp=say(policy), ref_logp=say(ref))
  batch = weigh(m.prepare(None, batch)[1], m)
  batch = batch.replace(weight=batch.mask * chance[:, None, None], prompt_weight=chance)
  value = lambda table: m.loss(Outputs(logp=toy.logp(table, batch)), batch)[0]
  return jax.grad(value)(policy)


def mixed(policy, ref, share):
  """The geometric mixture of the two, of the three actions."""
  both = (1 - share) * policy[0, :3] + share * ref[0, :3]
  return jax.nn.softmax(both)


@pytest.mark.parametrize('game', GAMES)
def test_nash_md_comes_to_rest_at_the_regularised_nash(game):
  """From the toy's policy, by descent in self-play."""
  state, tau = toy.state(), 0.4
  policy, ref = three(state.params['policy']), three(state.frozen['ref'])
  want = nash(game, np.asarray(jax.nn.softmax(ref[0])[:3]), tau)
  m = method('nash_md', tau=tau, judge=spelled(game))

  @jax.jit
  def rest(policy):
    step = lambda table, _: (
      table - 0.5 * played(m, table, ref, jax.nn.softmax(table[0])[:3]),
      None,
    )
    return jax.lax.scan(step, policy, None, 3000)[0]

  close(jax.nn.softmax(rest(policy)[0])[:3], want, 1e-4)


def test_nash_md_is_the_gradient_of_the_regularised_game():
  """d/d pi of P(pi beats y') - tau KL(pi || ref), the mixture held fixed."""
  state, tau = toy.state(), 0.3
  policy, ref = three(state.params['policy']), three(state.frozen['ref'])
  table = jnp.array(GAMES['tilted'])
  for share in (0.0, 0.25, 1.0):
    opponent = jax.lax.stop_gradient(mixed(policy, ref, share))

    def worth(policy):
      logp, logr = jax.nn.log_softmax(policy[0]), jax.nn.log_softmax(ref[0])
      wins = jnp.exp(logp[:3]) @ table @ opponent
      return wins - tau * jnp.sum(jnp.exp(logp) * (logp - logr))

    got = played(
      method('nash_md', tau=tau, judge=spelled('tilted')), policy, ref, opponent
    )
    close(got, -jax.grad(worth)(policy), 1e-5)


def test_online_ipo_is_parallel_to_self_play():
  """At one point, both completions the policy's: 4 / tau times nash_md's."""
  state, tau = toy.state(), 0.3
  policy, ref = three(state.params['policy']), three(state.frozen['ref'])
  mine = jax.nn.softmax(policy[0])[:3]
  for game in GAMES:
    options = dict(tau=tau, judge=spelled(game))
    ipo = played(method('online_ipo', **options), policy, ref, mine)
    play = played(method('nash_md', **options), policy, ref, mine)
    assert abs(play).max() > 1e-2
    close(ipo, 4 / tau * play, 1e-5)


@pytest.mark.parametrize('name', ['nash_md', 'online_ipo', 'inpo', 'sppo'])
def test_verdicts_on_texts_stand_in_the_place_of_rewards(name):
  """P = (1 + d) / 2, in a circle, of completions whose rewards are all 0."""
  chance = np.array(GAMES['tilted'])[PAIRS[:, 0], PAIRS[:, 1]]
  duel = np.zeros((9, 2, 2), np.float32)
  duel[:, 0, 1], duel[:, 1, 0] = 2 * chance - 1, 1 - 2 * chance
  batch = bandit(PAIRS)
  zero = batch.replace(reward=jnp.zeros((9, 2)), extra={'duel': jnp.asarray(duel)})
  told = batch.replace(reward=jnp.asarray(PAIRS, jnp.float32))
  options = {'sppo': dict(eta=2.0)}.get(name, {})
  got = update(method(name, **options), zero)[0].params['policy']
  want = update(method(name, judge=spelled('tilted'), **options), told)[0]
  close(got, want.params['policy'], 1e-6)
  assert abs(got - toy.state().params['policy']).max() > 1e-3


def circle():
  """A judge of texts that nobody beats on all sides, by their first characters."""
  return lambda one, other: (0.0, 1.0, -1.0)[
    (ord(one.completion[:1] or '0') - ord(other.completion[:1] or '0')) % 3
  ]


def test_a_judge_of_texts_in_a_run():
  """Without a reward's help; one whose verdicts nobody would read is refused."""
  c = runs.config('nash_md')
  c.rewards.early.weight, c.judge = 0.0, dict(name='test_games.circle')
  run = runs.assembled(c)
  batch = run.source(run.state, 0).batch
  assert (batch.reward == 0).all()
  assert {*batch.extra['duel'][:, 0, 1]} <= {-1.0, 0.0, 1.0}
  assert abs(batch.extra['duel']).max() == 1
  state, _ = run.update(run.state, batch)
  assert int(state.applied) == 1
  c.method, c.source.mixture = build.defaults('grpo'), 0.0
  with pytest.raises(InputError, match=r'judge is set and nothing reads it: grpo'):
    assemble.assemble(c)


def test_judges_by_hand():
  reward = jnp.array([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
  e = np.e
  close(preferences.bradley_terry(reward), [e / (1 + e), 1 / (1 + e**2), 0.5])
  close(preferences.bradley_terry(reward, scale=2.0)[0], e**2 / (1 + e**2))
  close(preferences.better(reward), [1, 0, 0.5])
  close(preferences.matrix(reward, table=GAMES['tilted']), [0.8, 0.9, 0.5])
  with pytest.raises(InputError, match='is 1 in a square'):
    preferences.matrix(reward, table=((0.5, 0.6), (0.6, 0.5)))
  with pytest.raises(InputError, match='groups of two'):
    preferences.matrix(row(0, 1, 2), table=GAMES['tilted'])


def test_nash_md_by_hand():
  # P = .8; sums of log(old / ref) of the first (1 + 2): A = .8 - .5 - .1 * 3 = 0 for
  # tau .1, and .24 for tau .02; on log-probs summing to -3.
  logp = jnp.array([[[-1.0, -2.0], [-5.0, -6.0]]])
  ref = logp - jnp.array([[[1.0, 2.0], [7.0, 7.0]]])
  fields = dict(reward=row(1, 0), old_logp=logp, ref_logp=ref)
  options = dict(judge=spelled('tilted'))
  # The second completion, the opponent's, is in no sum.
  for tau, want in ((0.1, 0.0), (0.02, 0.24 * 3)):
    m = method('nash_md', tau=tau, **options)
    batch = bandit([[0, 0]]).replace(**fields)
    batch = batch.replace(mask=jnp.ones((1, 2, 2)))
    ready = weigh(m.prepare(None, batch)[1], m)
    close(m.loss(Outputs(logp=logp), ready)[0], want)


def test_online_ipo_by_hand():
  # h = (1 + 0) - (3 + 0) = -2, p = 3/4, tau 1/4: 3/4 (-2 - 2)^2 + 1/4 (-2 + 2)^2.
  logp = jnp.array([[[-1.0, -2.0], [-5.0, -6.0]]])
  ref = logp - jnp.array([[[1.0, 0.0], [3.0, 0.0]]])
  judge = lambda reward: jnp.array([0.75])
  fields = dict(reward=row(1, 0), ref_logp=ref)
  found = loss('online_ipo', dict(tau=0.25, judge=judge), Outputs(logp=logp), **fields)
  check(found, 12.0)
  close(found[1]['margin'][0], -2.0)


def test_a_completion_without_an_opponent_is_left_out():
  batch = toy.batch()
  alone = batch.replace(valid=batch.valid.at[0, 1].set(0.0))
  none = batch.replace(valid=batch.valid.at[0].set(0.0))
  m = method('nash_md')
  got, want = (update(m, b)[0].params['policy'] for b in (alone, none))
  close(got, want)


# ---- The opponent --------------------------------------------------------------------


def drawn(share, scale=1.0):
  """A batch of a run of nash_md whose reference has parameters of its own."""
  run = runs.assembled(runs.config('nash_md', source=dict(mixture=share)))
  bent = lambda x: x * (1 + 0.5 * scale * jnp.sin(jnp.arange(x.size)).reshape(x.shape))
  ref = jax.tree.map(bent, run.state.params['policy'])
  state = run.state.replace(frozen=run.state.frozen | {'ref': ref})
  return run, state, run.source(state, 0).batch


def test_an_opponent_like_the_policy_draws_what_the_sampler_would():
  """The reference is the policy: the same second completions, whatever the share."""
  _, _, batch = drawn(0.25, scale=0.0)
  run, state, alone = drawn(0.0)
  del run, state
  np.testing.assert_array_equal(batch.completions, alone.completions)
  np.testing.assert_array_equal(batch.length, alone.length)
  np.testing.assert_array_equal(batch.truncated, alone.truncated)
  close(batch.behavior_logp, alone.behavior_logp, 1e-4)


@pytest.mark.parametrize('share', [0.25, 1.0])
def test_an_opponents_tokens_have_the_mixtures_probabilities(share):
  """Its log-probs, from two forward passes; the first completion is the policy's."""
  run, state, batch = drawn(share)
  decoder = Decoder(run.model.config)
  rows = jax.tree.map(jnp.asarray, batch)
  both = []
  for tree in (state.params['policy'], state.frozen['ref']):
    before = forward.padded(decoder, tree, rows)[0]
    flat = logprobs.logits(before.reshape(-1, before.shape[-1]), head_kernel(tree))
    both.append(flat.reshape(*batch.completions.shape, -1))
  say = lambda logits: jnp.take_along_axis(
    jax.nn.log_softmax(logits), rows.completions[..., None], -1
  )[..., 0]
  want = say((1 - share) * both[0] + share * both[1])
  said, inside = batch.behavior_logp, batch.mask
  close((said * inside)[:, 1], (want * inside)[:, 1], 1e-4)
  close((said * inside)[:, 0], (say(both[0]) * inside)[:, 0], 1e-4)
  assert abs((want - say(both[0])) * inside).max() > 0.01


def test_an_opponent_needs_a_pair_and_nash_md():
  with pytest.raises(InputError, match=r'source\.group=2'):
    runs.assembled(runs.config('nash_md', source=dict(mixture=0.5, group=4)))
  with pytest.raises(InputError, match=r'source\.mixture is set.*two_grpo'):
    runs.assembled(runs.config('two_grpo', source=dict(mixture=0.5)))


# ---- The way out ---------------------------------------------------------------------


def test_an_update_step_of_ones_own_stands_in_a_run():
  """Any (state, batch) -> (state, metrics) compiles and sees a run's batches."""
  run = runs.assembled(runs.config('grpo'))

  def update_step(state, batch):
    """Regularised descent of the embedding alone, by no Method's rules."""
    size = lambda params: 0.5 * jnp.sum(jnp.square(params['policy']['embed']))
    grads = jax.grad(size)(state.params)
    params = jax.tree.map(lambda x, g: x - 0.5 * g, state.params, grads)
    state = state.replace(params=params, step=state.step + 1)
    return state, {'reward': batch.reward.sum() / batch.reward.size}

  before = np.asarray(run.state.params['policy']['embed'])
  update = sharding.compile_step(update_step, run.state, run.mesh)
  drawn = run.source(run.state, 0)
  state, found = update(run.state, sharding.put_batch(drawn.batch, run.mesh))
  close(state.params['policy']['embed'], before / 2)
  close(found['reward'], drawn.metrics['reward'])
