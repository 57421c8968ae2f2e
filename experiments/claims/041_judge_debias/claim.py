"""Pairs put to a judge with known biases, in one order and in both, with votes."""

import biased_judge
import numpy as np

from jaxrl_llm.rewards.judge_pairs import judge_pairs
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks.records import Record

METHODS = ('judge_pairs orders=mean',)
METRICS = ('agreement', 'strict', 'lean', 'longer', 'right but shorter')
SEEDS, PAIRS, REPLIES = 12, 400, (2, 6, 20)
PLACE, LENGTH = 1.0, 0.5  # Biases in log odds.
ARMS = {'one order': 'first', 'both orders, mean': 'mean', 'both, agree': 'agree'}


def run():
  return {
    arm: [curve(orders, seed) for seed in range(SEEDS)] for arm, orders in ARMS.items()
  }


def curve(orders, seed):
  """Records by the number of replies that a pair costs."""
  return [record(orders, seed, replies) for replies in REPLIES]


def record(orders, seed, replies):
  worth, words, pairs = drawn(seed)
  by = dict(name='biased_judge.biased_judge', place=PLACE, length=LENGTH, seed=seed)
  votes = replies if orders == 'first' else replies // 2
  found = judge_pairs(by=by, orders=orders, votes=votes).score(pairs)
  won = (np.sign(found) + 1) / 2  # Of the first of a pair; a tie is half a win.
  right, longer = worth[:, 0] > worth[:, 1], words[:, 0] > words[:, 1]
  agreed = np.where(right, won, 1 - won)
  return {
    'step': replies,
    'rollouts': float(replies * PAIRS),
    'tokens': 0.0,
    'agreement': agreed.mean(),
    'strict': (agreed == 1).mean(),
    'lean': won.mean() - right.mean(),  # Towards what is shown first.
    'longer': np.where(longer, won, 1 - won).mean(),
    'right and longer': agreed[right == longer].mean(),
    'right but shorter': agreed[right != longer].mean(),
  }


def drawn(seed):
  """Worths [N, 2] and numbers of words [N, 2], which know nothing of each other."""
  rng = np.random.default_rng(seed)
  worth = rng.normal(size=(PAIRS, 2))
  words = np.rint(np.exp(rng.normal(4, 0.7, (PAIRS, 2)))).astype(int) + 2
  words[:, 1] += words[:, 0] == words[:, 1]
  sample = lambda w, n: Sample(
    '?', biased_judge.answer(w, n), int(n), False, Record(0, [], '', {})
  )
  return worth, words, [tuple(map(sample, *pair)) for pair in zip(worth, words)]


def parts(told):
  one, mean, agree = (told.last[arm] for arm in ARMS)
  few = told.first['both orders, mean']
  return {
    'agreement, 20 replies: both orders less one': mean['agreement'] - one['agreement'],
    'lean to the first place, 20 replies: one order less both': one['lean']
    - abs(mean['lean']),
    'agreement, both orders: 20 replies less 2': mean['agreement'] - few['agreement'],
    'strict, 20 replies: mean of the orders less agreement of them': mean['strict']
    - agree['strict'],
    'what both orders leave: agreement where the longer is right less elsewhere': mean[
      'right and longer'
    ]
    - mean['right but shorter'],
  }
