"""Reward models of several heads on one trunk: ODIN, and ensembles of Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from test_reward_models import said

from jaxrl_llm import build, log, train
from jaxrl_llm.data import kinds
from jaxrl_llm.data.letters import letters
from jaxrl_llm.ops import correlation, ensembles, robust
from jaxrl_llm.rewards.learned import learned
from jaxrl_llm.rewards.rated import rated
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks.records import Record, chat
from jaxrl_llm.types import InputError, Outputs

close = lambda got, want, atol=1e-6: np.testing.assert_allclose(got, want, 0, atol)
row = lambda *x: jnp.array([list(x)])


def answer(text, words='q'):
  return Sample(words, text, len(text), False, Record(0, chat(words), '', {}))


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# ---- ODIN ----------------------------------------------------------------------------

APART = jnp.eye(2)  # Heads that read the first and the second number of a state.


def spoken(length):
  """The mask of completions of these lengths."""
  return jnp.float32(np.arange(np.max(length)) < np.asarray(length)[..., None])


def odin(embedding, length, heads=APART, **options):
  """(loss, metrics) of states [B, 2, 2] and lengths [B, 2]."""
  m = build.method('odin', **options)
  out = Outputs(embedding=jnp.asarray(embedding, jnp.float32), own={'heads': heads})
  fields = dict(reward=jnp.ones(length.shape), mask=spoken(length))
  total, found = said(m, out, **fields)
  return total, {k: float(x / w) for k, (x, w) in found.items()}


def states(quality, long):
  return jnp.stack([jnp.array(quality), jnp.array(long)], -1)


def test_odin_by_hand():
  """Lengths 1, 3, 1, 3, so z = -1, 1, -1, 1; r_Q = 2, 0, 1, 1 has mean 1, deviation
  sqrt(1/2) and rho = (-1 - 1) / 4 / sqrt(1/2) = -sqrt(1/2); r_L is the length, rho 1.
  Margins of the sum are 2 - 2 = 0 and 0 - 2 = -2.
  """
  length = jnp.array([[1, 3], [1, 3]])
  state = states([[2.0, 0.0], [1.0, 1.0]], 1.0 * length)
  total, found = odin(state, length, decorrelate=0.5, orthogonal=0.0)
  nll = (np.log(2) + np.log1p(np.exp(2.0))) / 2
  close(found['nll'], nll)
  close(found['length_rho/quality'], -np.sqrt(0.5))
  close(found['length_rho/length'], 1.0)
  close(total, nll + 0.5 * (np.sqrt(0.5) - 1.0))
  # Served is the quality: the second pair is a tie there, and lost by the sum.
  assert (found['accuracy'], found['accuracy_both']) == (0.75, 0.25)


def test_without_a_length_head_odin_is_bradley_terry():
  """r_L = 0, its heads apart: r_Q's loss, and what its own correlation costs."""
  score, length = normal(6, 2), 1 + jnp.arange(12).reshape(6, 2) % 5
  state = states(score, 0 * score)
  bt = said(build.method('bradley_terry'), Outputs(score=score), reward=score)[0]
  close(odin(state, length, decorrelate=0.0)[0], bt)
  total, found = odin(state, length)
  close(total, bt + abs(found['length_rho/quality']))
  assert found['length_rho/length'] == 0.0


def test_the_ranking_term_is_of_each_pair():
  """Margins 2 and -1: the mean of two losses, not the loss of a batch's sum."""
  state = states([[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]])
  found = odin(state, jnp.ones((2, 2), int))[1]
  close(found['nll'], (np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2)


def test_heads_are_held_apart():
  """At an angle of 60 degrees, of any lengths, orthogonal / 2; its slope parts them."""
  heads = jnp.array([[3.0, 0.5], [0.0, 0.5 * np.sqrt(3)]])
  state, length = jnp.zeros((1, 2, 2)), jnp.ones((1, 2), int)
  of = lambda heads: odin(state, length, heads, orthogonal=2.0)[0]
  close(of(heads), np.log(2) + 1.0)
  close(odin(state, length, heads)[1]['heads_cosine'], 0.5)
  close(of(heads.at[:, 1].multiply(-1.0)), of(heads))  # |cosine|.
  m = build.method('odin', orthogonal=2.0)
  loss = lambda x: said(
    m,
    Outputs(embedding=state, own={'heads': x}),
    reward=row(1.0, 0.0),
    mask=spoken(length),
  )[0]
  assert of(heads - 0.1 * jax.grad(loss)(heads)) < of(heads) - 0.01


def test_correlations_lie_between_their_ends():
  for seed in range(20):
    score, length = normal(4, 2, seed=seed), normal(4, 2, seed=seed + 99)
    found = odin(states(score, length), np.array(10 + 3 * length, int))[1]
    for head in ('quality', 'length'):
      assert -1 - 1e-6 <= found[f'length_rho/{head}'] <= 1 + 1e-6
  ends = states(1.0 * jnp.array([[1, 7], [3, 2]]), -jnp.array([[1.0, 7.0], [3.0, 2.0]]))
  found = odin(ends, jnp.array([[1, 7], [3, 2]]))[1]
  close([found['length_rho/quality'], found['length_rho/length']], [1.0, -1.0])


@pytest.mark.parametrize('size', [1, 7, 103])
def test_a_constant_length_has_no_correlation(size):
  """Nor has a constant score; neither loss nor slope is NaN, whatever the rounding."""
  m, length = build.method('odin'), jnp.full((3, 2), size)
  for score in (normal(3, 2), jnp.full((3, 2), 0.1)):
    own = {'heads': APART}
    loss = lambda x, own=own: said(
      m, Outputs(embedding=x, own=own), reward=jnp.ones((3, 2)), mask=spoken(length)
    )
    (total, found), slope = jax.value_and_grad(loss, has_aux=True)(states(score, score))
    assert np.isfinite(total) and np.isfinite(slope).all()
    assert [float(found[f'length_rho/{x}'][0]) for x in ('quality', 'length')] == [0, 0]


def test_terms_have_the_slope_of_the_correlation():
  """Against the slope of Pearson's formula, of weighted rows."""
  x, y = normal(5, 2), normal(5, 2, seed=1)
  w = jax.nn.softmax(normal(10, seed=2)).reshape(5, 2)

  def formula(x):
    at = lambda v: v - jnp.sum(w * v)
    over = lambda a, b: jnp.sum(w * a * b)
    return over(at(x), at(y)) / jnp.sqrt(over(at(x), at(x)) * over(at(y), at(y)))

  z = lambda v: correlation.standard(v, *correlation.moments(v, w))
  rho = correlation.weighted(z(x) * z(y), w)
  held = correlation.moments(x, w)
  mine = lambda v: jnp.sum(
    w * correlation.terms(correlation.standard(v, *held), z(y), rho)
  )
  close(rho[0, 0], formula(x))
  close(mine(x), rho)
  close(jax.grad(mine)(x), jax.grad(formula)(x), 1e-5)


def test_odin_frees_quality_of_length():
  """The chosen is the better one, and longer by as much: half of each state's numbers
  say the one and half the other. Without the terms r_Q goes with length.
  """
  rng = np.random.default_rng(0)
  quality, long = rng.normal(size=(2, 64, 2))
  better = (quality + long)[:, 0] > (quality + long)[:, 1]
  order = lambda x: np.where(better[:, None], x, x[:, ::-1])
  quality, long = order(quality), order(long)
  length = jnp.asarray(100 + 20 * long, jnp.int32)
  state, mask = states(quality, long), spoken(length)
  start = jnp.array([[1.0, 0.6], [0.5, 1.0]])

  def after(**options):
    m = build.method('odin', **options)
    loss = lambda heads: said(
      m,
      Outputs(embedding=state, own={'heads': heads}),
      reward=jnp.ones((64, 2)),
      mask=mask,
    )[0]
    step = jax.jit(lambda heads: heads - 0.3 * jax.grad(loss)(heads))
    heads = functools.reduce(lambda heads, _: step(heads), range(150), start)
    return odin(state, length, heads, **options)[1]

  free, bound = after(), after(decorrelate=0.0, orthogonal=0.0)
  assert abs(free['length_rho/quality']) < 0.1 < 0.5 < bound['length_rho/quality']
  assert free['length_rho/length'] > 0.9


def test_quality_alone_is_served(tmp_path):
  """The learned reward of held-out pairs has the run's held-out margin of r_Q."""
  folder = tmp_path / 'run'
  train.main(runs.config('odin', steps=2, evaluation=dict(every=2)), str(folder))
  told = [r for r in log.read_lines(folder / 'metrics.jsonl') if r['split'] == 'eval']
  score, found = learned(run=str(folder)).score, []
  for e in letters(kind='pairs', size=20, test_size=8).test:
    words = e.prompt[-1]['content']
    one, other = score([answer(text, words) for text in e.completions])
    found.append(one - other)
  close(np.mean(found), told[-1]['eval/margin'], 1e-4)


# ---- Gaussian heads ------------------------------------------------------------------

MU = jnp.array([[1.0, 3.0], [2.0, -2.0], [0.0, 4.0]])
SIGMA = jnp.array([[0.1, 0.2], [0.5, 0.4], [0.3, 0.9]])


def of_heads(mu, spread, **options):
  """brme, and Outputs whose heads say `mu` and, before softplus, `spread`."""
  m = build.method('brme', members=len(mu), bootstrap=False, **options)
  tree = {'w_0': jnp.zeros((2, 2 * len(mu))), 'b_0': jnp.array([*mu, *spread])}
  return m, Outputs(embedding=jnp.ones((1, 1, 2)), own={'heads': tree})


def test_brme_by_hand():
  """sigma = 1/2 + softplus(0) and 1/2 + softplus(-1); y = 1 against 2 and -1."""
  m, out = of_heads([2.0, -1.0], [0.0, -1.0], floor=0.5)
  sigma = np.array([0.5 + np.log(2), 0.5 + np.log1p(np.exp(-1))])
  close(m.gaussians(out), [[[[2.0, -1.0]]], [[sigma]]])
  extra = {'rating/overall': row(1.0), 'rated/overall': row(1.0)}
  total, found = said(m, out, reward=row(0.0), extra=extra)
  want = np.array([1.0, 4.0]) / (2 * sigma**2) + np.log(sigma)
  close(total, want.sum() / 2)
  close(m.serve(out), [[-1.0]])  # The surer one.
  close([found['squared_error'][0], found['sigma'][0]], [4.0, sigma[1]])
  close(found['heads_apart'][0], 1.5)


def test_the_likeliest_sigma_is_the_error():
  """Of a head that is 2 off, sigma - floor = 2 - 1/2 has no slope."""
  spread = float(np.log(np.expm1(1.5)))
  extra = {'rating/overall': row(1.0), 'rated/overall': row(1.0)}

  def loss(x):
    m, out = of_heads([3.0, 1.0], [0.0, 0.0], floor=0.5)
    bias = out.own['heads']['b_0'].at[2].set(x)
    out = out.replace(own={'heads': out.own['heads'] | {'b_0': bias}})
    return said(m, out, reward=row(0.0), extra=extra)[0]

  close(jax.grad(loss)(spread), 0.0)
  assert jax.grad(loss)(spread - 0.5) < -0.01 < 0.01 < jax.grad(loss)(spread + 0.5)


def test_the_robust_objective():
  """Nominal 1, -2, 0; means of heads 1 and 5/3, so that the first is the worst."""
  close(robust.nominal(MU, SIGMA), [1.0, -2.0, 0.0])
  close(robust.robust(MU, SIGMA, alpha=1.0), robust.nominal(MU, SIGMA))
  close(robust.robust(MU, SIGMA, alpha=0.0), MU[:, 0])
  close(robust.robust(MU, SIGMA, alpha=0.25), [1.0, 1.0, 0.0])
  close(
    robust.robust(MU, SIGMA, worst=0.75), robust.robust(MU, SIGMA, alpha=0.25)
  )  # Two names of one number.
  # The least of means is no less than the mean of the least, 1, -2 and 0.
  least = robust.robust(MU, SIGMA, worst=1.0).sum() / 3
  assert least == 1.0 > ensembles.worst(MU).sum() / 3 == -1 / 3
  for seed in range(10):
    mu = normal(6, 4, seed=seed)
    of_means = robust.robust(mu, mu, worst=1.0).sum()
    close(of_means, mu.sum(0).min(), 1e-5)
    assert of_means >= ensembles.worst(mu).sum()


@pytest.mark.parametrize('given', [{}, {'alpha': 0.2, 'worst': 0.8}, {'alpha': 1.2}])
def test_one_name_for_the_share_of_the_nominal(given):
  with pytest.raises(InputError, match='give one of them, from 0 to 1'):
    robust.robust(MU, SIGMA, **given)


def test_a_single_head_is_refused():
  with pytest.raises(InputError, match='give at least 2'):
    build.method('brme', members=1)


def test_robust_over_all_completions_at_once(tmp_path, monkeypatch):
  """learned() of a run, two at a time, is the objective of all of them."""
  folder = str(tmp_path / 'run')
  train.main(runs.config('brme', steps=2, evaluation=dict(every=2)), folder)
  samples = [answer(text) for text in ('aaa', 'abc', 'b', 'cc', 'd')]
  seen, join = [], robust.robust

  @functools.wraps(join)
  def watched(*heads, **how):
    seen.append(heads)
    return join(*heads, **how)

  monkeypatch.setattr(robust, 'robust', watched)
  found = learned(run=folder, members='robust(alpha=0.3)', batch=2).score(samples)
  assert len(seen) == 1 and seen[0][0].shape == (5, 5)
  mu, sigma = seen[0]
  nominal = learned(run=folder).score(samples)
  close(nominal, robust.nominal(mu, sigma), 1e-5)
  close(found, 0.3 * nominal + 0.7 * mu[:, mu.sum(0).argmin()], 1e-5)


def test_rated_by_a_reward():
  rows = [
    {'prompt': 'q', 'chosen': 'abc', 'rejected': 'a'},
    {'prompt': 'p', 'completion': 'ab'},
  ]
  found = list(rated(rows, by={'name': 'test_lists.by_length'}, attribute='size'))
  assert [r['ratings'] for r in found] == [{'size': 3.0}, {'size': 1.0}, {'size': 2.0}]
  assert [r['prompt'] for r in found] == ['q', 'q', 'p']
  assert kinds.ratings(found[2]).extra['rating/size'] == 2.0
  with pytest.raises(InputError, match=r'rated: by=.*single answers'):
    list(rated(rows, by={'name': 'letter_share', 'letter': 'a'}))
