"""The generators and verifiers of reasoning-gym, https://github.com/open-thought/reasoning-gym."""

import dataclasses
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from jaxrl_llm.rewards import expression
from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.tasks import questions, records
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError

# Characters of an answer that a verifier is shown; one of them takes quadratic time.
LONGEST = 2000
LONGEST_OF = {'propositional_logic': 300}
# Powers of ten that a verifier would write out, and a value that one holds for right.
TRAP = re.compile(r'[eE][-+]?[0-9_]{4}|\bnan\b', re.IGNORECASE)
# Their verifiers run the model's text through eval() or sympy's parser, which is eval.
UNSAFE = frozenset(
  [
    'binary_matrix',
    'spiral_matrix',
    'string_insertion',
    'n_queens',
    'simple_integration',
    'intermediate_integration',
    'polynomial_multiplication',
  ]
)


def reasoning_gym(
  *,
  dataset: str,
  seed: int = 0,
  test_size: int = 200,
  system: str = '',
  suffix: str = '',
  extract: str = 'last_number',
  size: int = 100_000,
  options: dict[str, Any] | None = None,
) -> Task:
  """Questions of one generator, scored by its own `score_answer`.

  Many verifiers pay part of the score for an answer that contains the right one, or
  is near it; rewards/numeric.py and `checker(binary=True)` do not. The entry that
  reasoning-gym made is the record's `extra`. Of all generators gsm_symbolic alone
  tells how its answer is found: its records have hints (scaffold.py), in the category
  of the solution. What others keep beside an answer is the answer again.

  Args:
    dataset: its name in reasoning-gym, such as 'chain_sum'.
    suffix: appended to the question as it is.
    extract: what of a completion is shown to the verifier, a name of
      rewards/extract.py. No answer scores 0.
    size: items the generator is asked to have, from which questions are drawn.
    options: the generator's own, such as {'min_terms': 2, 'max_terms': 3}.

  Raises:
    InputError: the package, the dataset or an option does not exist, or a value is
      refused by the generator.
  """
  find = extraction.by_name(extract)
  source = generator(dataset, seed, size, dict(options or {}))
  longest = LONGEST_OF.get(dataset, LONGEST)
  score = VERIFIERS.get(dataset, source.score_answer)

  def draw(rng: random.Random, id: int) -> Record:
    entry = source[rng.randrange(size)]
    messages = records.chat(entry['question'], system=system, suffix=suffix)
    answer, reasons = str(entry['answer']), entry['metadata'].get('answer_cot', '')
    hints = questions.worked(reasons, answer) if reasons else []
    return Record(id, messages, answer, entry, {'solution': hints} if hints else {})

  def check(text: str, record: Record) -> float:
    answer = find(text)
    if answer is None or len(answer) > longest:
      return 0.0
    if TRAP.search(answer) and answer != record.answer:
      return 0.0
    try:
      value = float(score(answer, record.extra))
    except Exception:  # A verifier that stumbles over an answer finds it wrong.
      return 0.0
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0

  name = f'reasoning_gym.{dataset}'
  try:
    train, test = records.held_out(draw, name=name, seed=seed, test_size=test_size)
  except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
    raise InputError(f'{name}: no question from options {options}: {error}.') from error
  return Task(name, train, test, check)


def generator(dataset: str, seed: int, size: int, options: dict[str, Any]) -> Any:
  """reasoning-gym's dataset object, its name and options checked."""
  try:
    from reasoning_gym import factory
  except ImportError as error:
    raise InputError(
      "task reasoning_gym needs a package; run: pip install -e '.[tasks]'"
    ) from error
  usable = factory.DATASETS.keys() - UNSAFE - {'composite'}
  if dataset in UNSAFE:
    raise InputError(
      f"reasoning_gym: {dataset}'s verifier runs the model's text as code; "
      'choose another dataset.'
    )
  if dataset not in usable:
    raise InputError(f'reasoning_gym: {extraction.nearest(dataset, usable)}')
  known = {f.name for f in dataclasses.fields(factory.DATASETS[dataset][1])}
  for key in options:
    if key not in known - {'seed', 'size'}:
      hint = extraction.nearest(key, known - {'seed', 'size'})
      raise InputError(f'reasoning_gym.{dataset}, options: {hint}')
  # Item i is drawn from seed + i: neighbouring seeds would share nearly all items.
  first = random.Random(f'{dataset}/{seed}').getrandbits(31)
  try:
    return factory.create_dataset(dataset, seed=first, size=size, **options)
  except (AssertionError, TypeError, ValueError) as error:
    raise InputError(f'reasoning_gym.{dataset}: options {options}: {error}.') from error


def countdown(answer: str, entry: dict[str, Any]) -> float:
  """1 where the expression has the target's value and uses every number once."""
  found = expression.evaluate(answer.partition('=')[0])
  if found is None:
    return 0.0
  value, used = found
  wanted = entry['metadata']
  right = value == wanted['target'] and Counter(used) == Counter(wanted['numbers'])
  return float(right)


def puzzle24(answer: str, entry: dict[str, Any]) -> float:
  """1 where the expression is 24 and uses every number once."""
  numbers = entry['metadata']['numbers']
  return countdown(answer, {'metadata': {'target': 24, 'numbers': numbers}})


def same_word(answer: str, entry: dict[str, Any]) -> float:
  """1 where the answer is the entry's, up to case."""
  return float(answer.strip().lower() == str(entry['answer']).lower())


# In place of reasoning-gym's: two parse the model's text with sympy, one compares
# bool('False') with bool('True') and so takes any text for right.
VERIFIERS: dict[str, Callable[[str, dict[str, Any]], float]] = {
  'countdown': countdown,
  'game_of_life_halting': same_word,
  'puzzle24': puzzle24,
}
