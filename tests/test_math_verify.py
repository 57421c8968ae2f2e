"""math-verify in processes of its own: order, limits, and what is never imported."""

import importlib.util
import subprocess
import sys
import time

import pytest

from jaxrl_llm.rewards.math_verify import math_verify
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.sandbox import workers
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError

there = pytest.mark.skipif(
  importlib.util.find_spec('math_verify') is None, reason='math-verify is an extra'
)


def sample(completion, answer):
  record = records.Record(0, records.chat('?'), answer, {})
  return Sample('?', completion, 1, False, record)


boxed = lambda text, answer: sample(f'So \\boxed{{{text}}}.', answer)
ROWS = [
  (boxed('\\frac{1}{2}', '0.5'), 1),
  (boxed('3', '4'), 0),
  (boxed('(x+1)^2', 'x^2+2x+1'), 1),
  (
    boxed(
      '\\begin{pmatrix}1\\\\2\\end{pmatrix}', '\\begin{pmatrix}1\\\\2\\end{pmatrix}'
    ),
    1,
  ),
  (sample('No answer.', '4'), 0),
  (boxed('7', '7'), 1),
]


@there
def test_answers_are_compared_in_order():
  samples, due = zip(*ROWS)
  assert math_verify(seconds=60.0).score(samples) == list(due)
  assert math_verify().score([]) == []


@there
def test_without_an_extraction_it_searches_itself():
  said = [sample('Therefore the answer is $\\frac{3}{6}$.', '1/2'), sample('', '1/2')]
  assert math_verify(extract='', seconds=60.0, processes=1).score(said) == [1, 0]


@there
def test_what_hangs_is_killed_and_the_next_is_answered(tmp_path):
  """A tower of powers takes its seconds and no more, and text is not run."""
  made = tmp_path / 'made'
  hostile = [
    boxed('9**9**9**9', '7'),
    boxed('9^{9^{9^{9}}}', '7'),
    boxed(f'__import__("os").mkdir("{made}")', '7'),
    boxed('\ud800\ufffe\x00', '7'),
    boxed('(' * 900, '7'),
    boxed('x' * 100_000, '7'),
  ]
  reward = math_verify(seconds=8.0, memory=1024)
  reward.score([boxed('7', '7')])
  began = time.perf_counter()
  assert reward.score([*hostile, boxed('7', '7'), boxed('7', '8')]) == [0] * 6 + [1, 0]
  # Of two processes, each may be out of time with three of them and start thrice.
  assert time.perf_counter() - began < 3 * 8 + 120
  assert not made.exists()


SLOW = """
import json, sys, time
job = json.loads(sys.stdin.readline())
write = lambda m: print(json.dumps({'nonce': job['nonce'], **m}), flush=True)
write({'ready': True})
for line in sys.stdin:
  m = json.loads(line)
  if m['text'] == 'hang':
    time.sleep(600)
  if m['text'] == 'die':
    sys.exit(1)
  if m['text'] == 'forge':
    forged = {'nonce': 'another', 'call': m['call'], 'value': True}
    print(json.dumps(forged), flush=True)
  time.sleep(m.get('wait', 0))
  write({'call': m['call'], 'value': m['text']})
"""


def test_a_pool_keeps_the_order_and_replaces_what_it_kills(tmp_path):
  script = tmp_path / 'slow.py'
  script.write_text(SLOW)
  each = workers.make_pool(script, seconds=2.0, memory=512, workers=2)
  asked = ['a', 'hang', 'b', 'die', 'forge', 'c', 'd']
  found = each([{'text': text, 'wait': 0.2 * (text == 'a')} for text in asked])
  assert found == ['a', None, 'b', None, None, 'c', 'd']
  assert each([{'text': 'e'}]) == ['e']


def test_a_worker_that_cannot_start_says_why(tmp_path):
  script = tmp_path / 'broken.py'
  script.write_text('import sys; sys.exit(3)')
  each = workers.make_pool(script, seconds=1.0, memory=512, workers=1)
  with pytest.raises(InputError, match='cannot start: the process ended'):
    each([{'text': 'a'}])


@there
def test_this_process_imports_neither_it_nor_sympy():
  text = (
    'import sys\n'
    'from test_math_verify import boxed, math_verify\n'
    'assert math_verify(seconds=60.0).score([boxed("7", "7")]) == [1]\n'
    'found = {"sympy", "math_verify"} & set(sys.modules)\n'
    'assert not found, found'
  )
  subprocess.run([sys.executable, '-c', text], check=True, env=ENV, timeout=300)


ENV = {'PYTHONPATH': ':'.join(p for p in sys.path if p), 'JAX_PLATFORMS': 'cpu'}


def test_without_the_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install math-verify'):
    math_verify()
