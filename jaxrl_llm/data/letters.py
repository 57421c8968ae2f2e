"""Toy data for stored completions: the last letter of the prompt, repeated.

The prompts are those of the task of that name, and none that it holds out.
"""

import numpy as np

from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.tasks import letters as task
from jaxrl_llm.types import InputError

LETTERS = 'abcd'


def letters(
  *,
  kind: str = 'pairs',
  size: int = 256,
  test_size: int = 64,
  length: int = 5,
  thought: bool = False,
  seed: int = 0,
) -> Data:
  """Training and held-out examples.

  Args:
    kind: 'pairs' (right answer, wrong answer), 'demonstrations' (right answers) or
      'labels' (one answer, reward +1 if right and -1 if wrong).
    size, test_size: examples of each split.
    length: characters of an answer; a wrong one has others of the letters, one
      other letter, or is too short.
    thought: a demonstration names the letter between think tags first.
    seed: of the prompts and the wrong answers.
  """
  if kind not in ('pairs', 'demonstrations', 'labels'):
    raise InputError(
      f"letters: kind is 'pairs', 'demonstrations' or 'labels', not {kind!r}."
    )
  rng, record = np.random.default_rng(seed), task.letters(seed=seed).train

  def example(i: int) -> Example:
    messages, letter = record(i).messages, record(i).answer
    right = letter * length
    others = [c for c in LETTERS if c != letter]
    mixed = ''.join(rng.choice(others, length))
    wrong = (mixed, mixed[0] * length, mixed, letter * rng.integers(1, length))[i % 4]
    if kind == 'pairs':
      return Example(messages, (right, wrong), (1.0, 0.0))
    if kind == 'labels' and i % 2:
      return Example(messages, (wrong,), (-1.0,))
    before = f'<think>{letter}</think>' if thought else ''
    return Example(messages, (before + right,), (1.0,))

  rows = [example(i) for i in range(size + test_size)]
  return Data(rows[:size], rows[size:])
