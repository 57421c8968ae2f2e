"""Sentences from papers, as equalities. The toy's tables make them exact."""

import contextlib
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from oracles import preference_losses as oracle
from test_contract import (
  METHODS,
  base,
  check_same,
  compiled,
  marked,
  method,
  rows,
  start,
)

from jaxrl_llm import build, types
from jaxrl_llm.ops import advantages, kl, sequences, weights
from jaxrl_llm.step import clean, make_update_step, observe, weigh
from jaxrl_llm.types import Method, Outputs


def update(m, batch=None, state=None, tx=toy.SGD, **plan):
  """One jitted update step on the toy: (state, metrics)."""
  step = jax.jit(make_update_step(toy.forward, tx, m, **plan))
  state = toy.state(tx) if state is None else state
  return step(state, toy.batch() if batch is None else batch)


def gradient(m, batch=None, state=None):
  """The policy's gradient [V, V]: minus the move of a step of rate 1."""
  state = toy.state() if state is None else state
  moved = update(m, batch, state)[0].params['policy']
  return np.asarray(state.params['policy'] - moved)


def off_policy(batch):
  """With the log-probs of another policy as the old ones: ratios on both sides."""
  other = toy.state(seed=5).params
  return batch.replace(old_logp=toy.forward(other, {}, batch, ('logp',)).logp)


def at_reference():
  state = toy.state()
  return state.replace(frozen={'ref': state.params['policy']})


def bandit(actions):
  """Completions of one token, [B, G], after the prompt '0'."""
  actions = np.asarray(actions, np.int32)
  b, g = actions.shape
  batch = types.make_batch(
    np.zeros((b, 1), np.int32),
    np.ones(b, np.int32),
    actions[..., None],
    np.ones((b, g), np.int32),
  ).replace(reward=np.zeros((b, g), np.float32))
  return jax.tree.map(jnp.asarray, batch)


def close(got, want, atol=1e-6):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


# ---- KL estimators, by enumeration ---------------------------------------------------
# One group holds every token once; its weights are the policy's own probabilities, so
# that a loss is an expectation.

ALL = bandit([range(toy.V)])
LOGITS = toy.state().params['policy'][0]
REF = jax.nn.log_softmax(toy.state().frozen['ref'][0])
PROBS = jax.nn.softmax(LOGITS)


def reverse(logits):
  p = jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(p) * (p - REF))


def forward_kl(logits):
  return jnp.sum(jnp.exp(REF) * (REF - jax.nn.log_softmax(logits)))


TO_REF, FROM_REF = jax.grad(reverse)(LOGITS), jax.grad(forward_kl)(LOGITS)
expected = lambda mask: mask * PROBS[None, :, None]

IN_LOSS = {
  'k1': (kl.k1, False, jnp.zeros(toy.V)),  # Why grpo refuses it.
  'k2': (kl.k2, False, TO_REF),
  'k3': (kl.k3, False, FROM_REF),
  'ratio * k1': (kl.k1, True, TO_REF),
  'ratio * k3': (kl.k3, True, TO_REF),
}
IN_REWARD = {'k1': (kl.k1, TO_REF), 'k3': (kl.k3, TO_REF - FROM_REF)}


@pytest.mark.parametrize('estimate', IN_LOSS)
def test_the_gradient_of_kl_in_the_loss(estimate, monkeypatch):
  """AT-26, AT-27: only the advertised direction, by a method's own update."""
  monkeypatch.setattr(kl, 'check_in_loss', lambda *_: None)
  fn, weighted, want = IN_LOSS[estimate]
  m = build.method('grpo', beta=1.0, kl=fn, kl_weighted=weighted, aggregate=expected)
  close(gradient(m, ALL)[0], want)


@pytest.mark.parametrize('estimate', IN_REWARD)
def test_the_gradient_of_kl_in_the_reward(estimate):
  """AT-26: k1 gives KL(pi || ref), k3 the difference of the two directions."""
  fn, want = IN_REWARD[estimate]
  penalty = fn(jax.nn.log_softmax(LOGITS), REF)
  batch = ALL.replace(reward=-penalty[None])
  close(gradient(build.method('reinforce', aggregate=expected), batch)[0], want)


def test_rloo_puts_k1_in_the_reward():
  def exact(reward, valid):  # Undoes the mean over completions.
    return reward * valid * toy.V * PROBS[None]

  m = build.method('rloo', beta=1.0, advantage=exact)
  close(gradient(m, ALL)[0], TO_REF)


def test_k1_in_the_loss_is_refused_with_the_reason():
  with pytest.raises(types.InputError, match='zero expected gradient') as e:
    build.method('grpo', kl='k1')
  assert 'kl_weighted=True' in str(e.value)
  assert build.method('grpo', kl='k1', kl_weighted=True).needs[-1] == 'ref_logp'


@pytest.mark.parametrize('estimate', [kl.k1, kl.k2, kl.k3])
def test_at_the_reference_kl_is_exactly_zero(estimate):
  """AT-28."""
  logp = -jnp.abs(jax.random.normal(jax.random.key(0), (100,))) * 9
  np.testing.assert_array_equal(estimate(logp, logp), 0.0)


@pytest.mark.parametrize('name', ['grpo', 'ppo', 'rloo'])
def test_at_the_reference_a_method_logs_no_kl(name):
  """AT-28. Up to the square of a rounding: the two passes are compiled apart."""
  found = update(method(name), state=at_reference())[1]
  close(found['kl_ref_seq' if name == 'rloo' else 'kl_ref'], 0, atol=1e-12)


def test_k3_is_never_negative_and_has_the_mean_of_k1():
  now = jax.nn.log_softmax(LOGITS)
  np.testing.assert_array_less(-1e-9, kl.k3(now, REF))
  gaps = jnp.linspace(-30, 30, 1001)
  np.testing.assert_array_less(-1e-9, kl.k3(gaps, jnp.zeros(1001)))
  mean = lambda fn: float(jnp.sum(PROBS * fn(now, REF)))
  close(mean(kl.k3), mean(kl.k1))
  close(mean(kl.k1), reverse(LOGITS))


# ---- Policy gradients: one method is another -----------------------------------------


@pytest.mark.parametrize('name', ['token_mean', 'seq_mean'])
def test_weights_sum_to_one(name):
  close(build.function('jaxrl_llm.ops.weights', name, '')(toy.batch().mask).sum(), 1.0)
  close(weights.seq_weight(toy.batch().mask).sum(), 1.0)
  close(weights.prompt_weight(toy.batch().mask).sum(), 1.0)


def test_grpo_on_policy_is_reinforce():
  """AT-24: at a ratio of 1 the loss is 0 and its gradient is not."""
  same_parts = dict(advantage='group_norm', aggregate='seq_mean')
  got = gradient(build.method('grpo', beta=0.0, **same_parts))
  close(got, gradient(build.method('reinforce', **same_parts)))


def test_cispo_on_policy_is_reinforce():
  want = build.method('reinforce', advantage='group_norm')
  close(gradient(build.method('cispo')), gradient(want))


def test_gspo_on_policy_is_grpo_on_policy():
  want = build.method('grpo', beta=0.0)
  close(gradient(build.method('gspo')), gradient(want))


@pytest.mark.parametrize('clip', [0.02, 0.2])
def test_gspo_token_is_gspo_where_the_advantage_is_the_completions(clip):
  """Value, gradient and the share clipped, off policy and with ragged completions."""
  clips = dict(clip_low=clip, clip_high=clip)
  one, other = (
    update(build.method('gspo', token=token, **clips), off_policy(toy.batch()))
    for token in (False, True)
  )
  close(other[0].params['policy'], one[0].params['policy'])
  for name in ('loss', 'gain'):
    close(other[1][name], one[1][name])


def test_gspo_of_one_token_is_grpo():
  batch = toy.batch()
  batch = off_policy(
    batch.replace(mask=batch.mask * (jnp.arange(toy.T) < 1)[None, None])
  )
  clips = dict(clip_low=0.2, clip_high=0.2)
  want = gradient(build.method('grpo', beta=0.0, **clips), batch)
  close(gradient(build.method('gspo', **clips), batch), want)


def test_dapo_is_grpo_when_lengths_and_clips_are_equal():
  batch = toy.batch()
  batch = off_policy(batch.replace(mask=jnp.ones_like(batch.mask)))
  want = gradient(build.method('grpo', beta=0.0), batch)
  close(gradient(build.method('dapo', clip_high=0.2), batch), want)


def test_dr_grpo_is_rloo_rescaled():
  """Liu et al., appendix A: by G / (G - 1), and by the constant length."""
  batch = toy.batch(1, g=4)
  rloo = gradient(build.method('rloo', beta=0.0), batch)
  dr_grpo = gradient(build.method('dr_grpo', max_length=7), batch)
  close(rloo, 7 * 4 / 3 * dr_grpo)


@pytest.mark.parametrize('g', [2, 3, 8])
def test_leave_one_out_is_the_centred_reward_rescaled(g):
  """AT-15: by G / (G - 1)."""
  reward = jax.random.normal(jax.random.key(g), (6, g))
  ones = jnp.ones_like(reward)
  want = g / (g - 1) * advantages.group_mean(reward, ones)
  close(advantages.leave_one_out(reward, ones), want)


def test_rloo_of_two_is_the_difference():
  """Ahmadian et al.: with k = 2 the baseline is the other's reward."""
  reward = jax.random.normal(jax.random.key(0), (6, 2))
  got = advantages.leave_one_out(reward, jnp.ones_like(reward))
  close(got, reward - reward[:, ::-1])


@pytest.mark.parametrize(
  'baseline, share', [('leave_one_out', 1), ('group_mean', 2 / 3)]
)
def test_leave_one_out_is_unbiased(baseline, share):
  """Every group of 3, by its probability: the gradient of the expected reward.

  With its own reward in the baseline a completion loses 1 / G of it.
  """
  groups = np.array(list(itertools.product(range(toy.V), repeat=3)))
  scores = jnp.array([1.0, -0.5, 2.0, 0.3, -1.0])
  batch = bandit(groups).replace(reward=scores[groups])
  chance = PROBS[groups].prod(1, keepdims=True) * len(groups)
  plain = build.function('jaxrl_llm.ops.advantages', baseline, '')
  m = build.method('rloo', beta=0.0, advantage=lambda r, v: plain(r, v) * chance)
  want = -jax.grad(lambda z: jnp.sum(jax.nn.softmax(z) * scores))(LOGITS)
  close(gradient(m, batch)[0], share * want)


def test_ppo_with_lam_one_has_the_return_as_target():
  """AT-17: whatever the critic says; the advantage is whitened after it."""
  batch = clean(toy.batch()).replace(
    old_logp=jnp.zeros_like(toy.batch().mask), ref_logp=jnp.zeros_like(toy.batch().mask)
  )
  m = build.method('ppo', lam=1.0, beta=0.1)
  value = jax.random.normal(jax.random.key(0), batch.mask.shape)
  got = m.prepare(None, batch.replace(old_value=value))[1]
  returns = batch.reward[..., None] * batch.mask
  close(got.target * batch.mask, returns)
  plain = np.asarray((returns - value) * batch.mask)
  tokens = plain[np.asarray(batch.mask) > 0]
  white = (plain - tokens.mean()) / tokens.std() * np.asarray(batch.mask)
  close(got.advantage, white, 1e-5)


# ---- Preferences ---------------------------------------------------------------------


@pytest.mark.parametrize('baseline', ['mismatched', 'batch'])
@pytest.mark.parametrize('label', [1.0, -1.0])
@pytest.mark.parametrize('rows', [toy.B, 3])
def test_kto_of_one_class(baseline, label, rows):
  """AT-50: all desirable or none, an even batch or an odd one."""
  batch = jax.tree.map(lambda x: x[:rows], toy.batch(g=1))
  batch = batch.replace(reward=jnp.full((rows, 1), label))
  state, found = update(build.method('kto', baseline=baseline), batch)
  assert np.isfinite(found['loss']) and int(state.applied) == 1
  alone = jax.tree.map(lambda x: x[:1], batch)
  if baseline == 'batch':
    assert np.isfinite(update(build.method('kto', baseline=baseline), alone)[1]['loss'])
  else:
    with pytest.raises(types.InputError, match='at least two prompts'):
      update(build.method('kto'), alone)


def test_dpo_at_the_reference():
  """AT-30: log 2, no margin, and a gradient of -(beta / 2) grad margin."""
  state = at_reference()
  m = build.method('dpo', beta=0.3)
  found = update(m, state=state)[1]
  close(found['loss'], np.log(2))
  for name in ('margin', 'reward_chosen', 'reward_rejected'):
    close(found[name], 0)

  def margin(policy):
    batch = toy.batch()
    logp = toy.forward({'policy': policy}, {}, batch, ('logp',)).logp
    return sequences.margin(sequences.seq_sum(logp, batch.mask)).mean()

  close(gradient(m, state=state), -0.15 * jax.grad(margin)(state.params['policy']))


def test_dpo_swapped():
  """L(h) - L(-h) = -beta h."""
  batch = toy.batch()
  turn = lambda x: x[:, ::-1] if x.ndim > 1 and x.shape[:2] == (toy.B, toy.G) else x
  m = build.method('dpo', beta=0.7)
  one, other = update(m, batch)[1], update(m, jax.tree.map(turn, batch))[1]
  close(one['loss'] - other['loss'], -one['margin'])


SCORES = jnp.array([0.0, 1.0, -0.5, 2.0, 0.7])


def settle(m, batch, share, rate, steps=3000):
  """Log-probs after the prompt '0' where gradient descent on weighted pairs settles."""
  batch = weigh(batch, m).replace(prompt_weight=share)
  state = toy.state()
  batch = observe(toy.forward, state, batch, ['ref_logp'])

  @jax.jit
  def run(policy):
    def loss(policy):
      out = toy.forward({'policy': policy}, {}, batch, ('logp',))
      return m.loss(out, batch)[0]

    descend = lambda policy, _: (policy - rate * jax.grad(loss)(policy), None)
    return jax.lax.scan(descend, policy, None, steps)[0]

  return jax.nn.log_softmax(run(state.params['policy'])[0])


def test_dpo_finds_the_regularised_optimum():
  """Rafailov et al., eq. 4: ref exp(r / beta) / Z, from Bradley-Terry preferences."""
  pairs = np.array(list(itertools.permutations(range(toy.V), 2)))
  wins = jax.nn.sigmoid(SCORES[pairs[:, 0]] - SCORES[pairs[:, 1]])
  m = build.method('dpo', beta=0.8)
  got = settle(m, bandit(pairs), wins / wins.sum(), 20.0)
  close(jnp.exp(got), jax.nn.softmax(REF + SCORES / 0.8), 1e-3)


@pytest.mark.parametrize('p', [0.5, 0.7, 1.0])
def test_ipo_stops_at_its_margin(p):
  """Azar et al.: h = (p - 1/2) / tau, finite where everyone agrees."""
  got = settle(
    build.method('ipo', tau=0.5), bandit([[1, 2], [2, 1]]), jnp.array([p, 1 - p]), 0.1
  )
  h = (got - REF)[1] - (got - REF)[2]
  close(h, (p - 0.5) / 0.5, 1e-4)


def preference_loss(m, logp, mask=None, **fields):
  """A method's loss on token log-probs [B, G, T], with nothing else in the way."""
  mask = jnp.ones_like(logp) if mask is None else mask
  b, g = logp.shape[:2]
  batch = bandit(np.zeros((b, g))).replace(mask=mask, **fields)
  return m.loss(Outputs(logp=logp, score=logp[..., 0]), weigh(batch, m))[0]


def two_tokens(m, chosen, rejected, labels=(1.0, -1.0)):
  """A method's loss on rows of two tokens with these scores or log-probs each: [B]."""
  x = jnp.stack([chosen, rejected], 1)
  logp = jnp.stack([x, x], -1)
  fields = dict(
    reward=jnp.broadcast_to(jnp.array([labels]), x.shape),
    ref_logp=jnp.full_like(logp, -1.0),
    extra={'z0': jnp.zeros(len(x))},
  )
  return preference_loss(m, logp, **fields)


odds = lambda x: x - jnp.log1p(-jnp.exp(x))
# Loss less the loss of the pair turned round, from mean log-probs (a, b) of two tokens.
SWAPPED = {
  'dpo': (dict(beta=0.7), lambda a, b: -0.7 * 2 * (a - b)),
  'dpo, smoothed': (
    dict(beta=0.7, label_smoothing=0.2),
    lambda a, b: -0.6 * 0.7 * 2 * (a - b),
  ),
  'dpo, even': (dict(label_smoothing=0.5), lambda a, b: 0 * a),
  'ipo': (dict(tau=0.2), lambda a, b: -2 / 0.2 * (a - b)),
  'ipo, summed': (dict(tau=0.2, average=False), lambda a, b: -4 / 0.2 * (a - b)),
  'simpo': (dict(beta=2.0, gamma=0.0), lambda a, b: -2 * (a - b)),
  'orpo': (dict(lam=0.3), lambda a, b: b - a - 0.3 * (odds(a) - odds(b))),
  'bradley_terry': (dict(center=0.1, l2=0.1), lambda a, b: b - a),
}


@pytest.mark.parametrize('title', SWAPPED)
def test_pairs_turned_round(title):
  """AT-47: softplus(-h) - softplus(h) = -h, and (h - c)^2 - (h + c)^2 = -4 c h."""
  options, want = SWAPPED[title]
  m = build.method(title.split(',')[0], **options)
  a, b = -jnp.exp(jax.random.normal(jax.random.key(4), (2, 7)))
  close(two_tokens(m, a, b) - two_tokens(m, b, a), want(a, b).mean(), 2e-5)


def test_kto_labels_turned_round():
  """AT-47: sigmoid(x) + sigmoid(-x) = 1, whatever the row, where z0 is 0."""
  m = build.method('kto', beta=0.7, desirable=1.3, undesirable=1.3)
  a, b = -jnp.exp(jax.random.normal(jax.random.key(4), (2, 7)))
  close(two_tokens(m, a, b) + two_tokens(m, a, b, (-1.0, 1.0)), 1.3)


EQUAL = {  # A loss where nothing is preferred yet.
  'dpo': ({}, np.log(2)),
  'dpo, smoothed': (dict(label_smoothing=0.3), np.log(2)),
  'ipo': (dict(tau=0.2), 1 / 0.4**2),
  'simpo': (dict(gamma=0.0), np.log(2)),
  'simpo, with a margin': (dict(gamma=1.5), np.log1p(np.exp(1.5))),
  'bradley_terry': ({}, np.log(2)),
}


@pytest.mark.parametrize('title', EQUAL)
def test_equal_pairs(title):
  """AT-47: log 2, for every loss through a sigmoid."""
  options, want = EQUAL[title]
  x = jnp.full(3, -0.5)
  close(two_tokens(build.method(title.split(',')[0], **options), x, x), want)


def test_simpo_is_blind_to_repeated_tokens():
  logp = -jnp.abs(jax.random.normal(jax.random.key(0), (3, 2, 4)))
  m = build.method('simpo')
  close(preference_loss(m, jnp.repeat(logp, 3, -1)), preference_loss(m, logp))


def test_orpo_at_equal_averages():
  """NLL + lam log 2: the odds are equal whatever the lengths."""
  mask = (jnp.arange(4)[None, None] < jnp.array([[2, 4], [3, 1]])[..., None]).astype(
    float
  )
  got = preference_loss(build.method('orpo', lam=0.2), -0.5 * mask, mask)
  close(got, 0.5 + 0.2 * np.log(2))


def test_kto_at_the_reference():
  """sigmoid(0) = 1/2: half of each row's weight."""
  batch = toy.batch()
  m = build.method('kto', desirable=1.0, undesirable=1.5)
  found = update(m, batch, at_reference())[1]
  assert float(found['z0']) == 0.0
  good = float((batch.reward > 0).mean())
  close(found['loss'], (good * 1.0 + (1 - good) * 1.5) / 2)


GOLDEN = json.loads(oracle.FILE.read_text())


def test_the_golden_file_is_fresh():
  numbers = lambda table: (
    [table['inputs']]
    + [(row['value'], row['slope']) for row in table['losses'].values()]
  )
  chex.assert_trees_all_close(numbers(oracle.table()), numbers(GOLDEN), rtol=1e-12)
  assert list(GOLDEN['losses']) == list(oracle.LOSSES)


@pytest.mark.parametrize('wide', [True, False])
@pytest.mark.parametrize('title', GOLDEN['losses'])
def test_preference_losses(title, wide):
  """AT-47: value and slope in each completion's log-prob, against NumPy."""
  want = GOLDEN['losses'][title]
  m = build.method(want['method'], **want['options'])
  with toy.float64() if wide else contextlib.nullcontext():
    x = {k: jnp.asarray(np.array(v), float) for k, v in GOLDEN['inputs'].items()}
    mask = (jnp.arange(8)[None, None] < x['length'][..., None]).astype(float)
    spread = lambda total: total[..., None] / x['length'][..., None] * mask
    batch = bandit(np.zeros((oracle.PAIRS, 2))).replace(
      mask=mask,
      reward=x['label'],
      ref_logp=spread(x['ref']),
      extra={'z0': jnp.full(oracle.PAIRS, want['z0'])},
    )
    batch = weigh(batch, m)

    def loss(seen):
      if want['method'] == 'bradley_terry':
        return m.loss(Outputs(score=seen), batch)[0]
      return m.loss(Outputs(logp=spread(seen)), batch)[0]

    seen = x['score' if want['method'] == 'bradley_terry' else 'logp']
    value, slope = jax.value_and_grad(loss)(seen)
    scale = max(1.0, abs(want['value']))  # Float32 is relative.
    atol = 1e-6 if wide else 1e-5 * scale
  close(value, want['value'], atol)
  close(slope, want['slope'], atol)


# ---- The step ------------------------------------------------------------------------


def toy_logp(table, batch):
  """[B, G, T] float64 log-probs by NumPy, from a table of logits."""
  table = np.asarray(table, np.float64)
  norm = np.log(np.exp(table).sum(-1, keepdims=True))
  before = np.asarray(toy.previous(batch))
  return (table - norm)[before, np.asarray(batch.completions)]


def summed(x, batch):
  return (x * np.asarray(batch.mask)).sum(-1)


@pytest.mark.parametrize('pieces', [1, 4])
def test_the_logged_loss_is_the_defined_one(pieces):
  """AT-3: not divided twice, not summed over pieces."""
  batch, state = toy.batch(), toy.state()
  logp = toy_logp(state.params['policy'], batch)
  nll = -summed(logp, batch).sum() / np.asarray(batch.mask).sum()
  logged = lambda name: compiled(name, microbatches=pieces)(state, batch)[1]['loss']
  close(logged('sft'), nll, 2e-6)
  gap = summed(logp - toy_logp(state.frozen['ref'], batch), batch)
  close(logged('dpo'), np.log1p(np.exp(-0.1 * (gap[:, 0] - gap[:, 1]))).mean())


def test_kto_z0_is_that_of_the_whole_minibatch():
  """AT-7: prompt i with the completions of prompt i + 1, then held above zero."""
  state, batch = toy.state(), toy.batch()
  other = lambda x: jnp.roll(x, -1, 0)
  rows = batch.replace(completions=other(batch.completions), mask=other(batch.mask))
  rho = lambda p, r: summed(toy_logp(p, rows) - toy_logp(r, rows), rows).mean()
  want = rho(state.params['policy'], state.frozen['ref'])
  assert want > 0.01  # One held at zero would show nothing.
  for pieces in (1, toy.B):
    found = compiled('kto', microbatches=pieces)(state, batch)[1]
    close(found['z0'], want, 2e-6)
  # And the other way round the mean is negative.
  turned = state.replace(
    params=state.params | {'policy': state.frozen['ref']},
    frozen={'ref': state.params['policy']},
  )
  assert float(compiled('kto')(turned, batch)[1]['z0']) == 0.0


# Sensors of no single token.
WHOLE = {'score', 'attributes', 'embedding', 'members', 'own'}
LOGP_METHODS = [n for n in METHODS if not WHOLE & {*method(n).needs}]


@pytest.mark.parametrize('name', marked(LOGP_METHODS))
def test_wild_numbers_in_masked_slots(name):
  """AT-6: in what is stored and in what the networks say."""
  state, batch = start(name), rows(name)
  need = dict.fromkeys(('old_logp', 'ref_logp', 'old_value'))
  batch = observe(toy.forward, state, batch, need)

  def forward(params, frozen, batch, needs):
    wild = lambda x: (
      x + jnp.where(batch.mask > 0, 0.0, batch.extra['wild'][:, None, None])
    )
    out = toy.forward(
      params, frozen, batch.replace(aux=None), [n for n in needs if '/' not in n]
    )
    if any('/' in n for n in needs):
      return Outputs(aux=forward(params, frozen, batch.aux, ('logp', 'ref_logp')))
    return jax.tree.map(wild, out)

  step = jax.jit(make_update_step(forward, toy.SGD, method(name)))
  for number in (1e4, -1e4, jnp.nan):
    put = lambda x: jnp.where(batch.mask > 0, x, number)
    stored = {n: put(getattr(batch, n)) for n in need}
    wild = {'wild': jnp.full(toy.B, number)}
    given = batch.replace(extra=batch.extra | wild, **stored)
    if batch.aux is not None:
      given = given.replace(aux=batch.aux.replace(extra=batch.aux.extra | wild))
    check_same(step(state, given), base(name))


@pytest.mark.parametrize('name', ['group_mean', 'group_norm', 'leave_one_out'])
def test_advantages_stay_with_their_prompt(name):
  """AT-11: they sum to 0 per prompt, ignore its offset, and move with it."""
  fn = build.function('jaxrl_llm.ops.advantages', name, '')
  reward = jax.random.normal(jax.random.key(0), (6, 4))
  valid = jnp.ones_like(reward).at[2, 1].set(0.0)
  got = fn(reward, valid)
  close(got.sum(1), np.zeros(6), 2e-6)
  close(fn(reward + 10.0 * jnp.arange(6)[:, None], valid), got, 2e-5)
  order = jnp.array([3, 0, 5, 1, 4, 2])
  np.testing.assert_array_equal(fn(reward[order], valid[order]), got[order])


def test_the_first_ratio_is_one():
  """AT-23: exactly, where the update reads it itself; to 1e-6 where it was observed."""

  def loss(out, batch):
    far = jnp.abs(jnp.exp(out.logp - batch.old_logp) - 1) * batch.mask
    return jnp.sum(batch.weight * out.logp), {'max/far': jnp.max(far)}

  probe = Method(loss, ('logp', 'old_logp'))
  assert float(update(probe)[1]['max/far']) == 0.0
  still = optax.sgd(0.0)
  assert float(update(probe, tx=still, minibatches=2)[1]['max/far']) <= 1e-6
  for name in ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo'):
    assert float(base(name)[1]['max/ratio']) == 1.0
  close(base('ppo')[1]['max/ratio'], 1.0)


def test_a_gradient_that_is_not_finite_changes_nothing():
  tx = optax.adam(0.1)
  step = jax.jit(make_update_step(toy.forward, tx, build.method('reinforce')))
  batch, state = toy.batch(), toy.state(tx)
  bad, found = step(state, batch.replace(reward=batch.reward.at[3, 1].set(jnp.nan)))
  chex.assert_trees_all_equal(bad.params, state.params)
  chex.assert_trees_all_equal(bad.opt_state, state.opt_state)
  counts = lambda s: (int(s.step), int(s.applied), int(s.skipped))
  assert counts(bad) == (1, 0, 1)
  assert int(found['skipped']) == 1
  after, clean_start = step(bad, batch)[0], step(state, batch)[0]
  assert counts(after) == (2, 1, 1)
  chex.assert_trees_all_equal(after.params, clean_start.params)


def test_the_plan_by_hand():
  """Two epochs of two minibatches in the host's order are four updates in turn."""
  rng = np.random.default_rng(0)
  order = np.stack([rng.permutation(toy.B) for _ in range(2)], 1).astype(np.int32)
  m = build.method('grpo')
  want, batch = toy.state(), toy.batch()
  got, found = update(
    m, batch.replace(order=jnp.asarray(order)), epochs=2, minibatches=2
  )
  batch = observe(toy.forward, want, batch, ['old_logp', 'ref_logp'])
  step = jax.jit(make_update_step(toy.forward, toy.SGD, m))
  losses = []
  for epoch, first in itertools.product(range(2), range(2)):
    rows = order[first::2, epoch]
    want, each = step(want, jax.tree.map(lambda x: x[rows], batch))
    losses.append(each['loss'])
  close(got.params['policy'], want.params['policy'])
  close(found['loss'], np.mean(losses))
  assert (int(got.step), int(got.applied)) == (1, 4)
