"""Grades a program by calls whose right answers it never sees.

Tests are {'name': a function's name} and either of

  cases  [{'args': [...], 'expected': ...}]: compared here, in the parent
  check  the source of a function check(candidate), as HumanEval has them, which runs in
         a second sandbox; `candidate` there sends its arguments here, and from here to
         the program's process, and gets back the value

Every message carries a random word of this run, and the calls are counted: a program
passes if all tests ran and all were right, and not by ending early.
"""

import contextlib
import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxrl_llm.sandbox import inside, levels
from jaxrl_llm.sandbox.levels import Limits

SLACK = (
  1e-6  # Relative error of a float that is due; other values are compared exactly.
)
CALLS = 10_000  # Calls of one test.
EMPTY = MappingProxyType({})


class Grade(NamedTuple):
  """How many tests there were, how many were right, and why not all."""

  right: int
  total: int
  reason: str = ''


class Child(NamedTuple):
  """A process to talk with until its time is up."""

  process: subprocess.Popen
  nonce: str
  deadline: float
  most: int  # Bytes of one answer.


def graded(tests: dict[str, Any], source: str, *, level: str, limits: Limits) -> Grade:
  """Runs `source` and calls its function tests['name'] as the tests say.

  Args:
    level: a name of levels.LEVELS.
    limits: of the program, and again of the process of a `check`.
  """
  total = len(tests.get('cases', (None,)))
  with started('program', tests['name'], source, level, limits) as program:
    first = heard(program)
    if not first.get('ready'):
      return Grade(0, total, first['error'])
    if 'cases' in tests:
      return by_cases(program, tests['cases'])
    with started('test', tests['name'], tests['check'], level, limits) as test:
      return by_check(program, test)


def by_cases(program: Child, cases: list[dict]) -> Grade:
  """Each case called, and its value compared here."""
  right, reason = 0, ''
  for number, case in enumerate(cases):
    named = case.get('named', {})
    question = {'args': inside.encode(case['args']), 'named': inside.encode(named)}
    reply = asked(program, number, question)
    passed = 'value' in reply and same(case['expected'], reply['value'])
    right += passed
    reason = reason or ('' if passed else reply.get('error', 'another value'))
  return Grade(right, len(cases), reason)


def by_check(program: Child, test: Child) -> Grade:
  """The test's calls handed on, and its verdict."""
  said, calls, reason = heard(test), 0, ''
  while 'verdict' not in said and 'error' not in said and calls < CALLS:
    calls += 1
    if said.get('call') != calls:
      return Grade(0, 1, 'the test lost count')
    question = {'args': said['args'], 'named': said['named']}
    reply = asked(program, calls, question)
    reason = reply.get('error', reason)
    if not told(test, reply):
      break
    said = heard(test)
  passed = said.get('verdict') is True and said['calls'] == calls > 0
  return Grade(int(passed), 1, '' if passed else reason or 'another value')


def same(expected: Any, value: Any) -> bool:
  """Whether a value is the one due, as JSON has them: a tuple is a list.

  A bool is no number. Where a float is due, an integer will do, and SLACK is allowed.
  """
  try:
    return equal(plain(inside.encode(expected)), plain(value))
  except (TypeError, ValueError, RecursionError, OverflowError, KeyError):
    return False


def plain(found: Any) -> Any:
  """inside.encode's form without its tags: lists, and dicts by sorted keys."""
  if type(found) is list:
    return [plain(x) for x in found]
  if type(found) is not dict:
    return found
  ((tag, items),) = found.items()
  items = [plain(x) for x in items]
  return items if tag == 'tuple' else {tag: sorted(items, key=json.dumps)}


def equal(one: Any, other: Any) -> bool:
  if type(one) is float and type(other) in (float, int):
    return one == other or abs(one - other) <= SLACK * abs(one)
  if type(one) is not type(other):
    return False
  if type(one) is list:
    return len(one) == len(other) and all(map(equal, one, other))
  if type(one) is dict:
    return one.keys() == other.keys() and all(
      equal(x, other[k]) for k, x in one.items()
    )
  return one == other


# ---- Processes -----------------------------------------------------------------------


@contextlib.contextmanager
def started(
  role: str, name: str, source: str, level: str, limits: Limits
) -> Iterator[Child]:
  """A process that has its job. Nothing of it is left afterwards."""
  nonce = secrets.token_hex(16)
  process = spawned(levels.LEVELS[level](limits), levels.user(level))
  child = Child(process, nonce, time.monotonic() + limits.seconds, limits.answer)
  job = dict(role=role, name=name, source=source, limits=limits._asdict())
  try:
    told(child, job)
    yield child
  finally:
    ended(process)


def spawned(command: list[str], user: Mapping = EMPTY) -> subprocess.Popen:
  """A process in an empty environment, with pipes that never block."""
  process = subprocess.Popen(
    command,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={},
    cwd='/',
    start_new_session=True,
    bufsize=0,
    **user,
  )
  for pipe in (process.stdin, process.stdout):
    os.set_blocking(pipe.fileno(), False)
  return process


def ended(process: subprocess.Popen) -> None:
  """Kills it: first by asking who holds its namespace, who kills what is in there."""
  process.terminate()
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(1)
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, 9)
  process.wait()
  process.stdin.close()
  process.stdout.close()


def asked(child: Child, number: int, question: dict) -> dict:
  """The reply to call `number`: {'value': ...} or {'error': ...}."""
  if not told(child, {'call': number, **question}):
    return {'error': 'the process ended'}
  reply = heard(child)
  if 'error' not in reply and reply.get('call') != number:
    return {'error': 'the process lost count'}
  return {k: reply[k] for k in ('value', 'error') if k in reply}


def told(child: Child, message: dict) -> bool:
  """Sends a line; False where the process is gone or its time is over."""
  text = (json.dumps({'nonce': child.nonce, **message}) + '\n').encode()
  sink = child.process.stdin
  while text:
    left = child.deadline - time.monotonic()
    if left <= 0 or not select.select([], [sink], [], left)[1]:
      return False
    try:
      text = text[os.write(sink.fileno(), text[:65536]) :]
    except OSError:
      return False
  return True


def heard(child: Child) -> dict:
  """The next line as an object; {'error': ...} for anything else."""
  text, pipe = b'', child.process.stdout
  while not text.endswith(b'\n'):
    left = child.deadline - time.monotonic()
    if left <= 0 or not select.select([pipe], [], [], left)[0]:
      return {'error': 'out of time'}
    some = os.read(pipe.fileno(), 65536)
    if not some:
      return {'error': 'the process ended'}
    text += some
    if len(text) > child.most:
      return {'error': 'too long an answer'}
  return understood(text, child.nonce)


def understood(text: bytes, nonce: str) -> dict:
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    return {'error': 'no answer'}
  if not isinstance(said, dict) or said.get('nonce') != nonce:
    return {'error': 'no answer'}
  return said
