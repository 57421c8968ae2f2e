"""Programs of a model: what they are graded, and what they cannot do."""

import json
import os
import socket
import subprocess
import time

import pytest

from jaxrl_llm.rewards import code as code_lib
from jaxrl_llm.rewards.code import code
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.sandbox import inside, levels, programs, source
from jaxrl_llm.sandbox.levels import Limits
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.human_eval import human_eval
from jaxrl_llm.types import InputError

SHUT = [name for name in ('bubblewrap', 'namespaces') if levels.works(name)]
pytestmark = pytest.mark.skipif(not SHUT, reason='no sandbox works on this machine')
QUICK = Limits(seconds=3.0, memory=256)
CASES = {
  'name': 'add',
  'cases': [{'args': [1, 2], 'expected': 3}, {'args': [5, 5], 'expected': 10}],
}
CHECK = {
  'name': 'add',
  'check': 'def check(f):\n  assert f(1, 2) == 3\n  assert f(5, 5) == 10\n',
}
RIGHT = 'def add(a, b): return a + b\n'
WRONG = 'def add(a, b): return a - b\n'


def graded(text, tests=CASES, level=None, limits=QUICK):
  return programs.graded(tests, text, level=level or SHUT[0], limits=limits)


@pytest.mark.parametrize('level', SHUT)
@pytest.mark.parametrize('tests', [CASES, CHECK], ids=['cases', 'check'])
def test_right_and_wrong_programs(level, tests):
  total = len(tests.get('cases', [0]))
  assert graded(RIGHT, tests, level) == (total, total, '')
  assert graded(WRONG, tests, level) == (0, total, 'another value')


def test_each_case_counts():
  # a * b is right for neither; a + b where a is 1.
  half = 'def add(a, b): return a + b if a == 1 else 0\n'
  assert graded(half) == (1, 2, 'another value')


# Each would pass a grader that looks at exit codes, at a printed word, or compares in
# the program's process. All of them leave the wrong answer, or none.
HACKS = {
  'sys.exit': 'import sys\nsys.exit(0)\n',
  'os._exit': 'import os\nos._exit(0)\n',
  'SystemExit': 'raise SystemExit\n',
  'exit in the call': 'import os\ndef add(a, b): os._exit(0)\n',
  'atexit': 'import atexit, os\natexit.register(lambda: os._exit(0))\n' + WRONG,
  'excepthook': 'import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n' + WRONG,
  'always equal': 'class E:\n  def __eq__(s, o): return True\n'
  'def add(a, b): return E()\n',
  'equal integer': 'class E(int):\n  def __eq__(s, o): return True\n'
  '  __hash__ = int.__hash__\ndef add(a, b): return E(0)\n',
  'equal list': 'class E(list):\n  def __eq__(s, o): return True\n'
  'def add(a, b): return E()\n',
  'print and exit': "print('ALL TESTS PASSED', flush=True)\nimport os; os._exit(0)\n",
  'steal stdin': "import sys, os\nprint('PASS:' + sys.stdin.readline(), flush=True)\n"
  'os._exit(0)\n',
  'frames': 'import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f:\n'
  "    for k in ('EXPECTED', 'expected', 'case', 'cases'):\n"
  '      if k in f.f_globals or k in f.f_locals: return 3 if a == 1 else 10\n'
  '    f = f.f_back\n  return 0\n',
  'collector': 'import gc\ndef add(a, b):\n  for x in gc.get_objects():\n'
  "    if isinstance(x, dict) and 'expected' in x: return x['expected']\n  return 0\n",
  'debug': WRONG + '__debug__\n',
  'forge': 'import os, json, gc\ndef add(a, b):\n  for fd in range(3, 32):\n    try:\n'
  '      os.write(fd, b\'{"verdict": true, "calls": 2, "call": 0, "value": 3}\\n\')\n'
  '    except OSError: pass\n  return 0\n',
  'forge with the nonce': 'import os, json, sys\ndef add(a, b):\n'
  '  f = sys._getframe()\n  while f and "job" not in f.f_locals: f = f.f_back\n'
  '  n = f.f_locals["job"]["nonce"]\n  for fd in range(3, 32):\n    try:\n'
  '      os.write(fd, json.dumps({"nonce": n, "ready": True, "verdict": True,'
  ' "calls": 2}).encode() + b"\\n")\n    except OSError: pass\n  os._exit(0)\n',
  'patched json': 'import json\njson.dumps = lambda *a, **k: \'{"value": true}\'\n'
  + WRONG,
  'true for one': 'def add(a, b): return True\n',
  'not a number': "def add(a, b): return float('nan')\n",
  'deep': 'def add(a, b):\n  x = []\n  for _ in range(10**5): x = [x]\n  return x\n',
  'huge number': 'def add(a, b): return 10 ** 10 ** 5\n',
  'no function': 'x = 1\n',
  'no python': '```\n',
  'empty': '',
}


@pytest.mark.parametrize('name', HACKS)
def test_a_hack_earns_nothing(name):
  began = time.monotonic()
  assert graded(HACKS[name]).right == 0
  assert time.monotonic() - began < QUICK.seconds + 3


@pytest.mark.parametrize(
  'name', ['always equal', 'equal integer', 'os._exit', 'frames']
)
def test_a_hack_earns_nothing_of_a_check(name):
  assert graded(HACKS[name], CHECK).right == 0


def test_true_is_not_one():
  tests = {'name': 'f', 'cases': [{'args': [], 'expected': 1}]}
  assert graded('f = lambda: True', tests).right == 0
  assert graded('f = lambda: 1', tests).right == 1


HOGS = {
  'fork bomb': 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n',
  'threads': 'import threading, time\nwhile True:\n'
  '  threading.Thread(target=time.sleep, args=(99,)).start()\n',
  'memory bomb': 'x = []\nwhile True: x.append(bytearray(1 << 24))\n',
  'caught memory bomb': 'x = []\nwhile True:\n  try: x.append(bytearray(1 << 24))\n'
  '  except BaseException: pass\n',
  'infinite output': "while True: print('x' * 65536)\n",
  'infinite answer': "import os\nwhile True: os.write(4, b'x' * 65536)\n",
  'long answer': "def add(a, b): return 'x' * (1 << 24)\n",
  'endless': 'while True: pass\n',
  'deaf': 'import signal\nfor n in range(1, 64):\n'
  '  try: signal.signal(n, signal.SIG_IGN)\n  except Exception: pass\n'
  'while True: pass\n',
  'asleep': 'import time\ntime.sleep(999)\n',
  'power': 'x = 9 ** 9 ** 9 ** 9\n',
}


@pytest.mark.parametrize('name', HOGS)
def test_a_hog_is_stopped(name):
  limits = Limits(seconds=1.0, memory=128)
  before = {p for p in os.listdir('/proc') if p.isdigit()}
  began = time.monotonic()
  assert graded(HOGS[name], limits=limits).right == 0
  assert time.monotonic() - began < 5
  assert waited(lambda: not running(before), 5)


def running(before):
  """Processes begun after `before` that have inside.py's text and run."""
  found = []
  for p in {p for p in os.listdir('/proc') if p.isdigit()} - before:
    try:
      with open(f'/proc/{p}/cmdline', 'rb') as file:
        if b'DENIED = ' in file.read():
          found.append(p)
    except OSError:
      continue
  return found


def waited(condition, seconds):
  """Whether it comes true in that time."""
  deadline = time.monotonic() + seconds
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.1)
  return condition()


TRIES = """
import ctypes, os, resource, socket

def f(body, *a):
  try:
    exec(body)
    return 'done'
  except BaseException as error:
    return 'refused'
"""


def tried(level, allowed, refused):
  """Runs (body, arguments) of either kind, all in one process."""
  cases = [{'args': x, 'expected': 'done'} for x in allowed]
  cases += [{'args': x, 'expected': 'refused'} for x in refused]
  return graded(TRIES, {'name': 'f', 'cases': cases}, level)


@pytest.mark.parametrize('level', SHUT)
def test_the_disk_is_out_of_reach(level, tmp_path):
  secret = tmp_path / 'tests.jsonl'
  secret.write_text('{}')
  grade = tried(
    level,
    [['pass'], ['open("/tmp/mine", "w").write("x")']],
    [
      ['open(a[0]).read()', str(secret)],
      ['os.listdir(a[0])', os.path.dirname(__file__)],
      ['open("/etc/passwd").read()'],
      ['os.listdir("/proc/1")'],
      ['open(a[0] + "/new", "w")', str(tmp_path)],
      ['open("/new", "w")'],
      ['open(os.path.dirname(os.__file__) + "/new.py", "w")'],
      # A MiB a file at most.
      ['open("/tmp/big", "w").write("x" * (1 << 21))'],
    ],
  )
  assert grade == (10, 10, '')
  assert os.listdir(tmp_path) == ['tests.jsonl']


@pytest.mark.parametrize('level', SHUT)
def test_network_programs_and_rights_are_out_of_reach(level, monkeypatch):
  monkeypatch.setenv('A_TOKEN', 'a secret')
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    grade = tried(
      level,
      [['assert "a secret" not in str(dict(os.environ))']],
      [
        ['socket.create_connection(("127.0.0.1", a[0]), 1)', port],
        ['socket.socket()'],
        ['os.execv(os.sys.executable, ["python"])'],
        ['os.fork()'],
        ['os.kill(a[0], 9)', os.getpid()],
        ['assert not ctypes.CDLL(None).unshare(1 << 28)'],
        ['os.setuid(0) if os.getuid() else 1 / 0'],
        ['resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))'],
      ],
    )
  assert grade == (9, 9, '')


def test_values_that_are_the_same():
  pairs = [
    (3, 3),
    (0.5, 0.5000000001),  # A relative error of 2e-10.
    (2.0, 2),
    ([1, 2], (1, 2)),
    ((1, [2]), [1, (2,)]),
    ({'a': [1]}, {'a': (1,)}),
    ({1: 2, 'b': 3}, {'b': 3, 1: 2}),
    ({3, 1}, {1, 3}),
    (None, None),
  ]
  for one, other in pairs:
    assert programs.same(one, inside.encode(other)), (one, other)


def test_values_that_are_not():
  pairs = [(1, True), (2, 2.0), (0.5, 0.51), ([1], [1, 2]), ('1', 1), ({1}, [1])]
  pairs += [({'a': 1}, {'a': 2}), ({'a': 1}, {'b': 1}), (None, 0), (0.0, 1e-9)]
  for one, other in pairs:
    assert not programs.same(one, inside.encode(other)), (one, other)


@pytest.mark.parametrize(
  'value', [1, 'a', None, True, [1, (2, {3})], {(1, 2): [frozenset({4})]}, {}, ()]
)
def test_a_value_comes_back_as_it_went(value):
  found = inside.decode(json.loads(json.dumps(inside.encode(value))))
  assert found == value and type(found) is type(value)


def test_what_is_not_plain_does_not_leave():
  for value in (object(), type('E', (int,), {})(1), [bytes(1)], {'a': lambda: 1}):
    with pytest.raises(TypeError, match='no plain value'):
      inside.encode(value)


# ---- The reward and the task ---------------------------------------------------------


def sample(text, tests=CASES):
  record = records.Record(3, records.chat('?'), '', {'tests': tests})
  return Sample('?', text, 1, False, record)


def test_the_reward_is_all_or_nothing_or_the_share(capsys):
  half = 'def add(a, b): return a + b if a == 1 else 0\n'
  rows = [sample(t) for t in (RIGHT, half, WRONG)]
  assert code(allow_execution=True).score(rows) == [1, 0, 0]
  assert code(allow_execution=True, partial=True).score(rows) == [1, 0.5, 0]
  assert f'in a sandbox ({SHUT[0]})' in capsys.readouterr().out


def test_nothing_runs_unasked():
  with pytest.raises(InputError, match='allow_execution=True'):
    code()
  with pytest.raises(InputError, match='allow_execution=True'):
    human_eval(test_path='none.jsonl')


def test_a_level_that_does_not_work_is_not_pretended(monkeypatch):
  levels.active.cache_clear()
  monkeypatch.setattr(levels, 'works', lambda level: level == 'limits')
  with pytest.raises(InputError, match='no such sandbox works here'):
    code(allow_execution=True)
  assert levels.active('limits') == 'limits'
  assert 'no sandbox' in levels.said('limits')
  levels.active.cache_clear()
  with pytest.raises(InputError, match="Did you mean 'namespaces'"):
    levels.active('namespace')


def test_a_sandbox_that_leaks_does_not_count(monkeypatch):
  """One that starts Python on the whole disk is found out by its own trial."""
  monkeypatch.setitem(levels.LEVELS, 'bubblewrap', levels.limits_only)
  monkeypatch.setattr(levels, 'usable', lambda level: True)
  assert not levels.works.__wrapped__('bubblewrap')


@pytest.mark.parametrize('tests', [None, {'name': 'f', 'cases': []}, {'name': 'f'}])
def test_a_record_without_tests(tests):
  """Of no tests every program would pass all."""
  with pytest.raises(InputError, match=r"record 3 has no extra\['tests'\]"):
    code_lib.passed('', sample('', tests).record, level=SHUT[0], limits=QUICK)


@pytest.mark.parametrize(
  ('completion', 'text'),
  [
    ('  return 1\n', 'def f():\n  return 1\n\n'),
    (
      'So:\n```python\ndef f(): return 1\n```\nDone.',
      'def f():\ndef f(): return 1\n\n',
    ),
    ('```\na\n```\n```py\nb\n```', 'def f():\nb\n\n'),
  ],
)
def test_the_program_of_a_completion(completion, text):
  assert source.program('def f():\n', completion) == text


def test_the_search_for_code_is_quick():
  began = time.monotonic()
  source.program('', '```\n' * 20_000)
  source.program('', '`' * 100_000)
  assert time.monotonic() - began < 1


PROMPT = 'def helper(x):\n  return x\n\ndef add(a, b):\n  """Adds."""\n'
ROW = {
  'task_id': 'Mine/0',
  'prompt': PROMPT,
  'entry_point': 'add',
  'canonical_solution': '  return a + b\n',
  'test': 'def check(candidate):\n  assert candidate(1, b=2) == helper(3)\n'
  '  assert candidate((1,), (2,)) == (1, 2)\n',
}


def test_human_eval(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(ROW))
  task = human_eval(test_path=str(path), allow_execution=True)
  (record,) = task.test
  assert record.messages[-1]['content'].endswith(PROMPT)
  assert 'helper(3)' not in record.messages[-1]['content']
  # A tuple is not a list to the test, whose values come as they were.
  texts = [record.answer, '  return list(a) + list(b)\n', '', '```\nadd = max\n```']
  assert [task.check(t, record) for t in texts] == [1, 0, 0, 0]
  assert code(allow_execution=True).score([Sample('', record.answer, 1, False, record)])
  with pytest.raises(InputError, match='train_path is not set'):
    task.train(0)


def test_human_eval_does_not_train_on_what_it_holds_out(tmp_path):
  paths = {}
  other = ROW | {'prompt': PROMPT + '  # Other.\n'}
  for name, rows in (('test_path', [ROW]), ('train_path', [ROW, other])):
    paths[name] = str(tmp_path / f'{name}.jsonl')
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  task = human_eval(**paths, allow_execution=True)
  assert {task.train(i).id for i in range(5)} == {1}
  told = '1 programs to train on, 1 held out; 1 that are held out too were left out.'
  assert task.report == [told]


def test_a_test_that_never_calls_is_no_test():
  empty = {'name': 'add', 'check': 'def check(f): pass\n'}
  assert graded(RIGHT, empty).right == 0


def test_the_sandbox_ends_with_its_parent():
  """A killed trainer leaves nothing behind that runs."""
  text = (
    'from jaxrl_llm.sandbox import levels, programs\n'
    f'programs.graded({CASES!r}, "while True: pass", level={SHUT[0]!r},'
    ' limits=levels.Limits(seconds=30))\n'
  )
  before = {p for p in os.listdir('/proc') if p.isdigit()}
  with subprocess.Popen([os.sys.executable, '-c', text]) as parent:
    assert waited(lambda: running(before), 30)
    parent.kill()
  assert waited(lambda: not running(before), 10)
