"""One number per operation and per method, worked by hand, away from ratio 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxrl_llm import build, types
from jaxrl_llm.ops import (
  advantages,
  importance,
  kl,
  logprobs,
  metrics,
  sequences,
  surrogates,
  weights,
)
from jaxrl_llm.rollout import draw
from jaxrl_llm.step import make_update_step, weigh
from jaxrl_llm.types import InputError, Method, Outputs

one = lambda *x: jnp.array([[list(x)]], jnp.float32)  # [1, 1, T]
row = lambda *x: jnp.array([list(x)], jnp.float32)  # [1, G]


# ---- Operations ----------------------------------------------------------------------


def test_leave_one_out():
  # r = (1, 2, 6): the others' means are 4, 3.5, 1.5.
  got = advantages.leave_one_out(row(1, 2, 6), row(1, 1, 1))
  np.testing.assert_allclose(got, [[-3.0, -1.5, 4.5]])


def test_leave_one_out_of_a_ragged_group():
  # The row of 100 is not there: 1 against 2, 2 against 1.
  got = advantages.leave_one_out(row(1, 2, 100), row(1, 1, 0))
  np.testing.assert_allclose(got, [[-1.0, 1.0, 0.0]])


def test_group_norm_with_both_conventions():
  # r = (1, 0, 0, 0): mean 1/4, population std sqrt(3)/4, sample std 1/2.
  population = advantages.group_norm(row(1, 0, 0, 0), row(1, 1, 1, 1), eps=0.0)
  sample = advantages.group_norm(row(1, 0, 0, 0), row(1, 1, 1, 1), eps=0.0, ddof=1)
  third = 3**-0.5
  np.testing.assert_allclose(population, [[3**0.5, -third, -third, -third]], rtol=1e-6)
  np.testing.assert_allclose(sample, [[1.5, -0.5, -0.5, -0.5]], rtol=1e-6)


def test_group_norm_of_three_right_of_four():
  """AT-12: of (1, 0, 1, 1) by the sample's deviation, 1/2, and by the group's own."""
  got = advantages.group_norm(row(1, 0, 1, 1), row(1, 1, 1, 1), eps=0.0, ddof=1)
  np.testing.assert_allclose(got, [[0.5, -1.5, 0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize('name', ['group_mean', 'leave_one_out', 'group_norm'])
def test_a_group_of_one_is_refused(name):
  """AT-10."""
  with pytest.raises(InputError, match='at least two completions per prompt'):
    getattr(advantages, name)(row(1), row(1))


@pytest.mark.parametrize('value', [0.0, 0.1, 0.3, 1e6])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_tied_group_has_no_advantage(value, dtype):
  """AT-9: exactly 0, whatever rounding does to the mean."""
  for size in range(2, 17):
    reward = jnp.full((1, size), value, dtype)
    got = advantages.group_norm(reward, jnp.ones((1, size), dtype))
    np.testing.assert_array_equal(np.asarray(got, np.float32), 0.0)


def test_gae():
  # discount 0.5, lam 0.5; the last slot is padding and must not leak.
  #   t=1: 1 - 3                   = -2
  #   t=0: 0 + .5*3 - 1 + .25*(-2) =  0
  got = advantages.gae(one(0, 1, 9), one(1, 3, 9), one(1, 1, 0), discount=0.5, lam=0.5)
  np.testing.assert_allclose(got, one(0, -2, 0), atol=1e-7)


def test_gae_passes_over_observations():
  """AT-18: tokens that the policy did not choose delay nothing and discount nothing."""
  zero = one(0, 0, 0, 0, 0)
  got = advantages.gae(
    one(0, 0, 0, 0, 2), zero, one(1, 1, 0, 0, 1), discount=0.5, lam=1.0
  )
  np.testing.assert_allclose(got, one(0.5, 1, 0, 0, 2))
  alone = advantages.gae(one(1, 2, 4), one(3, 1, 2), one(1, 1, 1), discount=0.9)
  wide = advantages.gae(
    one(1, 7, 2, 7, 7, 4), one(3, 9, 1, 9, 9, 2), one(1, 0, 1, 0, 0, 1), discount=0.9
  )
  np.testing.assert_allclose(wide[..., [0, 2, 5]], alone, rtol=1e-6)


def test_the_value_error():
  """AT-19: target 0, clip .2. V 1 from .5: max(1, .49) / 2; .6 from 1: .64 / 2."""
  got = surrogates.value_error(one(1, 0.6), one(0.5, 1), one(0, 0), clip=0.2)
  np.testing.assert_allclose(got, one(0.5, 0.32), rtol=1e-6)


def test_gae_with_lam_one_is_return_minus_value():
  # Returns-to-go of (1, 2, 4) are (7, 6, 4).
  got = advantages.gae(one(1, 2, 4), one(1, 1, 1), one(1, 1, 1), lam=1.0)
  np.testing.assert_allclose(got, one(6, 5, 3), rtol=1e-6)


def test_the_score_lands_on_the_stop_token():
  """AT-16: index length - 1, nothing on padding, whatever the tokens are."""
  got = sequences.at_last(row(5), one(1, 1, 1, 0))
  np.testing.assert_array_equal(got, one(0, 0, 5, 0))


def test_whiten():
  """AT-14: the mask alone says what counts, and the deviation is the population's."""
  # (1, 3) has mean 2 and variance 1; the slot of 99 is masked.
  got = advantages.whiten(one(1, 3, 99), one(1, 1, 0))
  np.testing.assert_allclose(got, one(-1, 1, 0), atol=1e-6)


@pytest.mark.parametrize('value', [0.1, 10.1, 1000.1, 1e6])
@pytest.mark.parametrize('name', ['whiten', 'batch_mean'])
def test_equal_rewards_of_a_batch_have_no_advantage(name, value):
  """AT-9: exactly 0, and what is masked does not make them differ."""
  mask = jnp.ones((2, 4, 7)).at[0, :, 3:].set(0.0)
  got = vars(advantages)[name](jnp.where(mask > 0, value, 99.0), mask)
  np.testing.assert_array_equal(got, jnp.zeros_like(mask))


def test_kl_estimators():
  # d = log 2: k1 = .6931, k2 = .2402, k3 = 1/2 - 1 + .6931.
  d = np.log(2.0)
  for estimate, want in ((kl.k1, d), (kl.k2, d * d / 2), (kl.k3, d - 0.5)):
    np.testing.assert_allclose(estimate(one(-1), one(-1 - d)), one(want), rtol=1e-5)


@pytest.mark.parametrize('gap', [-50.0, 50.0, 1e4, -1e4])
def test_kl_of_a_wide_gap_is_finite(gap):
  """AT-29: value and gradient."""
  for estimate in (kl.k1, kl.k2, kl.k3):
    value, slope = jax.value_and_grad(lambda x: estimate(x, one(gap)).sum())(one(0))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_clipped_in_its_six_regions():
  """AT-25: values, slopes, and what the metric calls clipped."""
  # low 0.2, high 0.5: bounds 0.8 and 1.5. A = +1, then A = -1.
  ratio = jnp.array([0.5, 1.2, 2.0, 0.5, 1.2, 2.0])
  adv = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
  got = surrogates.clipped(ratio, adv, low=0.2, high=0.5)
  np.testing.assert_allclose(got, [0.5, 1.2, 1.5, -0.8, -1.2, -2.0], rtol=1e-6)
  total = lambda r: surrogates.clipped(r, adv, low=0.2, high=0.5).sum()
  np.testing.assert_array_equal(jax.grad(total)(ratio), [1, 1, 0, 0, -1, -1])
  hit = surrogates.clip_fraction(ratio, adv, low=0.2, high=0.5)
  np.testing.assert_array_equal(hit, [0, 0, 1, 1, 0, 0])


def test_clipped_on_the_fourth_side():
  """AT-25: a dual clip at 3 bounds what A < 0 loses, and changes nothing elsewhere."""
  ratio = jnp.array([0.5, 2.0, 5.0, 0.5, 2.0, 5.0])
  adv = jnp.array([1.0, 1.0, 1.0, -2.0, -2.0, -2.0])
  band = dict(low=0.2, high=0.5, dual=3.0)
  got = surrogates.clipped(ratio, adv, **band)
  np.testing.assert_allclose(got, [0.5, 1.5, 1.5, -1.6, -4, -6], rtol=1e-6)
  slope = jax.grad(lambda r: surrogates.clipped(r, adv, **band).sum())(ratio)
  np.testing.assert_array_equal(slope, [1, 0, 0, 0, -2, 0])
  hit = surrogates.clip_fraction(ratio, adv, **band)
  np.testing.assert_array_equal(hit, [0, 1, 1, 1, 0, 1])
  # grpo and ppo with one token each: ratio 5 and A = -1 lose 3, A = 1 gains 1.2.
  logp = jnp.full((1, 2, 1), -1.0)
  fields = dict(reward=row(1, 0), old_logp=logp - np.log(5.0))
  options = dict(beta=0.0, dual_clip=3.0)
  check(loss('grpo', options, Outputs(logp=logp), **fields), -(1.2 - 3) / 2)
  for name in ('grpo', 'ppo'):
    with pytest.raises(InputError, match=r'more than 1 \+ the upper clip, 1\.2'):
      build.method(name, dual_clip=1.1)


def test_weights_of_ragged_completions():
  """AT-5: lengths 1 and 3, and an empty completion that counts nowhere."""
  mask = jnp.array([[[1, 0, 0], [1, 1, 1], [0, 0, 0]]], jnp.float32)
  first = lambda w: [float(w[0, 0, 0]), float(w[0, 1, 0]), float(w[0, 2, 0])]
  np.testing.assert_allclose(first(weights.token_mean(mask)), [1 / 4, 1 / 4, 0])
  np.testing.assert_allclose(first(weights.seq_mean(mask)), [1 / 2, 1 / 6, 0])
  np.testing.assert_allclose(first(weights.seq_sum(mask)), [1 / 2, 1 / 2, 0])
  got = weights.constant_length(mask, length=4)
  np.testing.assert_allclose(first(got), [1 / 8, 1 / 8, 0])


def test_importance_of_tokens_and_of_completions():
  # AT-33: a gap of 0.012 nats over 100 tokens: exp(0.012) each, exp(1.2) = 3.32
  # together; over 1,000 tokens exp(12) = 162,755, which the cap holds at 2.
  held = ((1000, 2.0, 2.0), (4096, 5.0, 5.0))
  for t, cap, whole in ((10, 5.0, 1.12750), (100, 5.0, 3.3201), *held):
    ones = jnp.ones((1, 1, t))
    said = jnp.zeros_like(ones), -0.012 * ones
    token, row = importance.token(*said, ones, cap=cap)
    np.testing.assert_allclose(token, np.full((1, 1, t), 1.012072), rtol=1e-5)
    np.testing.assert_allclose(row, [[whole]], rtol=1e-4)
    token, row = importance.sequence(*said, ones, cap=cap)
    np.testing.assert_allclose(token, np.full((1, 1, t), whole), rtol=1e-4)
  # A masked token counts nowhere; a token's own cap: min(exp(2), 3) = 3.
  args = one(0.0, 0.0), one(-2.0, -9.0), one(1.0, 0.0)
  token, row = importance.token(*args, cap=3.0)
  np.testing.assert_allclose([token[0, 0, 0], row[0, 0]], [3.0, 3.0])


def test_agreement_of_sampler_and_trainer():
  # Gaps 0.1 and -0.3 of two tokens, a third masked: mean 0.2, max 0.3. With
  # d = log pi - log mu, k3 under mu is exp(d) - 1 - d: 0.0051709 and 0.0408182.
  found = importance.agreement(one(-0.9, -1.3, -5.0), one(-1, -1, -1), one(1, 1, 0))
  np.testing.assert_allclose(metrics.finish(found)['mismatch'], 0.2, rtol=1e-5)
  np.testing.assert_allclose(found['max/mismatch'], 0.3, rtol=1e-5)
  np.testing.assert_allclose(found['mismatch_k3'][0] / 2, 0.0229946, rtol=1e-4)


def test_log_odds_near_certainty():
  """AT-49: log(p / (1 - p)) at p = 1/4, and finite with its slope at p = 1."""
  got = sequences.log_odds(jnp.log(0.25))
  np.testing.assert_allclose(got, np.log(1 / 3), rtol=1e-6)
  for logp in (-1e-8, 0.0, -1e3):
    value, slope = jax.value_and_grad(sequences.log_odds)(jnp.float32(logp))
    assert np.isfinite(value)
    assert np.isfinite(slope)


def test_token_stats():
  # Logits (0, log 3) at temperature 1: p = (1/4, 3/4); at 1/2: p = (1/10, 9/10).
  hidden = jnp.array([[[[1.0]], [[1.0]]]])
  kernel = jnp.array([[0.0], [np.log(3.0)]])
  tokens = jnp.array([[[0], [1]]])
  logp, entropy = logprobs.token_stats(hidden, kernel, tokens, row(1, 0.5))
  np.testing.assert_allclose(logp[..., 0], [[np.log(0.25), np.log(0.9)]], rtol=1e-5)
  both = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
  np.testing.assert_allclose(entropy[..., 0], [[both(0.25), both(0.1)]], rtol=1e-5)


def test_token_stats_of_a_cut_distribution():
  """AT-32: of weights 1, 2, 4 those that are at least 1.5, 3 and 0.5, and at
  temperature 1/2 of 1, 4, 16 those that are at least 2, 0.5 and 0.
  """
  hidden = jnp.ones((1, 2, 3, 1))
  kernel = jnp.log(jnp.array([[1.0], [2.0], [4.0]]))
  tokens = jnp.array([[[1, 2, 0], [1, 1, 1]]])
  within = jnp.array([[[7 / 1.5, 7 / 3, 7 / 0.5], [21 / 2, 21 / 0.5, jnp.inf]]])
  logp, entropy = logprobs.token_stats(
    hidden, kernel, tokens, row(1, 0.5), within=jnp.log(within)
  )
  due = [[1 / 3, 1, 1 / 7], [1 / 5, 4 / 21, 4 / 21]]
  np.testing.assert_allclose(logp[0], np.log(due), rtol=1e-5, atol=1e-6)
  of = lambda *p: -sum(x * np.log(x) for x in p)
  whole, warm = of(1 / 7, 2 / 7, 4 / 7), of(1 / 21, 4 / 21, 16 / 21)
  due = [[of(1 / 3, 2 / 3), 0, whole], [of(1 / 5, 4 / 5), warm, warm]]
  np.testing.assert_allclose(entropy[0], due, rtol=1e-5, atol=1e-6)


def test_a_cut_distribution_moves_with_its_words():
  """AT-32: of 100 equal words 50 were kept, and a kept one that gets e^0.1 times as
  likely gets so much likelier among them: the others stay.
  """
  weight = np.repeat([1.01, 0.99], 50)
  how = draw.options(1, max_length=1, top_k=50)
  said = draw.draw(jnp.log(weight)[None], how, jnp.zeros((1, 2)))
  assert said.token == 0 and said.logp == pytest.approx(-np.log(50), abs=1e-5)
  kernel = jnp.log(weight).at[0].add(0.1)[:, None]
  one = jnp.ones((1, 1, 1))
  within = said.within[None, None]
  tokens = said.token[None, None]
  logp, _ = logprobs.token_stats(
    one[..., None], kernel, tokens, one[..., 0], within=within
  )
  due = 0.1 - np.log(49 + np.exp(0.1))
  np.testing.assert_allclose(logp, [[[due]]], rtol=1e-5)


@pytest.mark.parametrize(
  ('aggregate', 'want'), [('token_mean', 5 / 3), ('seq_mean', 7 / 4)]
)
def test_entropy_of_padding_counts_nowhere(aggregate, want):
  """AT-46: in a metric, in a bonus and in its gradient; in units of log 2."""
  # After token 0 four tokens are as likely, 2 log 2; after 1 two, log 2; 2 and 3 are
  # padding, though their entropies are not 0. Completions of 2 tokens and of 1:
  # (2 + 1 + 2) / 3, or ((2 + 1) / 2 + 2) / 2.
  never = -1e4
  rows = [[0, 0, 0, 0, never], [0, 0, never, never, never]]
  table = jnp.array([*rows, *jax.random.normal(jax.random.key(0), (3, 5))], jnp.float32)
  tokens = np.array([[[1, 2, 3, 3], [2, 3, 0, 3]]], np.int32)
  asked, length = np.zeros((1, 1), np.int32), np.array([[2, 1]])
  batch = types.make_batch(asked, np.array([1]), tokens, length)
  batch = jax.tree.map(jnp.asarray, batch)

  def loss(out, batch):
    bonus = jnp.sum(batch.weight * out.entropy)
    return -bonus, {
      'entropy': metrics.average(out.entropy, batch.weight),
      'summed': (jnp.sum(out.entropy), jnp.float32(1)),
    }

  probe = Method(loss, ('entropy',), aggregate=getattr(weights, aggregate))
  state = toy.state().replace(params={'policy': table})
  moved, found = jax.jit(make_update_step(toy.forward, toy.SGD, probe))(state, batch)
  log2 = np.log(2)
  np.testing.assert_allclose(found['entropy'], want * log2, rtol=1e-6)
  np.testing.assert_allclose(found['loss'], -want * log2, rtol=1e-6)
  np.testing.assert_allclose(found['summed'], 5 * log2, rtol=1e-6)
  np.testing.assert_array_equal(moved.params['policy'][2:], table[2:])


def test_metrics_of_unequal_pieces():
  """AT-8: windows [1, 2] and [3 .. 7] have the mean of the whole, 4.0, not 3.25."""
  first = {'x': metrics.average(jnp.array([1.0, 2.0]), jnp.ones(2))}
  second = {'x': metrics.average(jnp.arange(3.0, 8.0), jnp.ones(5))}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), first, second)
  assert float(metrics.finish(metrics.reduce(stacked))['x']) == 4.0


# ---- Methods -------------------------------------------------------------------------


def loss(name, options, outputs, prepared=None, **fields):
  """A method's loss on one prompt; the mask is 1 unless a field says otherwise."""
  shape = next(iter(fields.values())).shape if fields else (1, 1, 1)
  shape = outputs.logp.shape if outputs.logp is not None else shape
  b, g, t = shape if len(shape) == 3 else (*shape, 1)
  batch = types.make_batch(
    np.zeros((b, 1), np.int32),
    np.ones(b, np.int32),
    np.zeros((b, g, t), np.int32),
    np.full((b, g), t),
  ).replace(**fields)
  method = build.method(name, **options)
  batch = weigh(jax.tree.map(jnp.asarray, batch), method)
  batch = (
    method.prepare(None, batch)[1] if prepared is None else batch.replace(**prepared)
  )
  return method.loss(outputs, batch)


def check(got, want):
  np.testing.assert_allclose(got[0], want, rtol=2e-5)


def test_sft():
  # Tokens of -1 and -3: the mean is 2.
  check(loss('sft', {}, Outputs(logp=one(-1, -3))), 2.0)


def test_reinforce():
  # A = (2, -1), token mean over 3 tokens of -1, -2 | -4: -(2*-1 + 2*-2 + -1*-4) / 3.
  logp = jnp.array([[[-1.0, -2.0], [-4.0, 0.0]]])
  mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
  check(loss('reinforce', {}, Outputs(logp=logp), mask=mask, reward=row(2, -1)), 2 / 3)


def test_rloo():
  # R = reward - 0.5 KL: KL sums are 2 and 0, so R = (3, 0) and A = (3, -3).
  # Loss: -(3 * -3 + -3 * -1) / 2 = 3.
  logp = jnp.array([[[-1.0, -2.0], [-1.0, 0.0]]])
  ref = logp - jnp.array([[[1.0, 1.0], [0.0, 0.0]]])
  fields = dict(reward=row(4, 0), old_logp=logp, ref_logp=ref)
  check(loss('rloo', {'beta': 0.5}, Outputs(logp=logp), **fields), 3.0)


def test_grpo():
  # R = (1, 0): A = (1, -1) for eps 0. Ratios 1.5 (clipped to 1.2) and 0.5 (to 0.8).
  # Gain (1.2 - 0.8) / 2; d = log 2 against the reference: k3 = log 2 - 1/2.
  logp = jnp.array([[[np.log(0.6)], [np.log(0.2)]]])
  fields = dict(
    reward=row(1, 0),
    old_logp=jnp.log(jnp.array([[[0.4], [0.4]]])),
    ref_logp=logp - np.log(2.0),
  )
  got = loss('grpo', {'beta': 0.04}, Outputs(logp=logp), **fields)
  check(got, -0.2 + 0.04 * (np.log(2) - 0.5))
  weighted = {'beta': 0.04, 'kl': 'k1', 'kl_weighted': True}
  # Ratio * k1: (1.5 + 0.5) / 2 * log 2.
  check(loss('grpo', weighted, Outputs(logp=logp), **fields), -0.2 + 0.04 * np.log(2))


def test_dr_grpo():
  # A = (1/2, -1/2); ratio 1.1 everywhere; lengths 2 and 1; max_length 4.
  # Gain: (2 * .55 - .55) / 4 / 2.
  logp = jnp.full((1, 2, 2), -1.0)
  mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
  fields = dict(mask=mask, reward=row(1, 0), old_logp=logp - np.log(1.1))
  got = loss('dr_grpo', {'max_length': 4}, Outputs(logp=logp), **fields)
  check(got, -0.55 / 8)


def test_dapo():
  # A = (1, -1); ratio 1.5: 1.28 above for A > 0, 1.5 for A < 0; 2 tokens and 1.
  # Token mean: -(2 * 1.28 - 1.5) / 3.
  logp = jnp.full((1, 2, 2), -1.0)
  mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
  fields = dict(mask=mask, reward=row(1, 0), old_logp=logp - np.log(1.5))
  check(loss('dapo', {}, Outputs(logp=logp), **fields), -(2 * 1.28 - 1.5) / 3)


def test_gspo():
  # Token ratios e^.3 and e^-.1: s = e^.1, bound 1.05, A = +1 clips, A = -1 does not.
  logp = jnp.array([[[0.3, -0.1], [0.3, -0.1]]]) - 2.0
  fields = dict(reward=row(1, 0), old_logp=jnp.full((1, 2, 2), -2.0))
  options = {'clip_low': 0.05, 'clip_high': 0.05}
  check(loss('gspo', options, Outputs(logp=logp), **fields), -(1.05 - np.exp(0.1)) / 2)


def test_gspo_token():
  # As above with A_t = (2, 0, -1, -1): the first s_t = e^.1 > 1.05 clips, the others do
  # not; each token counts 1/4: (2.1 + 0 - 2 e^.1) / 4.
  logp = jnp.array([[[0.3, -0.1], [0.3, -0.1]]]) - 2.0
  options = dict(clip_low=0.05, clip_high=0.05, token=True)
  told = dict(advantage=jnp.array([[[2.0, 0.0], [-1.0, -1.0]]]))
  fields = dict(old_logp=jnp.full((1, 2, 2), -2.0))
  of = lambda x: loss('gspo', options, Outputs(logp=x), told, **fields)
  check(of(logp), -(2.1 - 2 * np.exp(0.1)) / 4)
  want = np.exp(0.1) / 4
  slope = jax.grad(lambda x: of(x)[0])(logp)
  np.testing.assert_allclose(slope, [[[0, 0], [want, want]]], rtol=1e-5)


def test_cispo():
  # Ratios 2 (bound 1.5) and 1/2; A = (1, -1); log-probs -1 and -3.
  # -(1.5 * 1 * -1 + 0.5 * -1 * -3) / 2 = 0 for these; with -2 in place of -3: +.25.
  logp = jnp.array([[[-1.0], [-2.0]]])
  fields = dict(reward=row(1, 0), old_logp=logp - jnp.log(jnp.array([[[2.0], [0.5]]])))
  check(loss('cispo', {'ratio_max': 1.5}, Outputs(logp=logp), **fields), 0.25)


def test_ppo():
  # One token. Ratio 2 clipped to 1.2, A = 1: gain 1.2. V = 1 against target 0, near
  # 0.5 + 0.2 = 0.7: value loss max(1, .49) / 2. Loss: 0.1 * 0.5 - 1.2.
  fields = dict(
    old_logp=one(-1 - np.log(2.0)),
    ref_logp=one(-1),
    old_value=one(0.5),
    reward=row(0),
  )
  prepared = dict(advantage=one(1), target=one(0))
  out = Outputs(logp=one(-1), value=one(1))
  check(loss('ppo', {}, out, prepared, **fields), 0.05 - 1.2)


def test_ppo_puts_kl_in_the_reward():
  # beta 0.5, d = (1, 2): rewards (-.5, 3 - 1); V = 0, lam 1: targets (1.5, 2).
  fields = dict(
    reward=row(3), old_logp=one(-1, -1), ref_logp=one(-2, -3), old_value=one(0, 0)
  )
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1), np.zeros((1, 1, 2), np.int32), [[2]]
  ).replace(**fields)
  got = build.method('ppo', beta=0.5, lam=1.0).prepare(None, batch)[1]
  np.testing.assert_allclose(got.target, one(1.5, 2.0), rtol=1e-6)


PAIR = jnp.array([[[-1.0, -3.0], [-2.5, -9.0]]])
PAIR_MASK = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])


def pair(name, options, ref=0.0):
  """Chosen -1, -3 against a reference `ref` lower; rejected -2.5, one token."""
  lower = jnp.array([[[ref, ref], [0.0, 0.0]]])
  logp = PAIR * PAIR_MASK
  return loss(
    name,
    options,
    Outputs(logp=logp, ref_logp=logp),
    mask=PAIR_MASK,
    ref_logp=logp - lower,
  )


def test_dpo():
  # h = 2 * 0.5 = 1, beta 2: softplus(-2). Smoothed by 0.1: + 0.1 * 2.
  check(pair('dpo', {'beta': 2.0}, 0.5), np.log1p(np.exp(-2)))
  smooth = {'beta': 2.0, 'label_smoothing': 0.1}
  check(pair('dpo', smooth, 0.5), np.log1p(np.exp(-2)) + 0.2)


def test_ipo():
  # Averaged h = 0.5, summed 1; target 1 / (2 * 0.25) = 2.
  check(pair('ipo', {'tau': 0.25}, 0.5), 2.25)
  check(pair('ipo', {'tau': 0.25, 'average': False}, 0.5), 1.0)


def test_kto():
  # rho = 1 with z0 = 0.5, beta 2. Desirable: 1 - sigmoid(1); undesirable, weight 3:
  # 3 (1 - sigmoid(-1)).
  logp = jnp.array([[[-1.0], [-1.0]]])
  fields = dict(reward=row(1, -1), ref_logp=logp - 1.0, extra={'z0': jnp.array([0.5])})
  options = {'beta': 2.0, 'undesirable': 3.0, 'baseline': 'batch'}
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  want = ((1 - sigmoid(1)) + 3 * (1 - sigmoid(-1))) / 2
  check(loss('kto', options, Outputs(logp=logp), {}, **fields), want)


def test_kto_measures_mismatched_rows():
  # Mismatched rho: (2, -1) averages 0.5; (-2, -1) is held at 0.
  method = build.method('kto')
  for rho, want in (([2.0, -1.0], 0.5), ([-2.0, -1.0], 0.0)):
    batch = types.make_batch(
      np.array([[0], [1]], np.int32),
      np.ones(2),
      np.zeros((2, 1, 1), np.int32),
      np.ones((2, 1), np.int32),
    )
    batch = weigh(method.prepare(None, jax.tree.map(jnp.asarray, batch))[1], method)
    logp = jnp.array(rho).reshape(2, 1, 1)
    out = Outputs(aux=Outputs(logp=logp, ref_logp=jnp.zeros_like(logp)))
    np.testing.assert_allclose(method.measure(out, batch).extra['z0'], [want] * 2)


def test_simpo():
  # Means -2 and -2.5; logit 2 * 0.5 - 1 = 0: log 2.
  check(pair('simpo', {'beta': 2.0, 'gamma': 1.0}), np.log(2.0))


def test_orpo():
  # p = e^-2 and e^-2.5; NLL 2.
  odds = lambda a: np.exp(a) / (1 - np.exp(a))
  want = 2.0 + 0.1 * np.log1p(odds(-2.5) / odds(-2.0))
  check(pair('orpo', {'lam': 0.1}), want)


def test_bradley_terry():
  # s = (1.2, 0.3): softplus(-.9) = .341154; + .01 * 1.5^2; + .001 * (1.44 + .09) / 2.
  shape = dict(reward=row(1, 0))
  out = Outputs(score=row(1.2, 0.3))
  check(loss('bradley_terry', {}, out, **shape), 0.341154)
  check(loss('bradley_terry', {'center': 0.01}, out, **shape), 0.363654)
  check(loss('bradley_terry', {'l2': 0.001}, out, **shape), 0.341919)


@pytest.mark.parametrize('name', ['dpo', 'simpo', 'orpo', 'ipo'])
@pytest.mark.parametrize('size', [1e3, -1e3])
def test_wide_margins_are_finite(name, size):
  """AT-49: value and gradient at margins of +-1000 nats."""

  def at(x):
    out = Outputs(logp=x[..., None])
    return loss(name, {}, out, ref_logp=jnp.zeros((1, 2, 1)))[0]

  margins = jnp.array([[0.0, -1e3]]) if size > 0 else jnp.array([[-1e3, 0.0]])
  value, slope = jax.value_and_grad(at)(margins)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


def test_a_tie_is_half_a_win():
  """Margins 2, -1, 0, 3 with weights .4, .3, .2, 0: .4 + .1 of .9."""
  margin, weight = jnp.array([2.0, -1.0, 0.0, 3.0]), jnp.array([0.4, 0.3, 0.2, 0.0])
  total, whole = metrics.wins(margin, weight)
  assert (float(total), float(whole)) == pytest.approx((0.5, 0.9))


def test_a_margin_of_float32_s_rounding_is_a_tie():
  """Two programs at the same parameters; a margin of 2e-5 is one."""
  margin = jnp.array([2.4e-7, 1.7e-6, -1.7e-6, 2e-5, -2e-5])
  total, _ = metrics.wins(margin, jnp.array([1.0, 10.0, 100.0, 1000.0, 10000.0]))
  assert float(total) == 0.5 + 5 + 50 + 1000
