"""A toy: write the letter that the prompt ends with.

A character model of a few thousand parameters learns it from scratch.
"""

import random

from jaxrl_llm.rewards import extract
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError


def letters(
  *,
  alphabet: str = 'abcd',
  length: int = 3,
  after: str = '',
  seed: int = 0,
  test_size: int = 16,
) -> Task:
  """Prompts of `length` letters. The last one is the answer.

  The score is the share of the completion's characters that equal it, so a random
  model scores 1 / len(alphabet) where it writes letters alone. Prompts are split by
  their text: of 'abcd' and length 3 there are 64.

  Args:
    after: only what follows this string counts, such as '</think>'; '' is all.

  Raises:
    InputError: a letter occurs twice, or `test_size` takes half of the prompts.
  """
  if len(alphabet) < 2 or len(set(alphabet)) != len(alphabet) or length < 1:
    raise InputError(
      f'letters: alphabet {alphabet!r} and length {length}; '
      'give at least two letters, each once, and a length above 0.'
    )

  def draw(rng: random.Random, id: int) -> Record:
    text = ''.join(rng.choice(alphabet) for _ in range(length))
    return Record(id, records.chat(text), text[-1], {})

  train, test = records.held_out(draw, name='letters', seed=seed, test_size=test_size)
  check = lambda text, record: share(extract.following(text, after), record)
  return Task('letters', train, test, check)


def share(text: str, record: Record) -> float:
  """The share of characters that equal the answer; 0 for an empty text."""
  return text.count(record.answer) / max(len(text), 1)
