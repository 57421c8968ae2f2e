"""Toy data for stored-completion methods: the asked letter, repeated, is the answer."""

import numpy as np

from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.types import InputError

LETTERS = 'abcd'


def letters(
  *,
  kind: str = 'pairs',
  size: int = 256,
  test_size: int = 64,
  length: int = 6,
  seed: int = 0,
) -> Data:
  """Training and held-out examples.

  Args:
    kind: 'pairs' (right answer, wrong answer), 'demonstrations' (right answers) or
      'labels' (one answer, reward +1 if right and -1 if wrong).
    size, test_size: examples of each split.
    length: characters of an answer; a wrong one has random letters.
    seed: of the prompts and the wrong answers.
  """
  if kind not in ('pairs', 'demonstrations', 'labels'):
    raise InputError(
      f"letters: kind is 'pairs', 'demonstrations' or 'labels', not {kind!r}."
    )
  rng = np.random.default_rng(seed)

  def example(i: int) -> Example:
    letter = str(rng.choice(list(LETTERS)))
    right = letter * length
    wrong = ''.join(rng.choice([c for c in LETTERS if c != letter], length))
    messages = [{'role': 'user', 'content': f'say {letter}'}]
    if kind == 'pairs':
      return Example(messages, (right, wrong), (1.0, 0.0))
    if kind == 'labels' and i % 2:
      return Example(messages, (wrong,), (-1.0,))
    return Example(messages, (right,), (1.0,))

  rows = [example(i) for i in range(size + test_size)]
  return Data(rows[:size], rows[size:])
