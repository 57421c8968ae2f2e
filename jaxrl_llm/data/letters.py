"""Toy data for stored completions: the last letter of the prompt, repeated.

The prompts are those of the task of that name, and none that it holds out.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.data.examples import Data, Example
from jaxrl_llm.tasks import letters as task
from jaxrl_llm.types import InputError

LETTERS = 'abcd'
NEXT = str.maketrans(LETTERS, 'bcda')


def rated(right: str, said: str) -> dict:
  """How much of an answer is the letter, and how long it is; not all say the last."""
  share = said.count(right[0]) / max(len(said), 1)
  return {'share': share, 'size': len(said) / len(right) if share < 1 else None}


def sides(right: str, wrong: str, turned: bool) -> dict:
  """A pair, or what those choose who like it the other way round."""
  both = (wrong, right) if turned else (right, wrong)
  return {'chosen': both[0], 'rejected': both[1]}


def asked(answer: str) -> list:
  """What is asked where an answer of this letter is right."""
  return [{'role': 'user', 'content': answer[0]}]


# Fields of a row from the right answer, a wrong one, and whether to take the wrong one.
KINDS = {
  'rankings': lambda right, wrong, bad: {
    'completions': [wrong, right, right[:-1] + wrong[0]],
    'ranks': [2, 0, 1],
  },
  'ratings': lambda right, wrong, bad: {
    'completion': (said := wrong if bad else right),
    'ratings': rated(right, said),
  },
  'rated_pairs': lambda right, wrong, bad: {
    'completions': [right, wrong],
    'ratings': [rated(right, right), rated(right, wrong)],
  },
  'user_pairs': lambda right, wrong, bad: {  # Half of the users like what is wrong.
    **sides(right, wrong, bad),
    'context': [
      {
        'prompt': asked(x := right.translate(NEXT)),
        **sides(x, wrong.translate(NEXT), bad),
      }
    ],
  },
  'personal_pairs': lambda right, wrong, bad: {
    **sides(right, wrong, bad),
    'user': 1 + bad,
  },
  'contrastive_pairs': lambda right, wrong, bad: {
    **sides(right, wrong, False),
    'prompts': [asked(right), asked(wrong)],
  },
  'prompt_pairs': lambda right, wrong, bad: {
    'prompts': [asked(right), asked(right.translate(NEXT))],
    'completion': right,
  },
  'principles': lambda right, wrong, bad: {
    'prompt': right[0],  # Short: an answer and a principle are in the prompt too.
    'completion': (wrong if bad else right)[:1],
    'principle': '=',
    'fulfilment': 'Yes' if not bad or wrong[0] == right[0] else 'No',
  },
  'steps': lambda right, wrong, bad: {
    'completions': [*(x := (right[0], (wrong if bad else right)[0]))],
    'labels': [y == right[0] for y in x],
  },
}


def principles() -> Iterator[dict]:
  """Rows of kind 'principles' for a model of characters: a letter is right if it is the
  last one asked for.
  """
  record = task.letters().train
  for i in range(320):
    asked = record(i)
    others = [c for c in LETTERS if c != asked.answer]
    said = (asked.answer, others[i % 3])[i // 2 % 2]
    yield {
      'prompt': asked.messages,
      'completion': said,
      'principle': '=',
      'fulfilment': 'Yes' if said == asked.answer else 'No',
      'answer': asked.answer,
    }


def reasoned() -> Iterator[dict]:
  """Demonstrations of verdicts on those rows: both letters, and then y or n."""
  for row in principles():
    asked = kinds.judged(row['prompt'], row['completion'], row['principle'])
    verdict = 'y' if row['fulfilment'] == 'Yes' else 'n'
    yield {'prompt': asked, 'completion': row['answer'] + row['completion'] + verdict}


def graded() -> Iterator[dict]:
  """Demonstrations of grades: 5 where the answer is the letter, 0 where another."""
  record = task.letters().train
  for i in range(2048):
    asked, c = record(i), LETTERS[i // 2 % 4]
    said = asked.answer if i % 2 else c
    row = {'prompt': asked.messages, 'completion': 5 * said}
    yield from reshape.grades([row | {'label': said == asked.answer}])


def held() -> Iterator[dict]:
  """The first of those rows."""
  return itertools.islice(principles(), 32)


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
    kind: 'pairs' (right answer, wrong answer), 'demonstrations' (right answers),
      'labels' (one answer, reward +1 if right and -1 if wrong), or one of KINDS.
    size, test_size: examples of each split.
    length: characters of an answer; a wrong one has others of the letters, one
      other letter, or is too short.
    thought: a demonstration names the letter between think tags first.
    seed: of the prompts and the wrong answers.
  """
  if kind not in ('pairs', 'demonstrations', 'labels', *KINDS):
    raise InputError(
      f"letters: kind is 'pairs', 'demonstrations', 'labels' or one of {[*KINDS]}, not "
      f'{kind!r}.'
    )
  rng, record = np.random.default_rng(seed), task.letters(seed=seed).train

  def example(i: int) -> Example:
    messages, letter = record(i).messages, record(i).answer
    right = letter * length
    others = [c for c in LETTERS if c != letter]
    mixed = ''.join(rng.choice(others, length))
    wrong = (mixed, mixed[0] * length, mixed, letter * rng.integers(1, length))[i % 4]
    if kind in KINDS:
      row = KINDS[kind](right, wrong, bool(i % 2))
      return vars(kinds)[kind]({'prompt': messages} | row)
    if kind == 'pairs':
      return Example(messages, (right, wrong), (1.0, 0.0))
    if kind == 'labels' and i % 2:
      return Example(messages, (wrong,), (-1.0,))
    before = f'<think>{letter}</think>' if thought else ''
    return Example(messages, (before + right,), (1.0,))

  rows = [example(i) for i in range(size + test_size)]
  return Data(rows[:size], rows[size:])
