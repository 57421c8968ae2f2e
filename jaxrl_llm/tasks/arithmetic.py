"""Integer arithmetic of a chosen size. Needs no package."""

import itertools
import random
import string
from collections.abc import Sequence

from jaxrl_llm.rewards import extract as extraction
from jaxrl_llm.rewards import numbers
from jaxrl_llm.tasks import records
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError

FIELDS = {'a', 'op', 'b'}


def arithmetic(
  *,
  low: int,
  high: int,
  template: str = 'What is {a} {op} {b}?',
  operations: Sequence[str] = ('+', '-'),
  terms: int = 2,
  negative: bool = True,
  seed: int = 0,
  test_size: int = 200,
  system: str = '',
  suffix: str = '',
  extract: str = 'last_number',
) -> Task:
  """Questions such as 'What is 17 + 25 - 3?', answered by one integer.

  The split is by the question's text: '3 + 4' may be held out while '4 + 3' is trained.

  Args:
    low, high: the smallest and largest number of a question, both included.
    template: {a} is the first number, {op} the first operation and {b} the rest of
      the expression, so it serves any number of terms.
    operations: of '+', '-' and '*'; '*' binds tighter.
    terms: numbers per question, at least 2.
    negative: False leaves out questions whose answer is below 0.
    suffix: appended to the question as it is.
    extract: where the answer stands in a completion, a name of rewards/extract.py.

  Raises:
    InputError: an option cannot be used, or there are too few questions to hold out
      `test_size` of them.
  """
  validate(template, tuple(operations), low, high, terms)
  find = extraction.by_name(extract)

  def draw(rng: random.Random, id: int) -> Record:
    for _ in range(1000):
      values = [rng.randint(low, high) for _ in range(terms)]
      signs = [rng.choice(operations) for _ in range(terms - 1)]
      answer = evaluate(values, signs)
      if negative or answer >= 0:
        text = template.format(a=values[0], op=signs[0], b=rest(values, signs))
        messages = records.chat(text, system=system, suffix=suffix)
        return Record(id, messages, str(answer), {}, hints(values, signs))
    raise InputError(
      f'arithmetic: no answer of 1000 questions from {low} to {high} is 0 or above; '
      'set negative=True or raise the range.'
    )

  def check(text: str, record: Record) -> float:
    return float(numbers.equal(record.answer, find(text)))

  train, test = records.held_out(
    draw, name='arithmetic', seed=seed, test_size=test_size
  )
  return Task('arithmetic', train, test, check)


def evaluate(values: Sequence[int], signs: Sequence[str]) -> int:
  """2, 3, 4 with +, * is 14."""
  total = [values[0]]
  for sign, value in zip(signs, values[1:]):
    if sign == '*':
      total[-1] *= value
    else:
      total.append(value if sign == '+' else -value)
  return sum(total)


def hints(values: Sequence[int], signs: Sequence[str]) -> dict[str, list[str]]:
  """Rules, a plan, and the plan worked out but for its last step."""
  terms, left, plan, steps = [values[0]], [], [], []
  for sign, value in zip(signs, values[1:]):
    if sign == '*':
      plan.append(f'Multiply {terms[-1]} by {value}.')
      steps.append((f'{terms[-1]} * {value}', terms[-1] * value))
      terms[-1] *= value
    else:
      terms.append(value)
      left.append(sign)
  total = terms[0]
  plan += [f'Start with {total}.'] if left else []
  for sign, term in zip(left, terms[1:]):
    for part in tens_and_ones(term):
      plan.append(f'{"Add" if sign == "+" else "Subtract"} {part}.')
      result = total + part if sign == '+' else total - part
      steps.append((f'{total} {sign} {part}', result))
      total = result
  rules = ['Multiply before you add or subtract.'] if '*' in signs else []
  rules += ['Work from left to right.', 'Take the tens first, then the ones.']
  worked = [f'{step} = {result}.' for step, result in steps[:-1]]
  worked.append(f'What is left is {steps[-1][0]}.')
  return {'knowledge': rules, 'planning': plan, 'solution': worked}


def tens_and_ones(value: int) -> list[int]:
  """25 is 20 and 5; what has no two such parts stays as it is."""
  ones = value % 10
  return [value - ones, ones] if value > 10 and ones else [value]


def rest(values: Sequence[int], signs: Sequence[str]) -> str:
  """The expression after its first operation: '3 * 4'."""
  tail = itertools.chain.from_iterable(zip(signs[1:], values[2:]))
  return ' '.join(str(x) for x in (values[1], *tail))


def validate(
  template: str, operations: tuple[str, ...], low: int, high: int, terms: int
) -> None:
  """Raises InputError for options that make no question."""
  try:
    fields = {field for _, field, _, _ in string.Formatter().parse(template)} - {None}
  except ValueError as error:
    raise InputError(f'arithmetic: template {template!r}: {error}.') from error
  due = FIELDS if len(operations) > 1 else {'a', 'b'}
  if not due <= fields <= FIELDS:
    raise InputError(
      f'arithmetic: template {template!r} has the fields {sorted(fields)}; '
      f'write {sorted(due)} in braces, and no field but {sorted(FIELDS)}.'
    )
  if not operations or not set(operations) <= {'+', '-', '*'}:
    raise InputError(
      f"arithmetic: operations are {operations}; choose of '+', '-', '*'."
    )
  if low > high or terms < 2:
    raise InputError(
      f'arithmetic: low={low}, high={high}, terms={terms}; '
      'low is at most high, and there are at least 2 terms.'
    )
