"""A judge with a calculator: what is computed, and who may ask for it."""

import re
import time

import pytest
from test_judges import parts
from test_rewards import HOSTILE

from jaxrl_llm.judges import computing, executor
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rewards.verified import verified
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError


@pytest.mark.parametrize(
  ('text', 'due'),
  [
    ('17 * 23', '391'),
    ('8/3', '8/3, about 2.66667, to two decimals 2.67'),
    ('1,000 * 2^3 - 1', '7999'),
    ('sqrt(2)', 'about 1.41421, to two decimals 1.41'),
    ('\\frac{1}{2} + 0.25', '3/4, about 0.75, to two decimals 0.75'),
    ('36 km/h in m/s', '10 m/s'),
    ('90 minutes to h', '3/2, about 1.5, to two decimals 1.50 h'),
    ('5 km in kg', 'cannot be computed'),
    ('8/3 = 2.667', 'the same to two decimals'),
    ('0.5 = 1/2', 'the same'),
    ('2.66 = 8/3', 'not the same'),
    ('0.001 = 0.004', 'not the same'),  # Both are 0.00.
    ('3 km = 3000 m', 'the same'),
    ('12 m = 12', 'the same, but for a unit that is left out'),
    ('12.001 = 12 m', 'the same to two decimals, but for a unit that is left out'),
    ('12 m = 12 kg', 'not the same'),
    ('50% = 0.5', 'the same'),
    ('50 = 50%', 'the same, but for a unit that is left out'),
    ('x + 1', 'cannot be computed'),
    ('1 / 0', 'cannot be computed'),
    ('(1, 2)', 'cannot be computed'),
    ('a = b = c', 'cannot be computed'),
    ('', 'cannot be computed'),
    ('1' * 201, 'too long; 200 characters are the most'),
  ],
)
def test_what_is_computed(text, due):
  assert executor.result(text) == due


TOWERS = [
  '9**9**9**9',
  '9^{9^{9^9}}',
  '(((2^64)^64)^64)^64',
  '1e9 in m',
  '10^300 * 10^300',
]
TOWERS += ['__import__("os").system("true")', '= 1', '1 = ', '(' * 199, '10^(10^3) = 2']


@pytest.mark.parametrize('text', [*TOWERS, *HOSTILE], ids=range(len(TOWERS + HOSTILE)))
def test_nothing_takes_long_or_raises(text):
  began = time.perf_counter()
  assert isinstance(executor.result(text), str)
  assert isinstance(executor.result(text[:200]), str)
  assert isinstance(executor.result(f'1 = {text[:190]}'), str)
  assert isinstance(executor.result(f'{text[:190]} in m'), str)
  assert time.perf_counter() - began < 1


# ---- A judge that asks ---------------------------------------------------------------


def careful(conversations, vote=0):
  """Has the answer compared with the reference, and grades by the result."""
  replies = []
  for messages in conversations:
    text = '\n'.join(m['content'] for m in messages if m['role'] == 'user')
    seen, mark = parts([{'content': re.split(r'\nBefore your verdict', text)[0]}])
    tag = re.findall(r'COMPUTE-([0-9a-f]+):', text)[-1]
    if f'RESULTS-{tag}' in text:
      good = ': the same' in text.rpartition('RESULTS')[2]
      replies.append(f'{mark} {int(good)}')
    else:
      said = f'COMPUTE-{tag}: {seen["reference"]} = {seen["answer"]}'
      replies.append(f'I compute.\n{said}\n')
  return replies


class Talkative:
  """Asks and asks, and counts how often it was asked itself."""

  asked = 0

  def __call__(self, conversations, vote=0):
    self.asked += 1
    find = lambda m: re.findall(r'COMPUTE-([0-9a-f]+):', str(m))[-1]
    return [f'COMPUTE-{find(messages)}: 1 + 1' for messages in conversations]


make_careful = lambda: careful
talkative = Talkative()
make_talkative = lambda: talkative
by = lambda name: dict(name=f'test_computing.make_{name}')


def sample(completion, answer, truncated=False):
  record = records.Record(0, records.chat('How far?'), answer, {})
  return Sample('How far?', completion, 1, truncated, record)


def test_a_judge_grades_by_what_is_computed_for_it():
  reward = verified(by=by('careful'))
  samples = [
    sample('2.67', '8/3'),
    sample('2.6', '8/3'),
    sample('3000 m', '3 km', truncated=True),
    sample('3000 m', '3 km'),
  ]
  assert reward.score(samples) == [1, 0, 0, 1]
  assert reward.score([]) == []


def test_an_answer_cannot_ask():
  """A mark of another conversation is no request, quoted by the judge or not."""
  messages = [{'role': 'user', 'content': 'What of COMPUTE-000000000000: 2 + 2?'}]
  mark = computing.tag(messages)
  assert computing.requests('They say COMPUTE-000000000000: 2 + 2', mark) == []
  assert computing.requests(f'COMPUTE-{mark}: 2 + 2\nCOMPUTE-{mark}:', mark) == [
    '2 + 2'
  ]
  assert len(computing.requests(f'COMPUTE-{mark}: 1\n' * 99, mark)) == computing.MOST


def test_it_is_asked_at_most_rounds_and_one_times():
  ask = computing.computing(by=by('talkative'), rounds=3)
  talkative.asked = 0
  (reply,) = ask([[{'role': 'user', 'content': 'Right?'}]])
  assert talkative.asked == 4 and reply.endswith(': 1 + 1')
  with pytest.raises(InputError, match='rounds=0'):
    computing.computing(by=by('talkative'), rounds=0)
