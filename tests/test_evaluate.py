"""Accuracy, intervals and pass@k against numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest

from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.types import InputError


def test_wilson_by_hand():
  # z = 1.959964, z^2 = 3.841459. n = 10, p = 0.8:
  # middle (0.8 + 0.192073) / 1.384146 = 0.716740
  # half 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 0.226577
  low, high = accuracy.wilson(8, 10)
  assert low == pytest.approx(0.490163, abs=2e-6)
  assert high == pytest.approx(0.943317, abs=2e-6)


def test_wilson_at_the_ends():
  # p = 0: from 0 to z^2 / (n + z^2) = 3.841459 / 23.841459.
  assert accuracy.wilson(0, 20) == pytest.approx((0, 0.161125), abs=1e-6)
  assert accuracy.wilson(20, 20) == pytest.approx((0.838875, 1), abs=1e-6)


def test_wilson_solves_its_own_equation():
  # Its ends are the shares q with |p - q| = z sqrt(q (1 - q) / n), here at 90 %.
  for end in accuracy.wilson(30.5, 80, confidence=0.9):
    z = abs(30.5 / 80 - end) / math.sqrt(end * (1 - end) / 80)
    assert z == pytest.approx(1.644854, abs=1e-6)


@pytest.mark.parametrize('case', [(1, 0), (-1, 3), (4, 3), (float('nan'), 3)])
def test_wilson_refuses_impossible_counts(case):
  with pytest.raises(InputError, match='wilson'):
    accuracy.wilson(*case)


def test_bootstrap_by_hand():
  # Two values: the mean of a resample is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4, so at
  # 40 % both ends (30 % and 70 %) are 1/2, and at 95 % they are 0 and 1.
  assert accuracy.bootstrap(np.array([0, 1]), confidence=0.4) == (0.5, 0.5)
  assert accuracy.bootstrap(np.array([0, 1])) == (0, 1)


def test_bootstrap_is_seeded():
  values = np.linspace(0, 1, 37)
  first = accuracy.bootstrap(values, draws=50, seed=3)
  assert first == accuracy.bootstrap(values, draws=50, seed=3)


def test_pass_at_k_by_hand():
  # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252.
  assert accuracy.pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
  assert accuracy.pass_at_k(10, 0, 5) == 0
  assert accuracy.pass_at_k(10, 6, 5) == 1  # Four wrong ones cannot fill five places.


def test_pass_at_k_counts_subsets():
  for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 1, 4)]:
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    share = sum(map(any, subsets)) / len(subsets)
    assert accuracy.pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_is_unbiased():
  # Over Binomial(6, 0.3) draws its mean is 1 - 0.7^4.
  mean = sum(
    math.comb(6, c) * 0.3**c * 0.7 ** (6 - c) * accuracy.pass_at_k(6, c, 4)
    for c in range(7)
  )
  assert mean == pytest.approx(1 - 0.7**4)


@pytest.mark.parametrize('case', [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(case):
  with pytest.raises(InputError, match='pass_at_k'):
    accuracy.pass_at_k(*case)


def test_summary_by_hand():
  scores = np.array([[1, 0.5, 0, 0], [1, 1, 1, 1]])
  summary = accuracy.summarise(scores)
  assert (summary['questions'], summary['samples']) == (2, 4)
  assert summary['accuracy'] == 5 / 8  # Half a point is not right.
  assert summary['score'] == 5.5 / 8
  # Two questions, not eight trials: successes 1/4 + 1 of 2.
  ends = summary['accuracy_low'], summary['accuracy_high']
  assert ends == accuracy.wilson(1.25, 2)
  # The mean of two questions out of 0.375 and 1.
  assert (summary['score_low'], summary['score_high']) == (0.375, 1)
  # pass@2 of one right in four: 1 - C(3, 2) / C(4, 2) = 1/2.
  assert [summary[f'pass@{k}'] for k in (1, 2, 4)] == [5 / 8, 3 / 4, 1]
  assert 'pass@3' not in summary and 'pass@8' not in summary


@pytest.mark.parametrize(
  'scores', [np.zeros(3), np.zeros((0, 2)), np.array([[1.5]]), np.array([[np.nan]])]
)
def test_summary_refuses_other_scores(scores):
  with pytest.raises(InputError, match='summarise'):
    accuracy.summarise(scores)
