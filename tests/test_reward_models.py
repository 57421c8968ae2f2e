"""Reward models: losses, what they identify, their data, their score as a reward."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from ml_collections import config_dict
from oracles import reward_models as oracle

from jaxrl_llm import build, controllers, log, restored, train, types
from jaxrl_llm.data import kinds
from jaxrl_llm.data.examples import Example
from jaxrl_llm.default_config import KINDS
from jaxrl_llm.methods import ensemble
from jaxrl_llm.ops import (
  binary,
  ensembles,
  metrics,
  preferences,
  ratings,
  sequences,
  step_scores,
)
from jaxrl_llm.rewards import shaping
from jaxrl_llm.rewards.learned import learned, rated
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.step import weigh
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError, Outputs

GOLDEN = json.loads(oracle.FILE.read_text())
row = lambda *x: jnp.array([list(x)])


def close(got, want, atol=1e-6):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def said(m, out, *, t=1, **fields):
  """A method's (loss, metrics) of outputs on prompts whose mask is 1, nothing else."""
  b, g = next(iter(fields.values())).shape[:2] if fields else (1, 2)
  rows = types.make_batch(
    np.zeros((b, 1), np.int32),
    np.ones(b, np.int32),
    np.zeros((b, g, t), np.int32),
    np.full((b, g), t),
  )
  batch = weigh(jax.tree.map(jnp.asarray, rows).replace(**fields), m)
  held = jax.lax.stop_gradient(out)  # As the step has it.
  batch = m.measure(held, batch) if m.measure else batch
  return m.loss(out, batch)


# ---- Golden numbers ------------------------------------------------------------------


def test_the_golden_numbers_are_the_scripts():
  found = oracle.table()
  assert found.keys() == GOLDEN.keys()
  for name, want in GOLDEN.items():
    close(found[name], want, 1e-12)


BT = {
  'bradley_terry': {},
  'margin': {'margin': 0.5},
  'center': {'center': 0.01},
  'l2': {'l2': 0.001},
  'smoothed': {'label_smoothing': 0.1},
}


@pytest.mark.parametrize('name', BT)
def test_bradley_terry_and_its_options(name):
  with toy.float64():
    out = Outputs(score=row(1.2, 0.3))
    m, extra = build.method('bradley_terry', **BT[name]), {'margin': jnp.ones(1)}
    close(said(m, out, reward=row(1.0, 0.0), extra=extra)[0], GOLDEN[name])


def test_a_margin_of_the_data_is_in_no_metric_but_the_loss():
  """Scores 0.9 apart are in the right order, whatever the data ask for."""
  m, extra = build.method('bradley_terry', margin=2.0), {'margin': jnp.ones(1)}
  found = said(m, Outputs(score=row(1.2, 0.3)), reward=row(1.0, 0.0), extra=extra)[1]
  assert found['accuracy'] == (1.0, 1.0)
  close(found['margin'][0], 0.9)


def test_a_group_is_all_of_its_pairs():
  """Two right (1.0, 0.2), two wrong (0.5, -0.3): four comparisons, of a quarter each,
  with differences of 0.5, 1.3, -0.3 and 0.5.
  """
  options = dict(center=0.1, l2=0.2, label_smoothing=0.1)
  with toy.float64():
    m, score = build.method('bradley_terry', **options), [1.0, 0.5, 0.2, -0.3]
    reward = jnp.array([[1.0, -1.0, 1.0, -1.0]])
    value = lambda s: said(m, Outputs(score=s), reward=reward)[0]
    pair = lambda a, b: said(m, Outputs(score=row(a, b)), reward=row(1.0, -1.0))[0]
    pairs = [pair(1.0, 0.5), pair(1.0, -0.3), pair(0.2, 0.5), pair(0.2, -0.3)]
    close(value(row(*score)), np.mean(pairs))
    plain = build.method('bradley_terry')
    found = said(plain, Outputs(score=row(*score)), reward=reward)[1]
    close(found['accuracy'][0], 3 / 4)
    close(found['margin'][0], 0.5)
    close(found['nll'][0], np.log1p(np.exp([-0.5, -1.3, 0.3, -0.5])).mean())


def test_a_group_of_one_reward_compares_nothing():
  m = build.method('bradley_terry')
  loss, found = said(m, Outputs(score=row(1.0, 2.0, 3.0)), reward=row(1.0, 1.0, 1.0))
  assert loss == 0 and found['accuracy'][1] == 0
  with pytest.raises(InputError, match='these have 1 completions'):
    said(m, Outputs(score=row(1.0)), reward=row(1.0))
  out = Outputs(score=row(1.0, 2.0, 3.0), own={'tie': jnp.float32(0.0)})
  with pytest.raises(InputError, match='these have 3 completions'):
    said(build.method('bradley_terry', ties='davidson'), out, reward=out.score)


@pytest.mark.parametrize('name', ['rao_kupper', 'davidson'])
def test_ties(name):
  """Three shares that add up to 1, and win and loss change places with the sides."""
  ties, strength = vars(preferences)[name], {'rao_kupper': 0.3, 'davidson': 0.5}[name]
  with toy.float64():
    at = lambda margin, e: np.exp(np.array(ties(jnp.array(margin), jnp.array(e))))
    close(at(0.4, strength), GOLDEN[name])
    for margin in (-2.0, 0.0, 1.3):
      close(at(margin, 0.7).sum(), 1.0)
      close(at(margin, 0.7)[[1, 0, 2]], at(-margin, 0.7))
      # Without ties it is Bradley-Terry.
      close(at(margin, 1e-12)[0], 1 / (1 + np.exp(-margin)))


def test_a_tie_of_each_kind_by_hand():
  """softplus(0.5413) = 1: Rao-Kupper's P(tie | 0) = 1 - 2 / (1 + e)."""
  fields = dict(reward=row(0.5, 0.5), extra={'tie': jnp.ones(1)})
  out = Outputs(score=row(2.0, 2.0), own={'tie': jnp.log(jnp.expm1(1.0))})
  loss = lambda **options: said(build.method('bradley_terry', **options), out, **fields)
  close(loss()[0], np.log(2))  # Half a win and half a loss.
  close(loss(ties='rao_kupper')[0], -np.log(1 - 2 / (1 + np.e)))
  close(loss(ties='davidson')[0], np.log(3))  # Weights 1, 1, 1.
  assert loss()[1]['accuracy'] == (0.0, 0.0)  # No pair has a better one.


def test_plackett_luce():
  pl = build.method('plackett_luce')
  with toy.float64():
    score = row(1.0, 0.5, -1.0)
    of = lambda score, reward: said(pl, Outputs(score=score), reward=reward)[0]
    close(of(score, row(0.0, -1.0, -2.0)), GOLDEN['plackett_luce'])
    # All orders are one in all, wherever the completions stand.
    every = [of(score, row(*p)) for p in itertools.permutations((0.0, -1.0, -2.0))]
    close(np.exp(-np.array(every)).sum(), 1.0)
    pair = row(1.2, 0.3)
    close(of(pair, row(1.0, 0.0)), GOLDEN['bradley_terry'])
    # The lower two tie: the winner's factor is left. All three tie: nothing is.
    best = jax.nn.logsumexp(score) - 1.0
    close(of(score, row(0.0, -1.0, -1.0)), best)
    top = build.method('plackett_luce', top=1)
    three = dict(reward=row(0.0, -1.0, -2.0))
    close(said(top, Outputs(score=score), **three)[0], best)
    close(of(score, row(0.0, 0.0, 0.0)), 0.0)
    # The upper two tie: neither has a factor, and the last has none ever.
    close(of(score, row(0.0, 0.0, -1.0)), 0.0)


@pytest.mark.parametrize(
  ('name', 'golden', 'options'),
  [
    ('mean', 'mean', {}),
    ('worst', 'worst', {}),
    ('cautious', 'cautious', {}),
    ('cautious', 'cautious_sample', dict(coef=0.1, ddof=1)),
    ('entropic', 'entropic', dict(beta=0.7)),
  ],
)
def test_several_scores_as_one(name, golden, options):
  with toy.float64():
    score = jnp.array(oracle.ENSEMBLE).T
    close(vars(ensembles)[name](score, **options), GOLDEN[golden])


def test_entropic_stands_between():
  with toy.float64():
    score = jnp.array(oracle.ENSEMBLE).T
    close(ensembles.entropic(score, beta=1e6), ensembles.mean(score), 1e-4)
    close(ensembles.entropic(score, beta=1e-3), ensembles.worst(score), 1e-2)
    second = ensembles.cautious(score, coef=1 / 400)
    close(ensembles.entropic(score, beta=200.0), second, 1e-4)


STEPS = {
  'prod': 'prod',
  'least': 'least',
  'mean': 'step_mean',
  'last': 'last',
  'sum_log': 'sum_log',
  'sum_logit': 'sum_logit',
}


@pytest.mark.parametrize('name', STEPS)
def test_steps_as_one(name):
  """Of steps of .9, .8, .95, with slots between that are no steps."""
  with toy.float64():
    p = jnp.array([0.9, 0.1, 0.8, 0.2, 0.95, 0.3])
    mask = jnp.array([1.0, 0.0] * 3)
    fn = vars(step_scores)[name]
    close(fn(jnp.log(p / (1 - p)), mask), GOLDEN[STEPS[name]])
    none = 0.0 if name.startswith('sum') else 1.0
    close(fn(jnp.zeros(2), jnp.zeros(2)), none)


def test_class_logits_and_what_is_learned_from_a_rating():
  with toy.float64():
    logits = ratings.class_logits(jnp.array(0.45), jnp.array([0, 0.3, 0.6, 1.0]), 30.0)
    close(jax.nn.softmax(logits), GOLDEN['classes'])
    # alpha k = 5, a sum of 3: the target that a score of 2.7726 meets.
    m = build.method('multitask_ratings', classes=4, alpha=5.0, learned=False)
    fields = {'rating/overall': row(3.0), 'rated/overall': row(1.0)}
    out = Outputs(score=row(GOLDEN['target']))
    found = said(m, out, reward=row(0.0), extra=fields)[1]
    close(found['squared_error'][0], 0.0)


# ---- Ratings -------------------------------------------------------------------------


def test_regression_by_hand():
  """Errors 1, 2 of a and 3 of b, whose second rating is not there: (1 + 4 + 9) / 3."""
  m = build.method('regression', attributes='a, b')
  extra = {
    **{'rating/a': jnp.array([1.0, 1.0]), 'rated/a': jnp.ones(2)},
    **{'rating/b': jnp.array([2.0, 0.0]), 'rated/b': jnp.array([1.0, 0.0])},
  }
  at = jnp.array([[[2.0, 5.0]], [[3.0, 99.0]]])
  loss = lambda x: said(m, Outputs(attributes=x), reward=jnp.zeros((2, 1)), extra=extra)
  total, found = loss(at)
  close(total, 14 / 3)
  close(found['squared_error/b'][0] / found['squared_error/b'][1], 9.0)
  slope = jax.grad(lambda x: loss(x)[0])(at)
  close(slope, [[[2 / 3, 2.0]], [[4 / 3, 0.0]]], 1e-5)
  assert m.heads == {'reward': 2}


def test_an_attribute_that_nobody_rates_has_no_slope():
  m = build.method('regression', attributes='a,b')
  extra = {'rating/a': row(1.0), 'rated/a': row(1.0)}
  extra |= {'rating/b': row(7.0), 'rated/b': row(0.0)}
  of = lambda x: said(m, Outputs(attributes=x), reward=row(0.0), extra=extra)[0]
  close(jax.grad(of)(jnp.zeros((1, 1, 2))), [[[-2.0, 0.0]]])


def test_boundaries_by_hand():
  """Five scores, ratings 0, 0, 2, 2 and one unrated: two below 1 and 2; none in 1."""
  p, there = jnp.array([0.3, 0.1, 0.9, 1.0, 0.2]), jnp.array([1.0, 1, 1, 1, 0])
  y = jnp.array([0.0, 0.0, 2.0, 2.0, 1.0])
  close(ratings.boundaries(p, y, there, 3), [0.0, 0.3, 0.3, 1.0])
  # No rating below 1: the first boundary is the second, not the last score.
  close(ratings.boundaries(p, y + 1, there, 3), [0.0, 0.0, 0.3, 1.0])


def test_the_class_whose_interval_holds_p_is_likeliest():
  bounds = jnp.array([0.0, 0.25, 0.5, 1.0])
  for p in (0.05, 0.24, 0.3, 0.49, 0.6, 0.95):
    found = ratings.class_logits(jnp.array(p), bounds, 30.0)
    assert bounds[found.argmax()] <= p <= bounds[found.argmax() + 1]


def test_uncertainty_weights_rest_at_the_log_of_the_losses():
  """d/dv of e^-v L / 2 + v / 2 is 0 at v = log L; at v = 0 both count half."""
  out = Outputs(score=jnp.array([[0.3], [1.0], [0.1]]))
  extra = {'rating/x': jnp.array([0.0, 1.0, 2.0]), 'rated/x': jnp.ones(3)}
  fields = dict(reward=jnp.zeros((3, 1)), extra=extra)
  make = functools.partial(build.method, 'multitask_ratings', attribute='x', classes=3)
  both = lambda v: said(make(), out.replace(own={'uncertainty': v}), **fields)[0]
  total, found = said(make(learned=False), out, **fields)
  parts = jnp.array([found['nll'][0], found['squared_error'][0]])
  close(total, parts.sum() / 2)
  close(both(jnp.zeros(2)), total)
  close(jax.grad(both)(jnp.log(parts)), [0.0, 0.0])


def test_a_hierarchy_by_hand():
  """a is 0 against 4 and 1 against 1, where b is 3 against 1. a deviates by 1.5."""
  rating = jnp.array([[[0.0, 9.0], [4.0, 0.0]], [[1.0, 3.0], [1.0, 1.0]]])
  there = jnp.ones_like(rating)
  close(ratings.lexical(rating, there, 0.0), [-1.0, 1.0])
  turned = rating[:, ::-1]
  close(ratings.lexical(turned, there, 0.0), [1.0, -1.0])
  # A gap of 4 is more than 2.6 deviations and less than 2.7; b's are of 3.49.
  close(ratings.lexical(rating, there, 2.6), [-1.0, 0.0])
  close(ratings.lexical(rating, there, 2.7), [0.0, 0.0])
  scaled = rating * jnp.array([[[7.0, 0.1]]])
  for delta in (0.0, 0.5, 2.0, 2.7):
    close(ratings.lexical(scaled, there, delta), ratings.lexical(rating, there, delta))
  unrated = there.at[0, 1, 0].set(0.0)
  close(ratings.lexical(rating, unrated, 0.0), [1.0, 1.0])


def test_heron_is_bradley_terry_of_what_is_decided():
  """Sides -, + and none: the loss of the first two, the first one turned round."""
  score = jnp.array([[0.3, 1.1], [0.2, -0.4], [5.0, -5.0]])
  factor = {'rating/z': jnp.array([[0.0, 4.0], [3.0, 1.0], [2.0, 2.0]])}
  extra = factor | {'rated/z': jnp.ones((3, 2))}
  fields = dict(reward=jnp.zeros((3, 2)), extra=extra)
  m = build.method('heron', factors='z', delta=0.0)
  total, found = said(m, Outputs(score=score), **fields)
  told = jnp.array([[1.1, 0.3], [0.2, -0.4]])
  want = said(build.method('bradley_terry'), Outputs(score=told), reward=told)[0]
  close(total, want)
  close(found['decided'][0], 2 / 3)


# ---- Outcomes, steps, principles -----------------------------------------------------


def test_orm_by_hand():
  """Logits (1, 2) of a right solution of two tokens: softplus(-1), softplus(-2)."""
  out = Outputs(
    token_score=jnp.array([[[1.0, 2.0]]]),
  )
  total, found = said(build.method('orm'), out, t=2, reward=row(1.0))
  close(total, (np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 2)
  close(sum(abs(x[0]) for k, x in found.items() if k.startswith('gap/')), 0.1192029)
  wrong = said(build.method('orm'), out, t=2, reward=row(-1.0))[1]
  assert (float(found['accuracy'][0]), float(wrong['accuracy'][0])) == (1.0, 0.0)


@pytest.mark.parametrize(
  ('labels', 'given', 'want'),
  [
    ('soft', (0.25, 1.0), (0.25, 1.0)),
    ('hard', (0.25, 0.0), (1.0, 0.0)),
    ('signed', (0.0, -1.0), (1.0, 0.0)),
  ],
)
def test_prm_labels(labels, given, want):
  """The slope of a step's cross-entropy is (p - y) / steps: at p = 1/2."""
  m = build.method('prm', labels=labels)
  extra = {'step_label': jnp.array([[given]])}
  of = lambda x: said(m, Outputs(token_score=x), t=2, reward=row(0.0), extra=extra)[0]
  want = (0.5 - np.array(want)) / 2
  close(jax.grad(of)(jnp.zeros((1, 1, 2))), [[want]])


def test_prm_is_right_of_a_solution():
  """Of a wrong second step: seen where the least p is below 1/2, missed elsewhere."""
  m, extra = build.method('prm'), {'step_label': jnp.array([[[1.0, 0.0]]])}
  at = lambda *x: said(
    m, Outputs(token_score=jnp.array([[x]])), t=2, reward=row(0.0), extra=extra
  )[1]['solution_accuracy'][0]
  assert (float(at(2.0, -1.0)), float(at(2.0, 1.0))) == (1.0, 0.0)


def test_words_are_without_their_stop():
  """Three tokens and two, the last of each the stop; one alone is all there is."""
  mask = jnp.array([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
  logp = jnp.array([[[-1.0, -2.0, -4.0], [-0.5, -8.0, 0.0], [-3.0, 0.0, 0.0]]])
  close(sequences.words(logp, mask), [[-3.0, -0.5, -3.0]])


def verdict(logits, reward, **options):
  """rlbff's (loss, metrics) of one token from logits of Yes, No and other words."""
  logp = jax.nn.log_softmax(jnp.asarray(logits, float))[:2]
  out = Outputs(logp=logp[None, :, None])
  return said(build.method('rlbff', **options), out, reward=reward)


def test_rlbff_is_a_logistic_regression_of_its_reward():
  """Of Yes and No at 1.3 and -0.2: a reward of 1.5, whatever the other words say."""
  yes, no = row(1.0, 0.0), row(0.0, 1.0)
  for others in ([], [5.0], [-2.0, 0.1]):
    logits = np.array([1.3, -0.2, *others])
    close(verdict(logits, yes, full=False)[0], np.log1p(np.exp(-1.5)))
    close(verdict(logits + 7, no, full=False)[0], np.log1p(np.exp(1.5)), 2e-6)
    # In full it is the imitation of the right word.
    total = np.log(np.exp(logits).sum())
    close(verdict(logits, yes)[0], total - 1.3)
    close(verdict(logits, no)[0], total + 0.2)
  found = verdict([1.3, -0.2], no)[1]
  close(found['reward_no'][0], 1.5)
  assert float(found['accuracy'][0]) == 0.0


def test_calibration_by_hand():
  """p = .92 and .96 of which one is right, .3 and wrong: |.44| + |.3 / 3| apart."""
  p, y = jnp.array([0.92, 0.96, 0.3]), jnp.array([1.0, 0.0, 0.0])
  pairs = binary.calibration(jnp.log(p / (1 - p)), y, jnp.full(3, 1 / 3))
  close(metrics.finish(pairs)['ece'], (0.88 + 0.3) / 3)
  assert [*metrics.finish(pairs)] == ['ece']


# ---- Ensembles -----------------------------------------------------------------------


def test_members_learn_apart():
  """Without bootstrap each has the loss and slope of a model of its own."""
  score = jax.random.normal(jax.random.key(0), (4, 2, 3))
  fields = dict(reward=jnp.tile(row(1.0, 0.0), (4, 1)))
  m = build.method('ensemble', members=3, center=0.1, bootstrap=False)
  one = build.method('bradley_terry', center=0.1)
  all_of = lambda x: said(m, Outputs(members=x), **fields)[0]
  alone = lambda x: said(one, Outputs(score=x), **fields)[0]
  close(all_of(score), sum(alone(score[..., k]) for k in range(3)), 1e-5)
  each = [jax.grad(alone)(score[..., k]) for k in range(3)]
  close(jax.grad(all_of)(score), jnp.stack(each, -1))


def test_bootstrap_is_of_the_example():
  """Counts of mean and variance 1, the same wherever and whenever the example comes."""
  found = ensemble.drawn(jnp.arange(4000), 5)
  close([found.mean(), found.var()], [1.0, 1.0], 0.05)
  close(np.corrcoef(found.T) - np.eye(5), np.zeros((5, 5)), 0.06)
  close(ensemble.drawn(jnp.array([7, 3]), 5), found[jnp.array([7, 3])])


# ---- Shaping -------------------------------------------------------------------------


def sample(text='x', tokens=1, answer='r', **extra):
  record = Record(0, [{'role': 'user', 'content': 'q'}], answer, extra)
  return Sample('q', text, tokens, False, record)


def scores(table):
  """A reward by the completion's text."""
  return lambda s: table[s.completion]


def test_par():
  table = {'x': 1.3, 'a': 0.2, 'b': -0.4, 'c': 0.9, 'r': 1.3}
  many = [sample(references=['a', 'b', 'c']), sample(references=['a'])]
  par = lambda table, shape='par': shaping.shaped(scores(table), shape, 'x').score(many)
  close(par(table)[0], GOLDEN['par'])
  close(par(table)[1], 1 / (1 + np.exp(-1.1)))
  # What a prompt adds to all of its completions is gone.
  close(par({k: x + 5 for k, x in table.items()}), par(table))
  close(par(table, 'par(scale=100.0)')[1], 1.0)
  alone = shaping.shaped(scores(table), 'par', 'x').score([sample()])
  close(alone, [0.5])  # As good as the task's answer.
  with pytest.raises(InputError, match='neither an answer'):
    shaping.shaped(scores(table), 'par', 'x').score([sample(answer='')])


@pytest.mark.parametrize(
  ('shape', 'want'),
  [
    ('sigmoid(center=1.0, scale=2.0)', 1 / (1 + np.exp(-4.0))),
    ('tanh(center=2.0)', np.tanh(1.0)),
    ('log_sigmoid(center=3.0)', -np.log(2)),
    ('clip(high=1.5)', 1.5),
    ('linear(center=1.0, scale=3.0)', 6.0),
    ('length_penalty(coef=0.5, free=4)', 3.0 - 0.5 * 6),
    (('clip(high=2.0)', 'sigmoid(center=2.0)'), 0.5),
    (('sigmoid(center=2.0)', 'clip(high=2.0)'), 1 / (1 + np.exp(-1.0))),
  ],
)
def test_shapes_of_three(shape, want):
  found = shaping.shaped(scores({'x': 3.0}), shape, 'r').score([sample(tokens=10)])
  close(found, [want])


def test_a_shape_in_a_config():
  """Of letters right or wrong, 2 x 1/2 in place of 2 x 0 and 2 x 1."""
  bent = dict(name='runs.early', weight=2.0, shape='clip(low=0.5, high=0.5)')
  run = runs.assembled(runs.config(rewards=dict(early=bent)))
  close(run.source(run.state, 0).batch.reward, 1.0)


def test_rewards_to_scale_for_any_method():
  """As many rewards of -1 as of 1 have mean 0 and deviation 1: 5 r + 3 becomes r."""
  m = build.method('rloo')
  reward = jnp.tile(row(1.0, -1.0), (toy.B, 1))
  wide = controllers.with_reward_scale(m, 'norm', 0.0)
  state = toy.state().replace(extra={k: jnp.float32(x) for k, x in wide.extra.items()})
  ask = lambda method, r: (
    method.prepare(
      state,
      toy.batch().replace(
        reward=r, old_logp=toy.batch().mask * 0, ref_logp=toy.batch().mask * 0
      ),
    )[1].advantage
  )
  close(ask(wide, 5 * reward + 3), ask(m, reward), 1e-5)
  held = controllers.with_reward_scale(m, 'none', 0.25)
  close(ask(held, reward), 0.25 * ask(m, reward))
  assert controllers.with_reward_scale(m, 'none', 0.0) is m


# ---- Rows of data --------------------------------------------------------------------


def test_a_tie_in_a_pair():
  got = kinds.pairs({'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'tie': True})
  assert got == Example('q', ('a', 'b'), (0.5, 0.5), {'tie': 1.0})


def test_rated_pairs():
  both = [{'true': 1, 'kind': None}, {'true': 0, 'kind': 2}]
  got = kinds.rated_pairs({'prompt': 'q', 'completions': ['a', 'b'], 'ratings': both})
  assert got.extra == {
    **{'rating/kind': [0.0, 2.0], 'rating/true': [1.0, 0.0]},
    **{'rated/kind': [0.0, 1.0], 'rated/true': [1.0, 1.0]},
  }
  with pytest.raises(InputError, match='rate the same attributes'):
    kinds.rated_pairs(
      {'prompt': 'q', 'completions': ['a', 'b'], 'ratings': [{'x': 1}, {'y': 1}]}
    )


def test_monte_carlo_labels_are_shares():
  outcomes = [[True, True, False, True], [False, False], 1]
  rows = {'prompt': 'q', 'completions': ['a', 'b', 'c'], 'labels': outcomes}
  assert kinds.steps(rows).step_labels == ([0.75, 0.0, 1.0],)


@pytest.mark.parametrize(
  ('labels', 'kept'), [([1, 0, -1, 1], 3), ([True, False, True, True], 2), ([1] * 4, 4)]
)
def test_steps_to_the_first_error(labels, kept):
  row = {'prompt': 'q', 'completions': [*'abcd'], 'labels': labels}
  got = kinds.steps_to_error(row)
  assert got.completions[0].texts == [*'abcd'][:kept]
  assert got.step_labels == ([float(x) for x in labels[:kept]],)


# ---- Runs on files, and their scores as rewards --------------------------------------


def word(i):
  return 'abcd'[i % 4]


ROWS = {
  'regression': (
    'ratings',
    lambda i: {
      'completion': word(i),
      'ratings': {'good': i % 4, 'long': None if i % 3 else 1},
    },
  ),
  'prm': (
    'steps',
    lambda i: {'completions': [word(i), word(i // 2)], 'labels': [True, i % 4 > 1]},
  ),
  'rlbff': (
    'principles',
    lambda i: {
      'completion': word(i),
      'principle': '=',
      'fulfilment': 'Yes' if i % 4 < 2 else 'No',
    },
  ),
  'ensemble': ('pairs', lambda i: {'chosen': word(i), 'rejected': word(i + 1)}),
}
SIZE = 24


@functools.cache
def finished(method, folder):
  """A run on a jsonl file whose every row is held out too, and its last evaluation."""
  kind, fields = ROWS[method]
  rows = [{'prompt': f'q{i}'[-2:], **fields(i)} for i in range(SIZE)]
  file = folder / f'{method}.jsonl'
  file.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  c = runs.config(method, steps=3, checkpoint=dict(every=3, keep=1))
  c.data = dict(name='files', kind=kind, path=str(file), test_path=str(file))
  c.data.as_chat = True
  if method == 'regression':
    c.method.attributes = 'good,long'
  train.main(c, str(folder / method))
  told = log.read_lines(folder / method / 'metrics.jsonl')
  return str(folder / method), [r for r in told if r['split'] == 'eval'][-1], rows


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  return tmp_path_factory.mktemp('reward_models')


def asked(rows, text=lambda r: r['completion'], **extra):
  """Samples of rows of data."""
  return [
    sample(text(r), **extra)._replace(
      record=Record(i, [{'role': 'user', 'content': r['prompt']}], '', extra)
    )
    for i, r in enumerate(rows)
  ]


def test_attributes_as_a_reward(shared):
  """Twice the mean of one attribute, against the run's own squared error."""
  folder, told, rows = finished('regression', shared)
  good = learned(run=folder, weights='good=1').score(asked(rows))
  want = np.array([r['ratings']['good'] for r in rows])
  close(np.mean((good - want) ** 2), told['eval/squared_error/good'], 1e-4)
  both = learned(run=folder, weights='good=2, long=-1').score(asked(rows))
  long = learned(run=folder, weights='long=1').score(asked(rows))
  close(both, 2 * good - long, 1e-5)
  assert np.ptp(long) > 0
  with pytest.raises(InputError, match=r"give some of \['good', 'long'\]"):
    rated('good,long', 'bad=1')


def test_an_option_of_another_reward_model_is_refused(monkeypatch):
  """It changed nothing, and steps read scores of tokens that nobody trained."""
  count = lambda run: dict(count=2) if run == 'p_rlhf' else {}
  kind = lambda run: config_dict.ConfigDict(dict(data=dict(kind=KINDS[run])))
  trained = lambda run: (kind(run), build.method(run, **count(run)))
  monkeypatch.setattr(restored, 'trained', trained)
  given = dict(weights='good=1', steps='least', members='worst', user='1')
  reads = dict(regression='weights', prm='steps', orm='steps', ensemble='members')
  reads |= dict(brme='members', p_rlhf='user', vpl='user', bradley_terry='')
  reads |= dict(odin='', armo='')
  for run, read in reads.items():
    for name in given.keys() - {read}:
      with pytest.raises(InputError, match=f'{name}=.* has no meaning for {run}'):
        learned(run=run, **{name: given[name]})
  with pytest.raises(InputError, match=r'members=.*which reads .principle. alone'):
    learned(run='rlbff', principle='=', members='worst')


def test_steps_as_a_reward(shared):
  """By the worst of the lines: right where the held-out metric says so."""
  folder, told, rows = finished('prm', shared)
  lines = asked(rows, lambda r: '\n'.join(r['completions']))
  least = learned(run=folder, steps='least').score(lines)
  sound = np.array([all(r['labels']) for r in rows])
  right = np.mean((least > 0.5) == sound)
  close(right, told['eval/solution_accuracy'])
  product = learned(run=folder, steps='sum_log').score(lines)
  assert np.all(np.exp(product) < least)
  with pytest.raises(InputError, match="give steps='least'"):
    learned(run=folder)


def test_a_principle_as_a_reward(shared):
  """The log odds of Yes are those that the run measured; the record may have it."""
  folder, told, rows = finished('rlbff', shared)
  score = learned(run=folder, principle='=').score(asked(rows))
  yes = np.array([r['fulfilment'] == 'Yes' for r in rows])
  close(score[yes].mean(), told['eval/reward_yes'], 1e-4)
  close(score[~yes].mean(), told['eval/reward_no'], 1e-4)
  named = learned(run=folder, principle='@rule')
  close(named.score(asked(rows, rule='=')), score)
  assert np.abs(named.score(asked(rows, rule='a')) - score).max() > 1e-4
  with pytest.raises(InputError, match=r"principle='@rule', and record 0"):
    named.score(asked(rows))
  with pytest.raises(InputError, match='no reward'):
    learned(run=folder)


def test_several_models_as_a_reward(shared):
  """Their mean prefers as the run measured, and the worst is below it."""
  folder, told, rows = finished('ensemble', shared)
  side = lambda key, **how: learned(run=folder, **how).score(
    asked(rows, lambda r: r[key])
  )
  gap = side('chosen') - side('rejected')
  close(np.mean(gap > 0), told['eval/accuracy'])
  assert np.all(side('chosen', members='worst') < side('chosen'))
