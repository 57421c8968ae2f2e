"""Tasks: splits, determinism, verdicts and refusals."""

import itertools
import json
import random
import re
import sys
import time

import numpy as np
import pytest

from jaxrl_llm.rewards.expression import evaluate
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.arithmetic import arithmetic
from jaxrl_llm.tasks.guess_number import guess_number
from jaxrl_llm.tasks.letters import letters
from jaxrl_llm.tasks.questions import questions
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.types import InputError


@pytest.fixture
def files(tmp_path):
  """Writes train and test rows, and returns the two paths."""

  def write(train, test):
    paths = {}
    for name, rows in (('train', train), ('test', test)):
      data = (
        rows if isinstance(rows, bytes) else '\n'.join(map(json.dumps, rows)).encode()
      )
      (tmp_path / f'{name}.jsonl').write_bytes(data)
      paths[f'{name}_path'] = str(tmp_path / f'{name}.jsonl')
    return paths

  return write


def row(question, answer):
  return {'question': question, 'answer': answer}


TASKS = {
  'arithmetic': lambda seed: arithmetic(low=0, high=9, test_size=50, seed=seed),
  'letters': lambda seed: letters(seed=seed),
  'chain_sum': lambda seed: reasoning_gym(
    dataset='chain_sum',
    seed=seed,
    test_size=50,
    options={'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1},
  ),
}


@pytest.mark.parametrize('name', TASKS)
def test_no_test_question_is_trained_on(name):
  # Small generators (200, 64 and about 160 questions), so that an unfiltered draw of
  # 300 meets a test question with near certainty.
  task = TASKS[name](0)
  test = {records.question(r) for r in task.test}
  train = {records.question(task.train(i)) for i in range(300)}
  assert len(test) == len(task.test)
  assert not test & train
  assert [r.id for r in task.test] == list(range(len(task.test)))


@pytest.mark.parametrize('name', TASKS)
def test_a_question_that_comes_again_has_its_id(name):
  """What is kept of a question, such as its difficulty, is found by its id."""
  drawn = [TASKS[name](0).train(i) for i in range(300)]
  pairs = {(r.id, records.identity(r)) for r in drawn}
  assert len(pairs) == len({i for i, _ in pairs}) == len({q for _, q in pairs}) < 300
  assert all(np.float32(i) == i for i, _ in pairs)  # A state keeps it as float32.


def test_a_number_to_guess_has_its_id():
  task = guess_number(low=4, high=6)
  assert {(r.id, r.answer) for r in map(task.train, range(40))} == {
    (r.id, r.answer) for r in task.test
  }


@pytest.mark.parametrize('name', TASKS)
def test_a_record_depends_on_seed_and_index_alone(name):
  first, again, other = TASKS[name](0), TASKS[name](0), TASKS[name](1)
  again.train(3)
  assert [first.train(i) for i in (9, 2)] == [again.train(i) for i in (9, 2)]
  assert first.test == again.test
  asked = [[records.question(t.train(i)) for i in range(50)] for t in (first, other)]
  assert sum(a == b for a, b in zip(*asked)) < 25


@pytest.mark.parametrize('name', TASKS)
def test_the_answer_passes_its_own_check(name):
  task = TASKS[name](0)
  for record in (*task.test[:10], *map(task.train, range(10))):
    assert task.check(record.answer, record) == 1
    assert task.check('', record) == 0


def test_a_split_that_leaves_no_training_questions_is_refused():
  # Two digits and one sign: 4 questions.
  with pytest.raises(InputError, match='test_size 4 takes half'):
    arithmetic(low=0, high=1, operations=('+',), test_size=4)
  with pytest.raises(InputError, match='test_size 5 takes half'):
    arithmetic(low=0, high=1, operations=('+',), test_size=5)
  with pytest.raises(InputError, match='test_size is 0'):
    letters(test_size=0)


def test_arithmetic_asks_what_it_answers():
  task = arithmetic(
    low=-9, high=9, terms=3, operations=('+', '*'), template='{a} {op} {b} ='
  )
  for i in range(100):
    record = task.train(i)
    # A second computation: products first, without our code.
    a, p, b, q, c = records.question(record).removesuffix(' =').split()
    a, b, c = int(a), int(b), int(c)
    if p == '+':
      value = a + (b * c if q == '*' else b + c)
    else:
      value = a * b * c if q == '*' else a * b + c
    assert int(record.answer) == value
    assert all(-9 <= n <= 9 for n in (a, b, c))


def test_arithmetic_without_negative_answers():
  task = arithmetic(low=1, high=20, operations=('-',), negative=False, test_size=50)
  assert min(int(task.train(i).answer) for i in range(200)) == 0
  with pytest.raises(InputError, match='negative=True'):
    arithmetic(low=-3, high=-1, operations=('+',), negative=False)


def test_arithmetic_messages():
  task = arithmetic(
    low=2,
    high=99,
    template='{a} plus {b}?',
    operations=('+',),
    test_size=1,
    system='Be brief.',
    suffix='\nOne number.',
  )
  system, user = task.train(0).messages
  assert system == {'role': 'system', 'content': 'Be brief.'}
  assert user['role'] == 'user'
  assert re.fullmatch(r'\d+ plus \d+\?\nOne number\.', user['content'])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'template': 'What is {x}?'}, r"fields \['x'\]"),
    ({'template': '{a} {b}'}, r"write \['a', 'b', 'op'\]"),
    ({'template': '{a.real} {op} {b}'}, 'a.real'),
    ({'template': '{a'}, 'template'),
    ({'operations': ('/',)}, 'operations are'),
    ({'operations': ()}, 'operations are'),
    ({'low': 5, 'high': 4}, 'low=5, high=4'),
    ({'terms': 1}, 'terms=1'),
    ({'extract': 'last'}, "no 'last'; did you mean last_number"),
  ],
)
def test_arithmetic_refuses_what_it_cannot_ask(options, message):
  with pytest.raises(InputError, match=message):
    arithmetic(**{'low': 0, 'high': 99, **options})


def test_letters_pays_the_share():
  task = letters()
  record = records.Record(0, records.chat('dba'), 'a', {})
  # 'aaba' has three of four.
  assert [task.check(t, record) for t in ('aaba', 'a', 'b', '')] == [0.75, 1, 0, 0]
  assert all(r.answer == records.question(r)[-1] for r in task.test)
  with pytest.raises(InputError, match='each once'):
    letters(alphabet='aab')


def test_reasoning_gym_uses_the_generators_options_and_verdict():
  task = reasoning_gym(
    dataset='gcd', test_size=20, options={'max_value': 50}, suffix=' Number only.'
  )
  record = task.test[0]
  numbers = [int(n) for n in re.findall(r'\d+', records.question(record))]
  assert all(int(record.answer) <= n <= 50 for n in numbers)
  assert records.question(record) == record.extra['question'] + ' Number only.'
  assert task.check(f'The answer is {record.answer}.', record) == 1
  assert task.check('The answer is 997.', record) == 0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'dataset': 'chain_sums'}, 'did you mean chain_sum'),
    ({'dataset': 'gcd', 'options': {'max_valu': 5}}, 'did you mean max_value'),
    ({'dataset': 'gcd', 'options': {'seed': 5}}, "no 'seed'"),
    ({'dataset': 'gcd', 'options': {'max_value': 0}}, "{'max_value': 0}"),
    ({'dataset': 'gcd', 'options': {'max_value': 'x'}}, "{'max_value': 'x'}"),
    ({'dataset': 'n_queens'}, 'runs the model.s text as code'),
    ({'dataset': 'composite'}, "no 'composite'"),
    ({'dataset': 'gcd', 'extract': 'boxd'}, 'did you mean boxed'),
  ],
)
def test_reasoning_gym_names_what_is_wrong(options, message):
  with pytest.raises(InputError, match=message):
    reasoning_gym(**options)


def test_a_missing_reasoning_gym_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  with pytest.raises(InputError, match=r"pip install -e '\.\[tasks\]'"):
    reasoning_gym(dataset='gcd')


def test_countdown_is_checked_without_running_it():
  task = reasoning_gym(dataset='countdown', test_size=3, extract='whole')
  entry = {'metadata': {'numbers': [1, 5, 5], 'target': 26}}
  record = records.Record(0, records.chat('?'), '', entry)
  # 5 * 5 + 1 = 26; the others miss a number, repeat one, or smuggle in an operation.
  verdicts = {
    '5 * 5 + 1': 1,
    '(1 + 5 * 5) = 26': 1,
    '26': 0,
    '5 * 5 + 1 + 1 - 1': 0,
    '5**1 + 5': 0,
    '__import__("os")': 0,
  }
  assert {text: task.check(text, record) for text in verdicts} == verdicts


def test_puzzle24_is_checked_without_running_it():
  task = reasoning_gym(dataset='puzzle24', test_size=1, extract='whole')
  record = task.test[0]
  value, used = evaluate(record.answer)
  assert value == 24 and sorted(used) == sorted(record.extra['metadata']['numbers'])
  assert task.check(record.answer, record) == 1
  assert task.check('24', record) == 0


def test_two_verifiers_that_pay_for_anything_are_mended():
  halting = reasoning_gym(dataset='game_of_life_halting', test_size=2, extract='whole')
  for record in halting.test:
    wrong = {'True': 'False', 'False': 'True'}[record.answer]
    assert [halting.check(t, record) for t in (record.answer, wrong, 'x')] == [1, 0, 0]
  # abs(nan - x) < tolerance is False, min(1, exp(nan)) is 1.
  roots = reasoning_gym(dataset='complex_arithmetic', test_size=2, extract='whole')
  assert [roots.check(t, roots.test[0]) for t in ('nan', roots.test[0].answer)] == [
    0,
    1,
  ]


HOSTILE = ['', '\x00\ud800', 'x' * 100_000, '9' * 1990, '1e999999999', '9**9**9**9']
HOSTILE += [
  '(' * 1900,
  '[' * 1900,
  '1/' * 900,
  'nan',
  '\N{NOT SIGN}' * 1900,
  '7:' * 900,
]


@pytest.mark.parametrize(
  'dataset',
  [
    'calendar_arithmetic',
    'chain_sum',
    'coin_flip',
    'countdown',
    'decimal_arithmetic',
    'number_sorting',
    'power_function',
    'propositional_logic',
    'time_intervals',
  ],
)
def test_verifiers_survive_hostile_text(dataset):
  task = reasoning_gym(dataset=dataset, test_size=2, extract='whole')
  for text, record in itertools.product(HOSTILE, task.test):
    began = time.perf_counter()
    assert 0 <= task.check(text, record) < 1
    assert time.perf_counter() - began < 0.1


def test_questions_reads_gsm8k_and_plain_numbers(files):
  paths = files(
    [row('2 + 2?', '2 + 2 = 4\n#### 4'), row('1000 + 1?', '#### 1,001')],
    [row('3 + 3?', 6), row('1/2 of 3?', '1.5')],
  )
  task = questions(**paths, suffix=' =')
  assert [r.answer for r in task.test] == ['6', '1.5']
  assert [records.question(r) for r in task.test] == ['3 + 3? =', '1/2 of 3? =']
  by_id = {task.train(i).id: task.train(i) for i in range(2)}
  assert {i: r.answer for i, r in by_id.items()} == {0: '4', 1: '1,001'}
  assert by_id[0].extra['reference'] == '2 + 2 = 4\n#### 4'
  assert task.check('It is 1001', by_id[1]) == 1
  assert task.check('It is 1002', by_id[1]) == 0


def test_questions_visits_every_question_once_a_pass(files):
  train = [row(f'q{i}', i) for i in range(6)]
  task = questions(**files([*train, row('held', 9)], [row('held', 9)]))
  passes = [[int(task.train(6 * e + i).answer) for i in range(6)] for e in range(4)]
  assert all(sorted(p) == list(range(6)) for p in passes)  # Without the held one.
  assert len({tuple(p) for p in passes}) > 1
  again = questions(**files([*train, row('held', 9)], [row('held', 9)]))
  assert [int(again.train(i).answer) for i in range(18, 24)] == passes[3]


GOOD = json.dumps(row('q', 1)).encode()


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (GOOD + b'\n\n{"question": ', r'train\.jsonl, line 3: no JSON'),
    (b'[' * 100_000, r'line 1: no JSON'),
    (b'{"question": "q", "answer": ' + b'9' * 5000 + b'}', r'line 1: no JSON'),
    (GOOD + b'\n[1]', r'line 2: list in place of an object'),
    (b'null', r'line 1: NoneType in place of an object'),
    (b'{"question": "q", "reply": 1}', r"line 1: field 'answer' is missing.*'reply'"),
    (b'{"question": null, "answer": 1}', r"line 1: field 'question' is NoneType"),
    (b'{"question": " ", "answer": 1}', r"line 1: field 'question' is empty"),
    (b'{"question": "q", "answer": "one"}', r"line 1: the reference answer 'one'"),
    (GOOD + b'\n\xff\xfe', r'line 2: not UTF-8 at byte 0'),
    (b'', r'train\.jsonl: no line holds anything'),
    (b'\n \n', r'train\.jsonl: no line holds anything'),
    (GOOD.replace(b'"q"', b'"t"'), r'every question is also in'),
  ],
)
def test_questions_names_file_and_line(files, data, message):
  with pytest.raises(InputError, match=message):
    questions(**files(data, [row('t', 1)]))


def test_questions_as_messages_and_what_is_said_of_them(files):
  asked = [{'role': 'user', 'content': 'how many eggs does Ann have'}]
  train = [{'question': asked, 'answer': 1}, row('q', 2)]
  paths = files(train, [row('How many eggs does Ann sell?', 3), row('r', 4)])
  task = questions(**paths, contamination=5, limit=1, suffix='!')
  assert asked in [task.train(i).messages for i in range(2)]
  assert len(task.test) == 1
  assert task.report[0] == '2 questions to train on, 1 held out.'
  assert task.report[1].startswith('1 training prompts share 5 words')
  assert questions(**files(train[:1], [row('x', 3)])).digest != task.digest


def test_questions_that_end_alike_are_not_one(files):
  """A question is its whole conversation; what a user said before counts as shared."""

  def talk(topic):
    turns = (topic, 'user'), ('ok', 'assistant'), ('Please continue.', 'user')
    return {'question': [dict(role=r, content=c) for c, r in turns], 'answer': 1}

  held = [talk('a story of two old cats'), talk('rain'), talk('snow')]
  train = [talk(f'topic {i}') for i in range(10)] + held[1:]
  task = questions(**files(train, held))
  assert task.report == [
    '10 questions to train on, 3 held out; 2 that are held out too were left out.'
  ]
  close = [talk('tell a story of two old dogs'), talk('other')]
  said = questions(**files(close, held[:1]), contamination=5).report[1]
  assert said.startswith('1 training prompts share 5 words')


def test_questions_names_a_missing_file(files, tmp_path):
  paths = files([row('q', 1)], [row('t', 1)])
  paths['test_path'] = str(tmp_path / 'none.jsonl')
  with pytest.raises(InputError, match=r'none\.jsonl: cannot be read: No such file'):
    questions(**paths)


def test_held_out_draws_do_not_share_randomness_between_indices():
  draw = lambda rng, id: records.Record(id, records.chat(str(rng.random())), '', {})
  train, _ = records.held_out(draw, name='x', seed=3, test_size=1)
  assert records.question(train(4)) == str(random.Random('3/train/4').random())
