"""Verifiers: what is the same answer, what is not, and what hostile text costs."""

import json
import re
import time

import pytest
from test_rewards import HOSTILE

from jaxrl_llm.rewards import automaton, extract, symbolic, units
from jaxrl_llm.rewards.answer_format import answer_format
from jaxrl_llm.rewards.constraints import RULES, constraints
from jaxrl_llm.rewards.equal import NOTIONS, equal
from jaxrl_llm.rewards.json_schema import json_schema, parsed
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.questions import questions
from jaxrl_llm.tasks.reasoning_gym import countdown
from jaxrl_llm.types import InputError


def sample(completion, answer='', **extra):
  record = records.Record(0, records.chat('?'), answer, extra)
  return Sample('?', completion, 1, False, record)


# ---- Mathematics ---------------------------------------------------------------------

SAME = [
  ('1/2', '0.5'),
  ('1/2', '\\frac12'),
  ('\\frac{1}{2}', '\\dfrac{1}{2}'),
  ('-\\frac{3}{4}', '-0.75'),
  ('1,000', '1000'),
  ('12\\%', '12'),
  ('90^\\circ', '90'),
  ('x=5', '5'),
  ('y = 2x + 1', '2x+1'),
  ('2^{10}', '1024'),
  ('x(x+1)', 'x^2+x'),
  ('(x+1)^2', 'x^2+2x+1'),
  ('\\frac{x}{2}', '0.5x'),
  ('a_1+a_2', 'a_2+a_1'),
  ('e^{x+y}', 'e^x e^y'),
  ('\\sin(2x)', '2\\sin(x)\\cos(x)'),
  ('2\\sqrt3', '\\sqrt{12}'),
  ('\\frac{\\sqrt{2}}{2}', '1/\\sqrt2'),
  ('\\sqrt[3]{8}', '2'),
  ('\\sin(\\pi)', '0'),
  ('6.283185', '2\\pi'),  # 2 pi = 6.28318531, off by 5e-8 of it.
  ('\\{1,2\\}', '\\{2,1\\}'),
  ('1, 2', '2, 1'),
  ('(1,2)', '\\left( 1, 2.0 \\right)'),
  ('[0,1)\\cup(2,\\infty)', '(2,\\infty)\\cup[0,1)'),
  ('\\text{even}', 'even'),
  ('(0,100)', '(0,200/2)'),
  ('(5,100)', '(5, 200/2)'),
  ('\\{1,100\\}', '\\{100,1\\}'),
  ('(1,000, 2,000)', '(1000,2000)'),
  ('\\frac{1,000}{3}', '1000/3'),
  ('1{,}000', '1000'),
  ('2i', '\\sqrt{-4}'),
  ('1+i\\sqrt3', '(-8)^{1/3}'),
  ('\\ln(2)^2', '(\\ln 2)^2'),
  ('\\sin 2x', '\\sin(2x)'),
  ('\\sin\\pi x', '\\sin(\\pi x)'),
  ('2\\sin x\\cos x', '\\sin 2x'),
  ('(1 \\\\ 2)', '(1\\\\2)'),
  ('\\{(1,2),(3,4)\\}', '\\{(3,4),(1,2)\\}'),
  ('x^2+y^2=1', 'x^2 + y^2 = 1'),
]
DIFFERENT = [
  ('(1,2)', '(2,1)'),
  ('[1,2)', '(1,2)'),
  ('\\{1,1,2\\}', '\\{1,2,2\\}'),
  ('\\{1,2\\}', '(1,2)'),
  ('2\\pi', '6.28'),
  ('(0,100)', '100'),
  ('[0,100]', '100'),
  ('(3,120)', '3120'),
  ('0,100', '100'),
  ('-2i', '\\sqrt{-4}'),
  ('\\ln(4)', '\\ln(2)^2'),
  ('\\sin 2x', 'x\\sin 2'),
  ('\\ln x y', '\\ln(x)y'),
  ('6.28', '2\\pi'),  # Off by 5e-4 of it.
  ('1/3', '0.3333333333'),
  ('3', '3 or 4'),
  ('3', '3,4'),
  ('34', '3 4'),
  ('3/2', '1\\frac12'),
  ('x', '\\sqrt{x^2}'),
  ('x^2', 'x^3'),
  ('x', 'y'),
  ('even', 'vene'),
  ('no', 'on'),
  ('1/0', '2/0'),
  ('x/(y-y)', 'z/(y-y)'),
  ('1', '1+10^{-30}'),
  ('x^2+y^2=1', '1'),
  ('5', ''),
  ('', ''),
]


@pytest.mark.parametrize(('gold', 'answer'), SAME)
def test_the_same_value(gold, answer):
  assert symbolic.equal(gold, answer)
  assert symbolic.equal(gold, gold)


@pytest.mark.parametrize(('gold', 'answer'), DIFFERENT)
def test_another_value(gold, answer):
  assert not symbolic.equal(gold, answer)


TOWERS = ['9**9**9**9', '9^{9^{9^9}}', '10^1000', '(((2^64)^64)^64)^64', '9^(-9^9)']
TOWERS += ['x^{x^{x^{x^{99999}}}}', '1' * 300, '(' * 299, '{' * 150 + '}' * 150]
TOWERS += ['-' * 299 + '1', '\\frac' * 60, '\\sqrt' * 60 + '2', '|' * 299, '1,' * 149]
TOWERS += ['(1,' * 99 + '2', '\\frac1' * 50, '2^' * 149 + '2', '((1,2),' * 40]


@pytest.mark.parametrize('text', TOWERS)
def test_no_expression_takes_long(text):
  began = time.perf_counter()
  assert not symbolic.equal('7', text)
  assert not symbolic.equal(text, '7')
  assert time.perf_counter() - began < 0.5


def test_nothing_is_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = '__import__("os").mkdir("made")'
  assert not any(same('7', text) or same(text, '7') for same in NOTIONS.values())
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('by', NOTIONS)
@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text(by, text):
  # The golds stand in none of the texts.
  gold = {'choice': 'J', 'units': '31 km'}.get(by, '31')
  for name in extract.EXTRACTORS:
    began = time.perf_counter()
    assert equal(by=by, extract=name)(sample(text, gold)) == 0
    assert time.perf_counter() - began < 1


# ---- Units and choices ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('gold', 'answer', 'same'),
  [
    ('3 km', '3000 m', True),
    ('36 km/h', '10 m/s', True),
    ('5 N', '5 kg m/s^2', True),
    ('1 J', '1 W s', True),
    ('100 cm^3', '0.1 L', True),
    ('3 \\times 10^8 m/s', '300000 km/s', True),
    ('2 \\text{ cm}', '20 mm', True),
    ('1/2 h', '30 minutes', True),
    ('60 mph', '60 miles per hour', True),
    ('$5', '500 cents', True),
    ('50%', '0.5', True),
    ('20 °C', '20°C', True),
    ('5', '5 km', True),  # A gold without a unit leaves it open.
    ('2.5 m', '2.5000001 m', True),  # 4e-8 of it.
    ('5 km', '5', False),
    ('5 km', '5 kg', False),
    ('5 km', '5 km km', False),
    ('5 km', '5 kmm', False),
    ('3 m', '3.0000001 m', False),
    ('20 °C', '20 K', False),
    ('5 km', '9**9**9 km', False),
    ('5 km', None, False),
  ],
)
def test_units(gold, answer, same):
  assert units.equal(gold, answer) == same


@pytest.mark.parametrize(
  ('text', 'letter'),
  [
    ('The answer is (B).', 'B'),
    ('Answer: C', 'C'),
    ('The answer is A. No, the answer is D', 'D'),
    ('(A) is wrong, so (D)', 'D'),
    ('b', 'B'),
    ('**C**', 'C'),
    ('C) because', 'C'),
    ('A banana', None),
    ('The answer is a banana', None),
    ('I think', None),
  ],
)
def test_choices(text, letter):
  assert extract.choice(text) == letter


def test_equal_compares_what_was_extracted():
  reward = equal(by='math', extract='boxed')
  assert reward(sample('\\boxed{1}, so \\boxed{\\frac{2}{4}}', '1/2')) == 1
  assert reward(sample('\\boxed{1/2}, so \\boxed{1}', '1/2')) == 0
  assert reward(sample('1/2', '1/2')) == 0  # Nothing is boxed.
  assert equal(by='choice', extract='whole')(sample('It is (b)', 'B')) == 1
  assert equal(by='text', extract='answer_tag')(
    sample('<answer> New\n york</answer>', 'New York')
  )
  with pytest.raises(InputError, match='did you mean math'):
    equal(by='maths')


@pytest.mark.parametrize(
  ('by', 'gold'),
  [
    ('number', '2 + 3 = 5\n#### 5'),
    ('units', '5 apples'),
    ('choice', 'Paris'),
    ('math', '1' * 301),
    ('text', ' '),
  ],
)
def test_a_reference_that_nothing_equals_is_refused(by, gold):
  """It would be worth 0 to every completion, itself included."""
  with pytest.raises(InputError, match=r'the reference answer .* is none'):
    equal(by=by, extract='whole')(sample('5', gold))


# ---- Countdown -----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('answer', 'score'),
  [
    ('(1 + 5) * 2', 1),
    ('2 * (5 + 1) = 12', 1),
    ('12', 0),  # The numbers are not used.
    ('2 * 5 + 1 + 1', 0),  # One is used twice.
    ('1.5 * 2 * 4', 0),  # A decimal point would hide a number.
    ('2 ** 5 - 20 * 1', 0),
    ('25 // 2 * 1', 0),
    ('9**9**9**9', 0),
    ('__import__("os")', 0),
  ],
)
def test_countdown(answer, score):
  entry = {'metadata': {'target': 12, 'numbers': [1, 2, 5]}}
  assert countdown(answer, entry) == score


# ---- Regular expressions -------------------------------------------------------------

PATTERNS = ['a+', '(a|ab)(c|bcd)', '[^a-c]*d', r'\d{2,4}', r'-?\d+(\.\d+)?', 'a*?b']
PATTERNS += [
  r'\bab\b',
  '^a$',
  '(?i)aB[x-z]',
  '(?s)a.b',
  'a.b',
  r'[\w.]+@\w+',
  '(a?){3}',
]
PATTERNS += [
  '',
  'a||b',
  r'\Aab\Z',
  '(?:ab){0,2}',
  r'[\s\d]',
  r'\Ba',
  '(a*)*',
  '(?i:A)b',
]
TEXTS = ['', 'a', 'b', 'aa', 'ab', 'aab', 'abcd', 'abc', '12', '12345', '-1.5', 'a\nb']
TEXTS += ['ABX', 'abz', 'a b', ' ab ', 'x.y@z', 'axb', 'ba', 'a\n', 'dd', 'AB', 'Ab']


@pytest.mark.parametrize('pattern', PATTERNS)
def test_the_automaton_agrees_with_pythons_matcher(pattern):
  form = automaton.compiled(pattern)
  for text in TEXTS:
    assert automaton.fullmatch(form, text) == bool(re.fullmatch(pattern, text)), text
    assert automaton.search(form, text) == bool(re.search(pattern, text)), text


def test_the_automaton_does_not_backtrack():
  # Python's matcher takes 2^30 steps for the first.
  began = time.perf_counter()
  assert not automaton.search(automaton.compiled('(a+)+b'), 'a' * 1000)
  assert not automaton.fullmatch(automaton.compiled('(a|a)*' * 10 + 'b'), 'a' * 1000)
  assert automaton.fullmatch(automaton.compiled('a?' * 30 + 'a' * 30), 'a' * 30)
  assert time.perf_counter() - began < 5


@pytest.mark.parametrize('pattern', [r'(a)\1', 'a(?=b)', '(?m)^a', 'a{5000}', '('])
def test_what_the_automaton_refuses(pattern):
  with pytest.raises(InputError, match=r'regular expression|flags'):
    automaton.compiled(pattern)


def test_answer_format_anywhere():
  assert answer_format(pattern='[0-9]+', anywhere=True)(sample('so 12 eggs')) == 1
  assert answer_format(pattern='[0-9]+')(sample('so 12 eggs')) == 0
  with pytest.raises(InputError, match='answer_format'):
    answer_format(pattern=r'(a)\1')


# ---- JSON ----------------------------------------------------------------------------

SCHEMA = {
  'type': 'object',
  'required': ['name', 'age'],
  'properties': {
    'name': {'type': 'string', 'minLength': 1, 'pattern': '^[A-Z]'},
    'age': {'type': 'integer', 'minimum': 0, 'exclusiveMaximum': 150},
    'tags': {'type': 'array', 'items': {'enum': ['a', 1]}, 'uniqueItems': True},
    'extra': {'oneOf': [{'type': 'null'}, {'const': {'x': [1]}}]},
  },
  'additionalProperties': False,
}


@pytest.mark.parametrize(
  ('text', 'score'),
  [
    ('{"name": "Ann", "age": 3}', 1),
    ('```json\n{"name": "Ann", "age": 3.0}\n```', 1),
    ('{"name": "Ann", "age": 3, "tags": ["a", 1], "extra": {"x": [1]}}', 1),
    ('{"name": "Ann", "age": 3, "extra": null}', 1),
    ('{"name": "Ann", "age": 3, "extra": {"x": [true]}}', 0),
    ('{"name": "Ann", "age": 3, "tags": ["a", "a"]}', 0),
    ('{"name": "Ann", "age": 3, "tags": [true]}', 0),
    ('{"name": "ann", "age": 3}', 0),
    ('{"name": "Ann", "age": true}', 0),
    ('{"name": "Ann", "age": 150}', 0),
    ('{"name": "Ann", "age": 2.5}', 0),
    ('{"name": "Ann"}', 0),
    ('{"name": "Ann", "age": 3, "other": 1}', 0),
    ('{"name": "Ann", "age": 3, "age": 4}', 0),
    ('{"name": "Ann", "age": NaN}', 0),
    ('[]', 0),
    ('Here: {"name": "Ann", "age": 3}', 0),
    ('[' * 100_000, 0),
    ('{"name": "Ann", "age": ' + '9' * 5000 + '}', 0),
    ('', 0),
  ],
)
def test_json_schema(text, score):
  assert json_schema(schema=SCHEMA)(sample(text)) == score
  assert json_schema()(sample(text, schema=json.dumps(SCHEMA))) == score


@pytest.mark.parametrize(
  ('step', 'text', 'score'),
  [(0.1, '0.3', 1), (0.01, '0.07', 1), (0.1, '0.35', 0), (3, '1' + '0' * 30 + '1', 0)],
)
def test_multiples_are_exact(step, text, score):
  assert json_schema(schema={'multipleOf': step})(sample(text)) == score


def test_json_schema_agrees_with_another_implementation():
  jsonschema = pytest.importorskip('jsonschema')
  schemas = [SCHEMA, True, False, {'not': {'type': 'string'}}, {'multipleOf': 0.5}]
  schemas += [{'anyOf': [{'type': 'null'}, {'maximum': 2}]}, {'maxProperties': 1}]
  schemas += [{'type': ['string', 'null'], 'maxLength': 2}, {'minItems': 1}]
  schemas += [{'allOf': [{'minimum': 1}, {'maximum': 2}]}, {'const': 1}, {'enum': [[]]}]
  values = ['1', '1.5', 'true', 'null', '"a"', '"abc"', '[]', '[1]', '{}', '{"a": 1}']
  values += ['{"a": 1, "b": 2}', '{"name": "A", "age": 1}', '1.0', '2', '[1, 1]']
  for schema in schemas:
    reward = json_schema(
      schema=schema if isinstance(schema, dict) else str(schema).lower()
    )
    check = jsonschema.Draft202012Validator(schema).is_valid
    for text in values:
      assert reward(sample(text)) == check(parsed(text)), (schema, text)


def test_a_schema_that_is_not_understood():
  with pytest.raises(InputError, match="'contains'"):
    json_schema(schema={'contains': {}})
  with pytest.raises(InputError, match=r"no type .'text'"):
    json_schema(schema={'type': 'text'})
  with pytest.raises(InputError, match='no JSON'):
    json_schema()(sample('{}'))


# ---- Instructions --------------------------------------------------------------------

FOLLOWED = [
  ('keywords:existence', dict(keywords=['sun', 'sea']), 'Sea and sun.', 'Sea, sunny.'),
  (
    'keywords:frequency',
    dict(keyword='a', frequency=2, relation='at least'),
    'a A',
    'a b',
  ),
  ('keywords:forbidden_words', dict(forbidden_words=['no']), 'nothing', 'No way'),
  (
    'keywords:letter_frequency',
    dict(letter='e', let_frequency=3, let_relation='less than'),
    'Eve',
    'Evee',
  ),
  (
    'length_constraints:number_words',
    dict(num_words=3, relation='at least'),
    "it's so well-made",
    'so so',
  ),
  (
    'length_constraints:number_sentences',
    dict(num_sentences=3, relation='less than'),
    'One. Two!',
    'One. Two? Three.',
  ),
  (
    'length_constraints:number_paragraphs',
    dict(num_paragraphs=2),
    'a\n***\nb',
    'a\n\nb',
  ),
  (
    'length_constraints:nth_paragraph_first_word',
    dict(num_paragraphs=2, nth_paragraph=2, first_word='so'),
    'a\n\n"So, it',
    'so\n\na',
  ),
  (
    'detectable_content:postscript',
    dict(postscript_marker='P.S.'),
    'a\nP.S. b',
    'a\nPS b',
  ),
  (
    'detectable_content:number_placeholders',
    dict(num_placeholders=2),
    '[name] in [town]',
    '[name] in []',
  ),
  (
    'detectable_format:number_bullet_lists',
    dict(num_bullets=2),
    '* a\n - b',
    '* a\n* b\n* c',
  ),
  ('detectable_format:constrained_response', {}, 'My answer is no.', 'No.'),
  (
    'detectable_format:number_highlighted_sections',
    dict(num_highlights=2),
    '*a* and **b**',
    '*a* and * b',
  ),
  (
    'detectable_format:multiple_sections',
    dict(section_spliter='Section', num_sections=2),
    '# Section 1\na\nSection 2\nb',
    'Section 1, not Section 2',
  ),
  ('detectable_format:json_format', {}, '```json\n{"a": 1}\n```', '{a: 1}'),
  ('detectable_format:title', {}, '<<A title>>\na', '<< >>\na'),
  ('combination:two_responses', {}, 'a\n******\nb', 'a\n******\na'),
  ('combination:repeat_prompt', dict(prompt_to_repeat='Say a.'), 'say a. A', 'A'),
  ('startend:end_checker', dict(end_phrase='The end.'), 'a. the END.', 'The end. Or?'),
  ('startend:quotation', {}, '"a"', '"a'),
  (
    'change_case:capital_word_frequency',
    dict(capital_frequency=2, capital_relation='less than'),
    'A bc',
    'A BC',
  ),
  ('change_case:english_capital', {}, 'A 1!', 'A b'),
  ('change_case:english_lowercase', {}, 'a 1!', 'A b'),
  ('punctuation:no_comma', {}, 'a; b', 'a, b'),
]


@pytest.mark.parametrize(
  ('name', 'options', 'good', 'bad'), FOLLOWED, ids=[row[0] for row in FOLLOWED]
)
def test_an_instruction_is_followed_or_not(name, options, good, bad):
  extra = dict(instruction_id_list=[name], kwargs=[options | {'unused': None}])
  reward = constraints()
  found = [reward(sample(text, **extra)) for text in (good, bad, '', ' \n')]
  assert found == [1, 0, 0, 0]


def test_every_instruction_is_tested():
  assert {row[0] for row in FOLLOWED} == RULES.keys()


def test_the_share_of_instructions_or_all():
  extra = dict(
    instruction_id_list=['punctuation:no_comma', 'startend:quotation'], kwargs=[{}, {}]
  )
  assert constraints()(sample('a b', **extra)) == 0.5
  assert constraints(all_of=True)(sample('a b', **extra)) == 0
  assert constraints(all_of=True)(sample('"a b"', **extra)) == 1


def test_instructions_that_are_not_understood():
  for extra, words in (
    ({}, 'instruction_id_list'),
    (dict(instruction_id_list=['a:b'], kwargs=[{}]), "no 'a:b'"),
    (dict(instruction_id_list=['startend:end_checker'], kwargs=[{}]), 'end_phrase'),
    (
      dict(instruction_id_list=['keywords:existence'], kwargs=[{'keywords': 'ab'}]),
      "'ab' should be a list of words",
    ),
  ):
    with pytest.raises(InputError, match=words):
      constraints()(sample('a', **extra))


LONG = [
  '\n' * 100_000,
  '[' * 100_000,
  '<<' + 'a' * 99_000,
  '*a' * 50_000,
  '#' * 100_000,
]
LONG += [' ' * 100_000, '"' * 100_000, '```' * 33_000, 'a-' * 50_000]
LONG += ["'" * 100_000]


@pytest.mark.parametrize('text', [*HOSTILE, *LONG], ids=range(len(HOSTILE + LONG)))
def test_hostile_text_costs_an_instruction_nothing(text):
  names = [row[0] for row in FOLLOWED]
  extra = dict(instruction_id_list=names, kwargs=[row[1] for row in FOLLOWED])
  began = time.perf_counter()
  constraints()(sample(text, **extra))
  json_schema(schema=SCHEMA)(sample(text))
  assert time.perf_counter() - began < 1


# ---- As a task's check ---------------------------------------------------------------


def test_a_task_may_name_its_verifier(tmp_path):
  row = {'problem': 'Half?', 'solution': 'It is $\\boxed{\\frac{1}{2}}$.'}
  for name in ('train', 'test'):
    rows = [row | {'problem': f'{name} {i}'} for i in range(2)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  paths = {f'{n}_path': str(tmp_path / f'{n}.jsonl') for n in ('train', 'test')}
  columns = dict(question='problem', answer='solution')
  task = questions(**paths, **columns, verify='equal(by="math", extract="boxed")')
  record = task.test[0]
  assert record.answer == '\\frac{1}{2}'
  assert record.hints == {'solution': []}  # Nothing stands before a '####'.
  assert task.check('\\boxed{0.5}', record) == 1
  assert task.check('0.5', record) == 0
  with pytest.raises(InputError, match='is no number'):
    questions(**paths, **columns)
  with pytest.raises(InputError, match=r"config.task.verify.*no option 'bye'"):
    questions(**paths, **columns, verify='equal(bye="math")')
  with pytest.raises(InputError, match=r'(?s)test\.jsonl.*reference answer .* is none'):
    questions(**paths, **columns, verify='equal(by="choice")')


def test_a_task_of_instructions(tmp_path):
  """IFEval's rows: a prompt, ids and options, no answer."""
  for name in ('train', 'test'):
    row = {'key': 1, 'prompt': f'{name}: no commas.', 'kwargs': [{}]}
    row['instruction_id_list'] = ['punctuation:no_comma']
    (tmp_path / f'{name}.jsonl').write_text(json.dumps(row))
  paths = {f'{n}_path': str(tmp_path / f'{n}.jsonl') for n in ('train', 'test')}
  task = questions(
    **paths,
    question='prompt',
    answer='',
    verify='constraints',
    keep=('instruction_id_list', 'kwargs'),
  )
  assert [task.check(t, task.test[0]) for t in ('a b', 'a, b')] == [1, 0]
