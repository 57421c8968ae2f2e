"""What a task is: questions to train on, questions held out, and a checker."""

import functools
import json
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.types import InputError


class Record(NamedTuple):
  """One question. `id` tells it from others of its split, wherever it comes again."""

  id: int
  messages: list[dict[str, str]]  # role and content, as chat templates take them.
  answer: str
  extra: dict[str, Any]  # Whatever else the checker reads.
  hints: dict[str, list[str]] = {}  # By category (scaffold.py), the least help first.
  template: dict[str, Any] = {}  # What the chat template reads beside the messages.
  where: str = ''  # File and line, for messages.


class Env(NamedTuple):
  """Who answers the policy turn by turn: pure functions on text.

  A state is any value that no function changes in place. None of them raises whatever
  the policy says, and their time is bounded.
  """

  start: Callable[[Record], tuple[list[dict[str, str]], Any]]  # Messages, and a state.
  step: Callable[[Any, str], tuple[Any, str | None]]  # The reply; None where over.
  score: Callable[[Any], tuple[float, dict[str, float]]]  # In [0, 1], and its parts.


class Task(NamedTuple):
  """A source of questions and the judge of their answers.

  `train` maps an index (from 0, without end) to a record, always the same one. No
  question of `test` is a question of `train`. `check` maps a completion's text and its
  record to a score in [0, 1]; it never raises and its time is bounded. None is of
  prompts without answers: the run's rewards are what is measured.
  """

  name: str
  train: Callable[[int], Record]
  test: tuple[Record, ...]
  check: Callable[[str, Record], float] | None
  digest: str = ''  # Of every row that was read; a resumed run must find the same.
  report: Sequence[str] = ()  # Lines to say before training.
  env: Env | None = None  # Where an answer takes several turns (episodes.py).
  long_prompt: str = 'error'  # Of a table (asked.py), or 'drop'.


Draw = Callable[[random.Random, int], Record]  # (randomness, id) -> record.


def chat(question: str, *, system: str = '', suffix: str = '') -> list[dict[str, str]]:
  """Messages that ask `question + suffix`, after a system message if there is one."""
  user = {'role': 'user', 'content': question + suffix}
  return [{'role': 'system', 'content': system}, user] if system else [user]


def checked(task: Task) -> Callable[[str, Record], float]:
  """The task's check; its lack is an InputError."""
  if task.check is None:
    raise InputError(
      f'task {task.name}: its prompts have no answers to check. Name their field with '
      "config.task.answer, or give a reward that needs none, such as 'learned'."
    )
  return task.check


def question(record: Record) -> str:
  """What is asked last: the text of the last message."""
  return record.messages[-1]['content']


def identity(record: Record) -> str:
  """What tells two questions apart: the whole conversation, and its tools."""
  told = [record.messages, record.template] if record.template else record.messages
  return json.dumps(told, sort_keys=True, default=str)


class Cycle:
  """Index to record: all of a table in each pass, in an order of that pass's own."""

  def __init__(self, rows: Sequence[Record], seed: int):
    self.rows, self.seed = rows, seed
    draw = lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(rows))
    self.order = functools.lru_cache(maxsize=2)(draw)

  def __call__(self, index: int) -> Record:
    epoch, at = divmod(int(index), len(self.rows))
    return self.rows[self.order(epoch)[at]]


def held_out(
  draw: Draw, *, name: str, seed: int, test_size: int
) -> tuple[Callable[[int], Record], tuple[Record, ...]]:
  """Splits a generator: (train, test), with no test question in train.

  Record i of train depends on `seed` and i alone, its id on the question alone (24 bits
  of a hash, which float32 holds). A draw that hits a test question is drawn again.

  Raises:
    InputError: `test_size` is below 1, or takes half of the questions or more.
  """
  if not isinstance(test_size, int) or test_size < 1:
    raise InputError(f'{name}: test_size is {test_size!r}; give an integer above 0.')
  crowded = InputError(
    f'{name}: test_size {test_size} takes half of the questions this generator has, '
    'or more; lower test_size or widen the generator.'
  )
  rng = random.Random(f'{seed}/test')
  test: dict[str, Record] = {}
  for _ in range(20 * test_size):
    record = draw(rng, len(test))
    test.setdefault(identity(record), record)
    if len(test) == test_size:
      break

  def train(index: int) -> Record:
    rng = random.Random(f'{seed}/train/{int(index)}')
    for _ in range(1000):
      record = draw(rng, int(index))
      if (asked := identity(record)) not in test:
        return record._replace(id=zlib.crc32(asked.encode()) % 2**24)
    raise crowded

  probe = [identity(draw(rng, 0)) in test for _ in range(30)]
  if len(test) < test_size or sum(probe) >= 15:
    raise crowded
  return train, tuple(test.values())
