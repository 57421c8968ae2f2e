"""Losses of pairs, lists and labels: golden numbers, reductions, optima, limits."""

import contextlib
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from oracles import preference_golden as oracle
from test_identities import (
  REF,
  SCORES,
  at_reference,
  bandit,
  close,
  gradient,
  settle,
  update,
)

from jaxrl_llm import build, forward
from jaxrl_llm.data import fitting
from jaxrl_llm.methods import kto
from jaxrl_llm.models import decoder, pretrained
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.ops import (
  links,
  logprobs,
  metrics,
  pair_losses,
  preferences,
  sequences,
)
from jaxrl_llm.step import weigh
from jaxrl_llm.types import InputError, Outputs

GOLDEN = json.loads(oracle.FILE.read_text())
method = build.method


def rows(m, ref, reward=None, mask=None, **fields):
  """A weighed batch of completions with these reference log-probs, [B, G, T]."""
  b, g = ref.shape[:2]
  reward = jnp.tile(-2.0 * jnp.arange(g) + 1, (b, 1)) if reward is None else reward
  mask = jnp.ones_like(ref) if mask is None else mask
  batch = bandit(np.zeros((b, g))).replace(ref_logp=ref, mask=mask, reward=reward)
  extra = {'delta': jnp.zeros(b), 'z0': jnp.zeros(b)} | fields
  return weigh(batch.replace(extra=extra), m)


def measured(m, out, batch):
  """The method's loss and metrics, with what it measures."""
  batch = batch if m.measure is None else m.measure(jax.lax.stop_gradient(out), batch)
  return m.loss(out, batch)


def single(m, rho, logp=-40.0, **fields):
  """The loss of completions of one token with log-ratios rho [B, G]."""
  ref = jnp.full((*rho.shape, 1), logp)
  out = Outputs(logp=rho[..., None] + logp, ref_logp=ref, collision=0 * ref)
  if 'ema_logp' in m.needs:
    batch = rows(m, ref).replace(ema_logp=ref)
    return measured(m, out, batch)[0]
  return measured(m, out, rows(m, ref, **fields))[0]


def slopes(m, rho, **fields):
  return jax.grad(lambda x: single(m, x, **fields))(rho)


# ---- Golden numbers ------------------------------------------------------------------


def test_the_golden_numbers_are_fresh():
  """They are what tests/oracles/preference_golden.py writes."""
  chex.assert_trees_all_close(numbers(oracle.table()), numbers(GOLDEN), rtol=1e-12)
  assert list(GOLDEN['pairs']) == list(oracle.PAIRS)


def numbers(table):
  pairs = [(row['value'], row['slope']) for row in table['pairs'].values()]
  return pairs, [row['value'] for row in table['lists'].values()], table['batches']


@pytest.mark.parametrize('wide', [True, False])
@pytest.mark.parametrize('title', GOLDEN['pairs'])
def test_a_pair(title, wide):
  """AT-47: value and slope in both log-probs."""
  want, x = GOLDEN['pairs'][title], GOLDEN['inputs']['pair']
  m = method(want['method'], **want['options'])
  with toy.float64() if wide else contextlib.nullcontext():
    length = jnp.array([x['length']], float)
    mask = (jnp.arange(10)[None, None] < length[..., None]).astype(float)
    spread = lambda total: (jnp.asarray(total, float)[None] / length)[..., None] * mask
    given = want['known']
    extra = {k: jnp.array([v], float) for k, v in given.items() if k in ('z0', 'delta')}
    batch = rows(m, spread(x['ref']), mask=mask, **extra)
    if 'label' in given:  # The row of this label alone.
      alone = [[1.0, 0.0]] if given['label'] > 0 else [[0.0, 1.0]]
      batch = batch.replace(seq_weight=jnp.array(alone))
    if want['method'] == 'bco':
      batch = m.measure(Outputs(), batch)
    collision = spread(given.get('collision', [0.0, 0.0]))

    def loss(logp):
      out = Outputs(logp=spread(logp), collision=collision)
      return m.loss(out, batch)[0]

    value, slope = jax.value_and_grad(loss)(jnp.array(x['logp'], float))
  atol = 1e-6 if wide else 1e-5 * max(1.0, abs(want['value']))
  close(value, want['value'], atol)
  close(slope, want['slope'], atol)


@pytest.mark.parametrize('name', GOLDEN['lists'])
def test_a_list_of_three(name):
  want, x = GOLDEN['lists'][name], GOLDEN['inputs']['list']
  rho, reward = jnp.array([x['rho']]), jnp.array([x['reward']])
  close(single(method(name, **want['options']), rho, reward=reward), want['value'])


def test_kto_of_a_batch():
  x = GOLDEN['inputs']['labels']
  rho = jnp.array([*x['good'], *x['bad']])[:, None]
  label = jnp.repeat(jnp.array([1.0, -1.0]), 4)[:, None]
  batch = rows(method('kto'), jnp.zeros((8, 1, 1)), label, z0=jnp.full(8, x['z0']))
  got = method('kto', beta=0.1).loss(Outputs(logp=rho[..., None]), batch)[0]
  close(got, GOLDEN['batches']['kto'])


@pytest.mark.parametrize('name', ['aot', 'aot_unpaired'])
def test_aot_of_a_batch(name):
  x, m = GOLDEN['inputs']['bags'], method(name, beta=0.1)
  batch = rows(m, jnp.array(x['ref'])[..., None])
  got = measured(m, Outputs(logp=jnp.array(x['logp'])[..., None]), batch)[0]
  close(got, GOLDEN['batches'][name])


# ---- At the reference, turned round, far out -----------------------------------------

LOG2, EVEN = np.log(2), jnp.zeros((3, 2))
logit = lambda p: np.log(p / (1 - p))
# The method, its options, its loss where pi is the reference, and there three times the
# slope in each log-ratio of a pair of three.
START = {
  'dpo': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'cdpo': (dict(beta=1.0, flipped=0.2), LOG2, (-0.3, 0.3)),
  'robust_dpo': (dict(beta=1.0, flipped=0.3), LOG2, (-1.25, 1.25)),
  'ipo': (dict(tau=0.3), 1 / 0.36, (-1 / 0.3, 1 / 0.3)),
  'ln_dpo': (dict(beta=2.0), LOG2, (-1.0, 1.0)),
  'r_dpo': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'tr_dpo': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'dpo_positive': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'f_dpo, reverse_kl': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'f_dpo, forward_kl': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'f_dpo, jensen_shannon': (dict(beta=0.4), LOG2, (-0.1, 0.1)),
  'f_dpo, alpha(alpha=0.5)': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'apo_zero': (dict(beta=0.4), 1.0, (-0.1, 0.1)),
  'apo_down': (dict(beta=0.4), 1.0, (0.0, 0.1)),
  'infonca': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'nca': (dict(beta=0.4), 2 * LOG2, (-0.1, 0.1)),
  'exo': (
    dict(beta=0.4, flipped=1e-3),
    -LOG2 - np.log(1e-3 * 0.999) / 2,
    (-0.1 * logit(0.999), 0.1 * logit(0.999)),
  ),
  'bco': (dict(beta=0.4), 2 * LOG2, (-0.2, 0.2)),
  'aot': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  'aot_unpaired': (dict(beta=0.4), LOG2, (-0.2, 0.2)),
  # 1 / (4 tau) (1 - log 2) - 3 / 4 is above 0: it begins by lowering the margin.
  'discopop': (
    dict(beta=1.0, tau=0.05),
    (1 + LOG2) / 2,
    (5 * (1 - LOG2) - 0.75, 0.75 - 5 * (1 - LOG2)),
  ),
}


def titled(title, **options):
  name, _, link = title.partition(', ')
  return method(name, **options, **({'link': link} if link else {}))


@pytest.mark.parametrize('title', START)
def test_at_the_reference(title):
  """AT-30, AT-47."""
  options, value, slope = START[title]
  m = titled(title, **options)
  close(single(m, EVEN), value, 2e-6)
  close(3 * slopes(m, EVEN), np.tile(slope, (3, 1)), 2e-6)


def test_without_a_reference_at_equal_log_probs():
  """Sums of -8 and means of -4, over two tokens."""
  logp = jnp.full((2, 2, 2), -4.0)
  loss = lambda name, **o: method(name, **o).loss(
    Outputs(logp=logp), rows(method(name), logp)
  )[0]
  close(loss('cpo', alpha=0.5), LOG2 + 0.5 * 4)
  close(loss('slic', delta=1.5, lam=0.25), 1.5 + 0.25 * 8)
  close(loss('simpo', gamma=1.6), np.log1p(np.exp(1.6)))


bell = lambda x: jnp.tanh(x / 2)
# Loss less the loss of the pair turned round, of rewards (a, b) = beta rho; beta 0.7.
TURNED = {
  'robust_dpo': (dict(flipped=0.2), lambda a, b: -(a - b) / 0.6),
  'cdpo': (dict(flipped=0.2), lambda a, b: -0.6 * (a - b)),
  'ln_dpo': ({}, lambda a, b: -(a - b)),
  'infonca': ({}, lambda a, b: -(a - b)),
  'nca': ({}, lambda a, b: jax.nn.log_sigmoid(b) - jax.nn.log_sigmoid(a)),
  'exo': (dict(flipped=0.1), lambda a, b: -logit(0.9) * bell(a - b)),
  'apo_zero': ({}, lambda a, b: -bell(a) + bell(b)),
  'bco': ({}, lambda a, b: -(a - b)),
  'aot': ({}, lambda a, b: -(a - b)),
  'aot_unpaired': ({}, lambda a, b: -(a - b)),
  'cpo': (dict(alpha=0.5), lambda a, b: -(a - b) - 0.5 * (a - b) / 0.7),
}


@pytest.mark.parametrize('title', TURNED)
def test_pairs_turned_round(title):
  """AT-47. The mean over pairs, which for aot are matched anew."""
  options, want = TURNED[title]
  m, rho = (
    method(title, beta=0.7, **options),
    np.random.default_rng(1).normal(size=(7, 2)),
  )
  rho = jnp.asarray(rho, jnp.float32)
  got = single(m, rho) - single(m, rho[:, ::-1])
  close(got, want(0.7 * rho[:, 0], 0.7 * rho[:, 1]).mean(), 5e-6)


FAR = [*START, 'cpo', 'slic', 'simpo', 'wpo', 'kto', 'orpo']
OF_LOSSES = ['logistic', 'robust(flipped=0.2)', 'hinge', 'squared(target=5.0)']


@pytest.mark.parametrize('title', FAR)
def test_margins_of_a_thousand_nats(title):
  """AT-49: value and slope are finite, by the defaults, and at a log-prob of -1e-8."""
  m = method('kto', baseline='batch') if title == 'kto' else titled(title)
  for pair in ([0.0, -1e3], [-1e3, 0.0], [-1e3, -1e3], [1e3, 0.0], [0.0, 1e3]):
    rho = jnp.array([pair, [0.0, 0.0]])
    shift = -1.0 if max(pair) > 0 else -1e-8
    of = lambda x: single(m, x, shift - max(max(pair), 0.0))
    value, slope = jax.value_and_grad(of)(rho)
    assert np.isfinite(value), pair
    assert np.isfinite(slope).all(), pair


@pytest.mark.parametrize('spelled', [*OF_LOSSES, 'discopop'])
def test_a_loss_of_the_margin_is_a_flag_of_dpo(spelled):
  """By its name, with its options; finite, and smoothed by the label."""
  m = method('dpo', beta=0.5, loss=spelled)
  name, options = build.spelled(spelled, '').pop('name'), build.spelled(spelled, '')
  options.pop('name')
  plain = lambda u: getattr(pair_losses, name)(u, **options)
  rho = jnp.array([[1.3, 0.5], [-0.4, 0.2]])
  u = 0.5 * (rho[:, 0] - rho[:, 1])
  close(single(m, rho), plain(u).mean(), 1e-5)
  mixed = method('dpo', beta=0.5, loss=spelled, label_smoothing=0.25)
  close(single(mixed, rho), (0.75 * plain(u) + 0.25 * plain(-u)).mean(), 1e-5)


# ---- Where the slope vanishes --------------------------------------------------------

slope_of = lambda loss, u: jax.grad(loss)(jnp.float32(u))
pair_slope = lambda m, u: slopes(m, jnp.array([[u, 0.0]]))[0, 0]


def test_noisy_labels_have_a_finite_margin():
  """cdpo, and exo, whose loss is 0 there, at logit(0.9); robust_dpo never rests."""
  goal = logit(0.9)
  close(pair_slope(method('cdpo', beta=1.0, flipped=0.1), goal), 0.0)
  m = method('exo', beta=1.0, flipped=0.1)
  close(single(m, jnp.array([[goal, 0.0]])), 0.0)
  close(pair_slope(m, goal), 0.0)
  robust = method('robust_dpo', beta=1.0, flipped=0.2)
  close(pair_slope(robust, 50.0), -0.2 / 0.6)


def test_discopop_has_two_basins():
  """A minimum of 0.7859 at -0.119 and a maximum of 0.8783 at 0.072."""
  for at, value, bend in ((-0.119, 0.7859, 1), (0.072, 0.8783, -1)):
    close(pair_losses.discopop(jnp.float32(at)), value, 1e-4)
    below, above = (slope_of(pair_losses.discopop, at + h) for h in (-2e-3, 2e-3))
    assert bend * below < 0 < bend * above


def test_nca_pins_each_reward():
  """At r = log(G p), in a group of three; infonca's softmax(r) = p leaves one free."""
  reward = jnp.array([[0.3, -0.8, 1.1]])
  p = jax.nn.softmax(reward / 0.5)
  options = dict(beta=0.25, temperature=0.5)
  rest = lambda name, r: slopes(method(name, **options), r / 0.25, reward=reward)
  close(rest('nca', jnp.log(3 * p)), 0.0)
  assert abs(rest('nca', jnp.log(3 * p) + 1)).max() > 1e-2
  for name in ('infonca', 'exo'):
    close(rest(name, jnp.log(p) + 1), 0.0)


# ---- One method is another -----------------------------------------------------------


def same(one, other, mask=None, share=1.0):
  """Loss and gradient agree, on ragged pairs off the reference, up to a factor."""
  rng = np.random.default_rng(3)
  logp, ref = (jnp.asarray(-rng.exponential(size=(5, 2, 4)), 'float32') for _ in 'ab')
  if mask is None:
    mask = (np.arange(4) < rng.integers(1, 5, (5, 2, 1))).astype('float32')
  mask = jnp.asarray(mask)
  of = lambda m: (
    lambda x: measured(m, Outputs(logp=x * mask), rows(m, ref * mask, mask=mask))[0]
  )
  got, want = (jax.value_and_grad(of(m))(logp) for m in (one, other))
  close(got[0], share * want[0], 2e-5)
  close(got[1], share * want[1], 2e-5)


WHOLE = np.ones((5, 2, 4))


def test_dpo_by_other_names():
  dpo = method('dpo', beta=0.5)
  same(method('f_dpo', beta=0.5), dpo)
  same(method('infonca', beta=0.5), dpo)
  same(method('cdpo', beta=0.5, flipped=0.0), dpo)
  same(method('robust_dpo', beta=0.5, flipped=0.0), dpo)
  same(method('r_dpo', beta=0.5, alpha=0.0), dpo)
  same(method('dpo_positive', beta=0.5, lam=0.0), dpo)
  same(method('ln_dpo', beta=2.0), dpo, WHOLE)  # By length 4.
  same(method('cdpo', flipped=0.3), method('dpo', label_smoothing=0.3))


def test_f_dpo_goes_from_reverse_to_forward_kl():
  of = lambda link: method('f_dpo', beta=0.5, link=link)
  same(of('alpha(alpha=1e-6)'), of('reverse_kl'))
  same(of('alpha(alpha=1.0)'), of('forward_kl'))


def test_robust_dpo_is_unbiased():
  """The mean over flipped labels is dpo's loss of the clean ones, and its slope."""
  loss = 'robust(flipped=0.2)'
  flipped = method('dpo', beta=0.5, loss=loss, label_smoothing=0.2)
  same(flipped, method('dpo', beta=0.5))


def test_ipo_of_means_is_ipo_of_sums_rescaled():
  """n^-2 of that with tau / n, at equal lengths n = 4."""
  summed = method('ipo', tau=0.1, average=False)
  same(method('ipo', tau=0.4), summed, WHOLE, share=1 / 16)
  loss = 'squared(target=5.0)'
  same(method('dpo', beta=1.0, loss=loss), summed)


def test_simpo_without_a_margin_is_cpo_alone():
  cpo = method('cpo', beta=0.5, alpha=0.0)
  same(method('simpo', beta=2.0, gamma=0.0), cpo, WHOLE)


def test_apo_zero_is_kto_without_a_baseline():
  """Its z0 is 0 here; kto's mean is over rows, of which a pair has two."""
  kto = method('kto', beta=0.5)._replace(measure=None)
  same(method('apo_zero', beta=0.5), kto, share=2.0)


def test_cdpo_and_exo_are_the_two_directions():
  """cdpo is H(p) + KL(p || q), exo KL(q || p), p = (1 - e, e), q = sigmoid(+-u)."""
  u = jnp.linspace(-2, 2, 9)[:, None] * jnp.array([[1.0, 0.0]])
  p = jnp.array([0.9, 0.1])
  q = jax.nn.sigmoid(u[:, :1] * jnp.array([[1.0, -1.0]]))
  one = dict(beta=1.0, flipped=0.1)
  close(single(method('cdpo', **one), u), -jnp.mean(jnp.log(q) @ p))
  reverse = jnp.sum(q * (jnp.log(q) - jnp.log(p)[None]), 1).mean()
  close(single(method('exo', **one), u), reverse)


def test_bco_is_above_dpo():
  """e^bco = e^dpo + e^-a + e^c, a and c the rewards less delta, of one pair."""
  rho, delta = jnp.array([[0.9, -0.3]]), jnp.array([0.2])
  bco = single(method('bco', beta=0.5), rho, delta=delta)
  dpo = single(method('dpo', beta=0.5), rho)
  a, c = 0.5 * rho[0] - 0.2
  close(jnp.exp(bco), jnp.exp(dpo) + jnp.exp(-a) + jnp.exp(c))


def test_a_longer_winner_is_pushed_less():
  """r_dpo's sign: by e^(alpha (4 - 1)) at u = 0."""
  mask = jnp.array([[[1.0, 1, 1, 1], [1, 0, 0, 0]]])
  m = method('r_dpo', beta=0.5, alpha=0.1)
  got = measured(m, Outputs(logp=-mask), rows(m, -mask, mask=mask))[0]
  close(got, np.log1p(np.exp(-0.3)))


def test_a_chosen_that_fell_is_pushed_up_harder():
  """dpo_positive, rho (-1, -2), beta 0.5, lam 3: u = 0.5 (1 - 3); slope 1 + 3 times."""
  m, rho = method('dpo_positive', beta=0.5, lam=3.0), jnp.array([[-1.0, -2.0]])
  close(single(m, rho), np.log1p(np.exp(1)))
  weight = 0.5 / (1 + np.exp(-1))
  close(slopes(m, rho), [[-4 * weight, weight]])


def test_rewards_are_what_the_policy_says_alone():
  """beta rho, without a penalty or a length: what is held out is compared by it."""
  rho = jnp.array([[-0.1, -0.2], [0.3, -0.4]])
  mask = jnp.array([[[1.0, 0], [1, 1]], [[1, 1], [1, 0]]])
  for name in ('dpo', 'dpo_positive', 'r_dpo'):
    m = method(name, beta=0.5)
    logp = (rho / mask.sum(-1))[..., None] * mask
    found = measured(m, Outputs(logp=logp), rows(m, 0 * logp, mask=mask))[1]
    told = metrics.finish(found)
    close(told['accuracy'], 1.0)
    close(told['margin'], 0.5 * 0.4)
    close([told['reward_chosen'], told['reward_rejected']], [0.05, -0.15])


# ---- Whole batches -------------------------------------------------------------------


def ragged(seed=0, n=6):
  rng = np.random.default_rng(seed)
  return (jnp.asarray(-rng.exponential(5, (n, 2, 1)), 'float32') for _ in 'ab')


@pytest.mark.parametrize('baseline', ['batch', 'mismatched'])
def test_the_baseline_of_a_part_is_its_mean(baseline):
  """Held-out rows are weighed as rows of all, a batch of them as a part."""
  m, ref = method('kto', baseline=baseline), jnp.zeros((4, 1, 1))
  batch = rows(m, ref).replace(aux=rows(m, ref))
  rho = jnp.array([0.4, 1.0, -0.2, 0.8])[:, None, None]
  out = Outputs(logp=rho, ref_logp=ref)
  out = out.replace(aux=out)
  z0 = lambda w: m.measure(
    out, batch.replace(seq_weight=w, aux=batch.aux.replace(seq_weight=w))
  ).extra['z0']
  close(z0(batch.seq_weight), 0.5)
  close(z0(batch.seq_weight / 30), 0.5)
  close(z0(0 * batch.seq_weight), 0.0)


def test_a_mismatched_row_is_of_another_prompt():
  """Rows of one prompt stand together, as the two of a pair; padding is no word."""
  prompts = jnp.array([[5, 6, 0], [5, 6, 9], [7, 7, 7], [5, 5, 5], [5, 5, 5]])
  batch = toy.batch().replace(
    prompts=prompts,
    prompt_length=jnp.array([2, 2, 3, 3, 3]),
    prompt_id=jnp.array([10, 11, 14, 12, 13]),
    valid=jnp.array([1.0, 1, 1, 0, 1])[:, None],
  )
  other, there = kto.following(batch)
  np.testing.assert_array_equal(other[there], [4, 4, 0, 2])
  np.testing.assert_array_equal(there, [True, True, True, False, True])
  alone = batch.replace(prompts=0 * prompts, prompt_length=batch.prompt_length * 0 + 1)
  assert not kto.following(alone)[1].any()


def test_aot_of_one_pair_is_dpo():
  for name in ('aot', 'aot_unpaired'):
    rho = jnp.array([[0.7, -0.4]])
    args = dict(beta=0.3)
    close(single(method(name, **args), rho), single(method('dpo', **args), rho))
    got, want = (slopes(method(n, **args), rho) for n in (name, 'dpo'))
    close(got, want)


def test_aot_is_blind_to_who_was_paired_with_whom():
  """aot to the order of the reference's margins, aot_unpaired to that of a side."""
  logp, ref = ragged()
  turn = jnp.array([3, 0, 5, 1, 4, 2])
  other = ref[turn]  # Both of a pair, so its margins.
  loss = lambda m, l, r: measured(m, Outputs(logp=l), rows(m, r))[0]
  m = method('aot', beta=0.3)
  close(loss(m, logp, other), loss(m, logp, ref))
  dpo = method('dpo', beta=0.3)
  assert abs(loss(dpo, logp, other) - loss(dpo, logp, ref)) > 1e-2
  m = method('aot_unpaired', beta=0.3)
  side = lambda x: jnp.stack([x[:, 0], x[turn, 1]], 1)
  close(loss(m, side(logp), side(ref)), loss(m, logp, ref))


def test_aot_unpaired_has_the_slope_of_the_sorted_loss():
  """Through jnp.sort itself, over the whole batch at once."""
  logp, ref = ragged()
  m = method('aot_unpaired', beta=0.3)

  def sorted_loss(logp):
    r = jnp.sort(0.3 * (logp - ref)[..., 0], 0)
    return pair_losses.logistic(r[:, 0] - r[:, 1]).mean()

  of = lambda x: measured(m, Outputs(logp=x), rows(m, ref))[0]
  batch = m.measure(Outputs(logp=logp), rows(m, ref))
  fixed = lambda x: m.loss(Outputs(logp=x), batch)[0]
  close(of(logp), sorted_loss(logp))
  close(jax.grad(fixed)(logp), jax.grad(sorted_loss)(logp))


def test_ranks_by_hand():
  """(5, 1, 3) have ranks 2, 0, 1 among those that count; 9 does not."""
  mine, other = jnp.array([5.0, 1, 9, 3]), jnp.array([10.0, 30, -7, 20])
  got = sequences.at_rank(mine, other, jnp.array([1.0, 1, 0, 1]))
  np.testing.assert_array_equal(got, [30, 10, 0, 20])


def bco_step(state, rho, label, **options):
  """The loss's metrics and the state after a batch of rows of one token."""
  m = method('bco', **options)
  rho, label = jnp.array(rho)[:, None], jnp.array(label)[:, None]
  if state is None:
    state = toy.state().replace(extra={k: jnp.float32(v) for k, v in m.extra.items()})
  batch = rows(m, jnp.zeros((*rho.shape, 1)), label)
  batch = m.prepare(state, batch)[1]
  loss, found = measured(m, Outputs(logp=rho[..., None]), batch)
  found = metrics.finish(found)
  return float(loss), found, m.after(state, batch, found)


def test_bco_runs_after_the_rewards():
  """delta is half-way between the means of the classes, from the batches before."""
  x = GOLDEN['inputs']['labels']
  rho, label = [*x['good'], *x['bad']], [1.0] * 4 + [-1.0] * 4
  _, found, state = bco_step(None, rho, label, beta=0.1)
  close(found['delta'], 0.0)
  _, found, state = bco_step(state, [2.0, 6.0], [1.0, 1.0], beta=0.1)
  close(found['delta'], GOLDEN['batches']['bco_delta'])
  # Good: (4 * .04 + .2 + .6) / 6 = .16, bad: -.01.
  close(bco_step(state, [0.0], [1.0], beta=0.1)[1]['delta'], 0.075)


def test_bco_counts_each_class_as_much():
  """softplus(-1) of three good rows, softplus(-2) of one bad, whatever their number."""
  loss, found, _ = bco_step(None, [1.0, 1, 1, -2], [1.0, 1, 1, -1], beta=1.0)
  close(loss, np.log1p(np.exp(-1)) + np.log1p(np.exp(-2)))
  close((found['reward_chosen'], found['reward_rejected']), (1.0, -2.0))


@pytest.mark.parametrize('label', [1.0, -1.0])
@pytest.mark.parametrize('count', [1, 3, 4])
def test_bco_of_one_class(label, count):
  """AT-50: one row, odd and even batches, all good or all bad."""
  loss, _, state = bco_step(None, [0.5 * label] * count, [label] * count, beta=2.0)
  close(loss, np.log1p(np.exp(-1)))
  # The class that was not seen does not pull delta to 0.
  close(bco_step(state, [0.0], [label], beta=2.0)[1]['delta'], label)


def test_kto_holds_its_baseline_fixed():
  """AT-50: other mismatched rows change z0 and the loss, and give no gradient."""
  m = method('kto', beta=0.5)
  z0 = update(m)[1]['z0']
  assert float(z0) > 0.01
  fixed = lambda out, batch: with_z0(batch, z0)
  flat = m._replace(measure=fixed, measure_needs=())
  close(gradient(m), gradient(flat))
  none = m._replace(measure=lambda out, batch: with_z0(batch, 0.0), measure_needs=())
  assert abs(gradient(none) - gradient(m)).max() > 1e-4
  assert abs(update(none)[1]['loss'] - update(m)[1]['loss']) > 1e-3


@pytest.mark.parametrize('name', ['kto', 'bco'])
def test_a_reward_of_0_is_undesirable(name):
  """As a checker says it of a fresh answer, where data say -1."""
  m = method(name, **({'baseline': 'batch'} if name == 'kto' else {}))
  rho = jnp.array([[0.3], [-0.2], [0.5]])
  of = lambda bad: slopes(m, rho, reward=jnp.array([[1.0], [bad], [bad]]))
  close(of(0.0), of(-1.0))
  assert (of(0.0)[1:] > 0).all()


def with_z0(batch, z0):
  return batch.replace(extra=batch.extra | {'z0': jnp.full(len(batch.reward), z0)})


# ---- Optima of tabular policies, from the whole distribution of preferences ----------

PAIRS = np.array(list(itertools.permutations(range(toy.V), 2)))
WINS = jax.nn.sigmoid(SCORES[PAIRS[:, 0]] - SCORES[PAIRS[:, 1]])
FOUND = {  # The link of the optimum: beta f'(pi / ref) is the reward, up to a constant.
  'reverse_kl': (0.8, 20.0),
  'jensen_shannon': (1.6, 5.0),
  'alpha(alpha=0.3)': (0.8, 5.0),
  'forward_kl': (1.6, 2.0),
}


@pytest.mark.parametrize('link', FOUND)
def test_f_dpo_finds_the_regularised_optimum(link):
  beta, rate = FOUND[link]
  m = method('f_dpo', beta=beta, link=link)
  rho = settle(m, bandit(PAIRS), WINS / WINS.sum(), rate, steps=6000) - REF
  of = build.function('jaxrl_llm.ops.links', link, '')
  gap = beta * of(rho) - SCORES
  close(gap - gap.mean(), np.zeros(toy.V), 1e-3)


def test_robust_dpo_sees_through_flipped_labels():
  """A fifth of all labels wrong: ref exp(r / beta) / Z all the same; dpo is far off."""
  seen = 0.8 * WINS + 0.2 * (1 - WINS)
  share, want = seen / seen.sum(), jax.nn.softmax(REF + SCORES / 0.8)
  settled = lambda name, **o: jnp.exp(
    settle(method(name, beta=0.8, **o), bandit(PAIRS), share, 20.0, steps=6000)
  )
  close(settled('robust_dpo', flipped=0.2), want, 1e-3)
  assert abs(settled('dpo') - want).max() > 0.05


def test_ipo_finds_its_optimum():
  """Azar et al.: ref exp(p(y beats mu) / tau) / Z, mu uniform; p is intransitive."""
  rng = np.random.default_rng(2)
  p = np.triu(rng.uniform(size=(toy.V, toy.V)), 1)
  p = p + np.tril(1 - p.T, -1) + np.eye(toy.V) / 2
  share = jnp.asarray(p[PAIRS[:, 0], PAIRS[:, 1]], 'float32')
  m = method('ipo', tau=0.4)
  got = settle(m, bandit(PAIRS), share / share.sum(), 0.5)
  want = jax.nn.softmax(REF + jnp.asarray(p.mean(1), 'float32') / 0.4)
  close(jnp.exp(got), want, 1e-3)


# ---- Two of a group ------------------------------------------------------------------


@pytest.mark.parametrize(
  'name, aggregate', [('dpo', 'seq_sum'), ('ln_dpo', 'seq_mean')]
)
def test_grpo_of_two_is_dpo_at_the_reference(name, aggregate):
  """Its gradient is dpo's with beta 1 where lengths are not divided out; where they
  are, the length-normalised one's. Advantages of two are +-1.
  """
  batch, state = toy.batch(), at_reference()
  batch = toy.scored(batch, jnp.tile(jnp.array([[3.0, -1.0]]), (toy.B, 1)))
  normed = 'group_norm(eps=0.0)'
  m = method('grpo', beta=0.0, advantage=normed, aggregate=aggregate)
  want = gradient(method(name, beta=1.0), batch, state)
  close(gradient(m, batch, state), want)
  other = {'dpo': 'ln_dpo', 'ln_dpo': 'dpo'}[name]
  assert abs(gradient(method(other, beta=1.0), batch, state) - want).max() > 1e-2


# ---- Weights, and a reference that follows -------------------------------------------


def test_text_of_the_policy_weighs_one():
  """E[p / sum p^2] = 1 under p, of the policy's own collision probability."""
  logits = jnp.array([[0.3, -1.0, 2.0, 0.5]])
  hidden, kernel = jnp.eye(1), logits.T
  logp = jax.nn.log_softmax(logits[0])
  found = logprobs.token_collision(hidden.reshape(1, 1, 1, 1), kernel, jnp.ones((1, 1)))
  close(jnp.sum(jnp.exp(2 * logp - found[0, 0, 0])), 1.0)


def test_the_collision_sensor():
  """By a whole network, against its log-probs of every token, at temperature 2."""
  config = DecoderConfig(
    vocab=toy.V, width=16, layers=1, heads=2, kv_heads=1, mlp_width=16, head_dim=8
  )
  params = pretrained.random_params(config)
  params = jax.tree.map(lambda x: x if (x == 1).all() else 20 * x, params)
  see = forward.make_forward({'policy': decoder.Decoder(config)})
  batch = toy.batch(g=1)
  batch = batch.replace(temperature=2.0 * batch.temperature)
  say = lambda b, need: getattr(see({'policy': params}, {}, b, (need,)), need)
  first = lambda v: batch.replace(completions=batch.completions.at[..., 0].set(v))
  each = jnp.stack([say(first(v), 'logp')[..., 0] for v in range(toy.V)])
  close(jnp.exp(each).sum(0), np.ones((toy.B, 1)), 1e-5)
  want = jax.nn.logsumexp(2 * each, 0)
  close(say(batch, 'collision')[..., 0], want, 1e-5)
  assert np.ptp(want) > 0.01


def test_wpo_is_dpo_weighed():
  """w = e^(-2 + 1.5) e^(-3 + 2.5) = 1 / e, of a pair with u = 0.5 (1 - 0)."""
  m = method('wpo', beta=0.5)
  out = Outputs(
    logp=jnp.array([[[-2.0], [-3.0]]]), collision=jnp.array([[[-1.5], [-2.5]]])
  )
  loss, found = m.loss(out, rows(m, jnp.array([[[-3.0], [-3.0]]])))
  close(loss, np.exp(-1) * np.log1p(np.exp(-0.5)))
  close(metrics.finish(found)['pair_weight'], np.exp(-1))


def test_tr_dpo_follows():
  """AT-30: log 2 at first; after two updates the reference is 0.6 of the policy."""
  m = method('tr_dpo', beta=0.5, alpha=0.6, every=2)
  state = toy.state()
  table = jnp.copy(state.params['policy'])
  state = state.replace(frozen={'ema': table}, extra={'ema_moves': jnp.float32(0)})
  state, found = update(m, state=state)
  close((found['loss'], found['margin']), (LOG2, 0.0))
  np.testing.assert_array_equal(state.frozen['ema'], table)
  state, found = update(m, state=state)
  assert abs(float(found['margin'])) > 1e-3
  close(state.frozen['ema'], 0.6 * state.params['policy'] + 0.4 * table)
  whole = method('tr_dpo', beta=0.5, alpha=1.0, every=1)
  state, _ = update(whole, state=state)
  close(state.frozen['ema'], state.params['policy'])
  close(update(whole, state=state)[1]['loss'], LOG2)


# ---- Metrics, and what is refused ----------------------------------------------------


def test_metrics_of_a_list():
  """Rewards 3 > 2 > 1: scores (1, 2, 0.5) have margins -1, 0.5, 1.5; two of three."""
  score, reward = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[3.0, 2.0, 1.0]])
  found = preferences.graded(score, reward, jnp.ones((1, 3)), jnp.array([0.5]))
  found = metrics.finish(found)
  close(found['margin'], 1 / 3)
  close(found['accuracy'], 2 / 3)


def test_comparisons_of_a_group_share_its_weight():
  """Of labels: one comparison won, two lost, and a group and a row without a part."""
  reward = jnp.array([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
  score = jnp.array([[0.5, 0.0, 9.0], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
  valid = jnp.ones((3, 3)).at[0, 2].set(0.0)
  found = preferences.graded(score, reward, valid, jnp.ones(3))
  close(found['accuracy'][1], 2.0)
  found = metrics.finish(found)
  close(found['accuracy'], 0.5)
  close(found['margin'], -0.25)


@pytest.mark.parametrize('name', ['kto', 'bco'])
def test_labels_of_one_prompt_are_compared(name):
  """The wrong one, which comes first, is 3 nats ahead of both right ones, between which
  the method sees no difference; one alone is not compared.
  """
  options = dict(baseline='batch') if name == 'kto' else {}
  m, rho = method(name, beta=0.5, **options), jnp.array([[[2.0], [-1.0], [-1.0]]])
  batch = rows(m, 0 * rho, reward=jnp.array([[-1.0, 2.0, 1.0]]))
  found = metrics.finish(measured(m, Outputs(logp=rho), batch)[1])
  close(found['accuracy'], 0.0)
  close(found['margin'], -1.5)
  alone = rows(m, 0 * rho[:, :1], reward=jnp.ones((1, 1)))
  assert 'accuracy' not in measured(m, Outputs(logp=rho[:, :1]), alone)[1]


@pytest.mark.parametrize('links_of', ['forward_kl', 'alpha(alpha=0.3)'])
def test_a_link_is_held_where_its_exponential_ends(links_of):
  """At 80 nats: e^80 / alpha, and beyond it no slope."""
  of = build.function('jaxrl_llm.ops.links', links_of, '')
  far = jnp.float32(-1e3)
  assert float(jax.grad(of)(far)) == 0.0
  share = 1.0 if links_of == 'forward_kl' else 0.3
  np.testing.assert_allclose(of(far), -np.exp(links.LIMIT) / share, rtol=1e-5)


@pytest.mark.parametrize(
  'name',
  [t for t in START if t.split(',')[0] not in ('bco', 'infonca', 'nca', 'f_dpo')]
  + ['f_dpo', 'cpo', 'slic', 'wpo'],
)
def test_three_are_no_pair(name):
  with pytest.raises(InputError, match='these have 3'):
    single(method(name), jnp.zeros((2, 3)))


def test_what_a_data_set_says_must_fit():
  assert 'first completion' in fitting.misread([0.0, 1.0], 'apo_zero')
  assert '+1 (desirable)' in fitting.misread([1.0, 0.0], 'bco')
  assert fitting.misread([0.0, 1.0], 'nca') == ''  # It goes by the rewards.


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('robust_dpo', dict(flipped=0.5), 'less than 0.5'),
    ('cdpo', dict(flipped=0.7), 'less than 0.5'),
    ('dpo', dict(label_smoothing=0.7), 'at most 0.5'),
    ('dpo', dict(loss='robust(flipped=0.5)'), r'loss: flipped=0.5; .* less than 0.5'),
    ('dpo', dict(loss='discopop(tau=2.0)'), 'less than 1'),
    ('f_dpo', dict(link='alpha(alpha=0.0)'), 'link: alpha=0.0; give more than 0'),
    ('inpo', dict(judge='bradley_terry(scale=-1.0)'), 'judge: scale=-1.0'),
    ('spin', dict(lam=0.0), 'more than 0'),
    ('exo', dict(flipped=0.0), 'more than 0'),
    ('dpo', dict(loss='hinges'), "Did you mean 'hinge'"),
    ('dpo', dict(loss='robust'), r'write robust\(flipped=...\)'),
    ('f_dpo', dict(link='alpha'), r'write alpha\(alpha=...\)'),
  ],
)
def test_options_that_cannot_be(name, options, words):
  with pytest.raises(InputError, match=words):
    method(name, **options)
