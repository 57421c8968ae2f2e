"""Rewards: numbers worked by hand, refusals by name, and hostile text."""

import time

import numpy as np
import pytest

from jaxrl_llm.rewards import combine, expression, extract, numbers
from jaxrl_llm.rewards.answer_format import answer_format
from jaxrl_llm.rewards.checker import checker
from jaxrl_llm.rewards.numeric import numeric
from jaxrl_llm.rewards.overlong import overlong
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rewards.sentiment import sentiment
from jaxrl_llm.rewards.think_format import think_format
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.letters import letters
from jaxrl_llm.types import InputError

# Each would hang, raise or run something in a careless verifier.
HOSTILE = [
  '',
  ' \n\t',
  '\x00\x01\x7f' * 1000,
  '\ud800\ufffe',
  'x' * 100_000,
  '9' * 100_000,
  '1,111' + ',111' * 25_000,
  '-' * 100_000,
  '1/' * 50_000,
  '.1' * 50_000,
  '(' * 100_000,
  '\\boxed{' * 15_000,
  '#### ' * 20_000,
  '<answer>' * 12_000,
  '<think>' + ' ' * 100_000 + '</think>' + ' ' * 100_000 + '<answer>',
  '9**9**9**9',
  '10^1000',
  '1e999999999',
  '1/0',
  'nan',
  '__import__("os").system("true")',
]


def sample(completion='', answer='7', tokens=3, id=5):
  record = records.Record(id, records.chat('3 + 4?'), answer, {})
  return Sample('3 + 4?', completion, tokens, False, record)


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('7', 7),
    ('-3.50', -3.5),
    ('\N{MINUS SIGN}2', -2),
    ('1,000', 1000),
    ('$1,234.50', 1234.5),
    ('-$5', -5),
    ('$-5', -5),
    ('$8$', 8),
    ('50%', 50),
    ('50\\%', 50),
    ('+4.', 4),
    ('.5', 0.5),
    ('1/2', 0.5),
    ('\\frac12', 0.5),
    ('-\\dfrac{1}{2}', -0.5),
    ('2e3', 2000),
  ],
)
def test_numbers_are_read(text, value):
  assert numbers.parse(text) == value


NO_NUMBERS = [
  '',
  '1/0',
  '3 or 4',
  '1,0000',
  '12,34',
  '--3',
  '5$3',
  '5\\frac12',
  '1e999',
]
NO_NUMBERS += [
  '2**3',
  '10^1000',
  'nan',
  'inf',
  '1_000',
  '\N{SUPERSCRIPT TWO}',
  '9' * 101,
]


@pytest.mark.parametrize('text', [*NO_NUMBERS, None])
def test_other_text_is_no_number(text):
  assert numbers.parse(text) is None


def test_only_a_decimal_gold_allows_an_error():
  # 1e-6 relative: 0.5 allows 5e-7. An integer or a fraction allows nothing.
  assert numbers.equal('0.5', '0.5000004')
  assert not numbers.equal('0.5', '0.5000006')
  assert numbers.equal('1/3', '2/6')
  assert not numbers.equal('1/3', '0.33333333')
  assert not numbers.equal('1000000', '1000000.5')


@pytest.mark.parametrize(
  ('name', 'text', 'found'),
  [
    ('last_number', '3 + 4 = 7.', '7'),
    ('last_number', 'so 10-3', '3'),  # The sign subtracts.
    ('last_number', 'x = -3', '-3'),
    ('last_number', 'costs $1,250.75 now', '$1,250.75'),
    ('last_number', '3, 4', '4'),
    ('last_number', 'a half, 1/2', '1/2'),
    ('last_number', 'none', None),
    ('first_number', '7, since 3 + 4 = 7 and 8', '7'),
    ('answer_tag', '<answer>1</answer> <answer> 2 </answer>', '2'),
    ('answer_tag', '</answer><answer>1', None),
    ('boxed', '\\boxed{1} or \\boxed{\\frac{1}{2}}', '\\frac{1}{2}'),
    ('boxed', '\\boxed{1', None),
    ('hash_answer', 'x #### 4\n#### 42 \nmore', '42'),
    ('hash_answer', '#### 42' + ' ' * 300, None),  # 300 characters count.
    ('hash_answer', '42', None),
    ('whole', ' 7 ', '7'),
    ('whole', ' ', None),
  ],
)
def test_extractions(name, text, found):
  assert extract.by_name(name)(text) == found


def test_an_unknown_extraction_names_its_neighbour():
  with pytest.raises(InputError, match='did you mean last_number'):
    numeric(extract='last_numbr')


@pytest.mark.parametrize(
  ('option', 'completion', 'reward'),
  [
    ('last_number', 'It is 42.', 1.0),
    ('last_number', '42 or 43', 0.0),
    ('last_number', '42.0', 1.0),
    ('hash_answer', 'It is 42.', 0.0),
    ('hash_answer', 'so\n#### 42', 1.0),
    ('hash_answer', '#### 42 or 43', 0.0),
  ],
)
def test_numeric(option, completion, reward):
  gold = '6 * 7 = <<6*7=42>>42\n#### 42'
  assert numeric(extract=option)(sample(completion, gold)) == reward


def test_numeric_refuses_a_reference_without_a_number():
  with pytest.raises(InputError, match="'forty-two' is no number"):
    numeric()(sample('42', 'forty-two'))


@pytest.mark.parametrize(
  ('text', 'reward'),
  [
    ('<think>a</think><answer>b</answer>', 1.0),
    ('\n<think>a\nb</think>\n\n<answer>b</answer>\n', 1.0),
    ('<think>a</think><answer>b</answer> more', 0.0),
    ('so <think>a</think><answer>b</answer>', 0.0),
    ('<think>a</think> so <answer>b</answer>', 0.0),
    ('<think><think>a</think></think><answer>b</answer>', 0.0),
    ('<think>a</think><answer>b</answer><answer>b</answer>', 0.0),
    ('<think>a<answer>b</think></answer>', 0.0),
    ('<answer>b</answer><think>a</think>', 0.0),
    ('<think> </think><answer>b</answer>', 0.0),
  ],
)
def test_think_format(text, reward):
  assert think_format()(sample(text)) == reward


def test_think_format_may_allow_empty_tags():
  text = '<think></think><answer></answer>'
  assert think_format(allow_empty=True)(sample(text)) == 1


def test_answer_format():
  one_number = answer_format()
  passed = [one_number(sample(t)) for t in ('12', ' -1,200.5.\n', '12 eggs', '', '1 2')]
  assert passed == [1, 1, 0, 0, 0]
  assert answer_format(max_length=2)(sample('123')) == 0
  assert answer_format(pattern='a+')(sample('aaa')) == 1
  with pytest.raises(InputError, match='no regular expression'):
    answer_format(pattern='(')


@pytest.mark.parametrize(
  ('tokens', 'reward'),
  # The paper's numbers; half of the cache is half of the penalty.
  [(0, 0), (16384, 0), (18432, -0.5), (20480, -1), (20481, -1), (10**9, -1)],
)
def test_overlong_counts_tokens(tokens, reward):
  penalty = overlong(max_length=20480, cache=4096)
  assert penalty(sample('a text of any length', tokens=tokens)) == reward


def test_overlong_is_linear_in_the_cache():
  # (10 - 4 - 7) / 4
  assert overlong(max_length=10, cache=4)(sample(tokens=7)) == -0.25


@pytest.mark.parametrize('cache', [0, -1, 11])
def test_overlong_refuses_a_cache_out_of_range(cache):
  with pytest.raises(InputError, match=f'cache is {cache}'):
    overlong(max_length=10, cache=cache)


def test_sentiment_is_that_of_a_lexicon():
  score = sentiment()
  good, bad = (score(sample(f'The food was {x}.')) for x in ('great', 'terrible'))
  assert -1 < bad < 0 == score(sample('')) < good < 1
  assert score(sample('The food was not great.')) < 0
  # All words count, and none of them takes the time of the others.
  assert score(sample('great ' + 'word ' * 20_000)) > 0
  assert score(sample('\U0001f600' * 20_000)) == 0


def test_checker_is_the_tasks_verdict():
  task = letters()
  record = records.Record(0, records.chat('aab'), 'b', {})
  half = Sample('aab', 'ab', 2, False, record)
  assert checker(task=task)(half) == 0.5
  assert checker(task=task, binary=True)(half) == 0
  assert checker(task=task, binary=True)(half._replace(completion='bb')) == 1


def test_weighted_sum_keeps_its_parts():
  score = combine.weighted(
    {
      'correct': (2.0, numeric()),
      'late': (0.5, overlong(max_length=10, cache=4)),
    }
  )
  total, parts = score([sample('7', tokens=8), sample('8', tokens=6)])
  # 2 * 1 + 0.5 * -0.5, and 0.
  assert total.tolist() == [1.75, 0] and total.dtype == np.float32
  assert parts['correct'].tolist() == [1, 0]
  assert parts['late'].tolist() == [-0.5, 0] and parts['late'].dtype == np.float32


def test_integer_rewards_do_not_truncate_a_penalty():
  """AT-13: 1 less a half is a half."""
  score = combine.weighted(
    {'int': (1, lambda s: 1), 'late': (1, overlong(max_length=10, cache=4))}
  )
  # 1 - 0.5 and 1 - 0.
  assert score([sample(tokens=8), sample(tokens=6)])[0].tolist() == [0.5, 1]


def test_zero_false_and_numpy_scalars_are_values():
  """AT-13: a reward of 0 is not a missing one."""
  values = iter([0.0, 0, False, np.float32(0.5), np.True_])
  total, _ = combine.weighted({'x': (1.0, lambda s: next(values))})([sample()] * 5)
  assert total.tolist() == [0, 0, 0, 0.5, 1]


def boom(sample):
  raise KeyError('gone')


@pytest.mark.parametrize(
  ('reward', 'message'),
  [
    (boom, "it raised KeyError: 'gone'"),
    (lambda s: None, r'it returned None \(NoneType\)'),
    (lambda s: float('nan'), 'it returned nan'),
    (lambda s: -np.inf, 'it returned -inf'),
    (lambda s: '1', r'it returned 1 \(str\)'),
    (lambda s: 10**400, r'it returned 1000.*\(int\)'),
    (lambda s: 1e39, 'it returned 1e\\+39'),  # Not in float32.
    (lambda s: [1.0], r'\(list\)'),
  ],
)
def test_a_bad_reward_names_part_record_and_completion(reward, message):
  """AT-13: None and NaN among them."""
  score = combine.weighted({'good': (1.0, lambda s: 1.0), 'mine': (1.0, reward)})
  with pytest.raises(InputError, match=message) as error:
    score([sample('7' * 500, id=31)])
  assert "reward 'mine', record 31" in str(error.value)
  assert str(error.value).count('7') == 200


@pytest.mark.parametrize('weight', [float('nan'), float('inf'), None, '1'])
def test_a_weight_has_to_be_finite(weight):
  with pytest.raises(InputError, match=r'rewards\.mine: weight'):
    combine.weighted({'mine': (weight, lambda s: 1.0)})


def test_no_rewards_are_refused():
  with pytest.raises(InputError, match='name at least one'):
    combine.weighted({})


@pytest.mark.parametrize(
  ('text', 'value', 'ints'),
  [
    ('(1 + 2) / 3', 1, [1, 2, 3]),
    ('2 - 3 - 4', -5, [2, 3, 4]),  # From the left.
    ('2 + 3 * 4', 14, [2, 3, 4]),
    ('8 / 4 / 2', 1, [8, 4, 2]),
    ('((5))', 5, [5]),
    ('6 \N{MULTIPLICATION SIGN} 7', 42, [6, 7]),
  ],
)
def test_expressions_are_computed(text, value, ints):
  assert expression.evaluate(text) == (value, ints)


NO_SUMS = [
  '',
  '1 +',
  '1 2',
  '(1',
  '1)',
  '1/0',
  '2**8',
  '9//2',
  '1.5',
  '15.5',
  '-1',
  'a',
]
NO_SUMS += [
  '()',
  '1234567890',
  '(' * 30 + '1' + ')' * 30,
  '1+' * 200 + '1',
  '1e5',
  '1_0',
]


@pytest.mark.parametrize('text', NO_SUMS)
def test_other_expressions_are_refused(text):
  assert expression.evaluate(text) is None


@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_earns_nothing_and_costs_nothing(text):
  verifiers = [numeric(extract=name) for name in extract.EXTRACTORS]
  verifiers += [think_format(), answer_format(), checker(task=letters(), binary=True)]
  for verifier in verifiers:  # The gold, 31, stands in none of the texts.
    began = time.perf_counter()
    assert verifier(sample(text, '31')) == 0
    assert time.perf_counter() - began < 0.1
  began = time.perf_counter()
  assert expression.evaluate(text) is None
  assert time.perf_counter() - began < 0.1
