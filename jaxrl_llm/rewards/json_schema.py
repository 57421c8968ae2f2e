"""1 where the completion's JSON fits a schema, else 0.

A part of JSON Schema (draft 2020-12), checked in bounded time. A schema with a keyword
that is not in CHECKS is refused, so that none is passed over in silence.
"""

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from jaxrl_llm.rewards import automaton
from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError

LONGEST = 100_000  # Characters.
FENCE = re.compile(r'\A```(?:json)?\s*\n(.*)\n\s*```\Z', re.DOTALL)
REMARKS = {'$schema', '$id', '$comment', 'title', 'description', 'default', 'examples'}

number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
TYPES: dict[str, Callable[[Any], bool]] = {
  'null': lambda x: x is None,
  'boolean': lambda x: isinstance(x, bool),
  'integer': lambda x: number(x) and x == x // 1,
  'number': number,
  'string': lambda x: isinstance(x, str),
  'array': lambda x: isinstance(x, list),
  'object': lambda x: isinstance(x, dict),
}
Fits = Callable[[Any], bool]


def json_schema(*, schema: dict | str = '') -> Reward:
  """The stripped completion, or the one code block that it is, has to be JSON.

  Args:
    schema: the schema, as a dict or as text; '' takes each record's extra['schema'].

  Raises:
    InputError: the schema has a keyword that is not understood.
  """
  fixed = compiled(loaded(schema)) if schema else None

  def reward(sample: Sample) -> float:
    fits = fixed or compiled(loaded(sample.record.extra.get('schema', '')))
    try:
      return float(fits(parsed(sample.completion)))
    except (ValueError, RecursionError, OverflowError):
      return 0.0

  return reward


def loaded(schema: dict | bool | str) -> dict | bool:
  """A schema from its text."""
  try:
    return json.loads(schema) if isinstance(schema, str) else schema
  except ValueError as error:
    raise InputError(f'json_schema: the schema is no JSON: {error}.') from error


def parsed(text: str) -> Any:
  """JSON's value; ValueError for anything else, NaN and repeated names included."""
  text = text.strip()
  if len(text) > LONGEST:
    raise ValueError('too long')
  fenced = FENCE.match(text)

  def refuse(word):
    raise ValueError(word)

  def once(pairs):
    if len({k for k, _ in pairs}) < len(pairs):
      raise ValueError('a name twice')
    return dict(pairs)

  text = fenced[1] if fenced else text
  return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def compiled(schema: dict | bool) -> Fits:
  """A schema as a function of a value."""
  if isinstance(schema, bool):
    return lambda value: schema
  if not isinstance(schema, dict):
    raise InputError(f'json_schema: {str(schema)[:100]} is no schema; give an object.')
  if unknown := schema.keys() - CHECKS.keys() - REMARKS - {'additionalProperties'}:
    raise InputError(
      f'json_schema: {sorted(unknown)} is not understood; there are {sorted(CHECKS)}.'
    )
  checks = [CHECKS[k](x) for k, x in schema.items() if k in CHECKS]
  if 'additionalProperties' in schema:
    known = set(schema.get('properties', ()))
    other = compiled(schema['additionalProperties'])
    checks.append(
      of(dict, lambda x: all(other(v) for k, v in x.items() if k not in known))
    )
  return lambda value: all(check(value) for check in checks)


def of(kind: type | tuple, check: Fits) -> Fits:
  """A check that has nothing to say of values of other kinds."""
  rightly = lambda x: isinstance(x, kind) and not isinstance(x, bool)
  return lambda value: not rightly(value) or check(value)


def strict(value: Any) -> Any:
  """A value that equals another one only if JSON calls them the same."""
  if isinstance(value, list):
    return ('list', *map(strict, value))
  if isinstance(value, dict):
    return ('dict', frozenset((k, strict(v)) for k, v in value.items()))
  return (isinstance(value, bool), value)


def kinds(names) -> Fits:
  names = [names] if isinstance(names, str) else names
  if unknown := set(names) - TYPES.keys():
    raise InputError(f'json_schema: there is no type {sorted(unknown)}.')
  return lambda value: any(TYPES[name](value) for name in names)


def properties(named: dict) -> Fits:
  fits = {k: compiled(x) for k, x in named.items()}
  return of(dict, lambda x: all(fit(x[k]) for k, fit in fits.items() if k in x))


def pattern(text: str) -> Fits:
  form = automaton.compiled(text)
  return of(str, lambda x: len(x) <= 10_000 and automaton.search(form, x))


def several(enough: Callable[[list[bool]], bool]) -> Callable[[list], Fits]:
  def make(schemas):
    fits = [compiled(x) for x in schemas]
    return lambda value: enough([fit(value) for fit in fits])

  return make


def items(schema) -> Fits:
  fit = compiled(schema)
  return of(list, lambda x: all(map(fit, x)))


def inverse(schema) -> Fits:
  fit = compiled(schema)
  return lambda value: not fit(value)


def multiple(step) -> Fits:
  exactly = lambda x: Fraction(str(x))  # As it is written: 0.3 is three times 0.1.
  return of((int, float), lambda x: exactly(x) % exactly(step) == 0)


NUMBER = (int, float)
# Keyword -> (its value -> a check).
CHECKS: dict[str, Callable[[Any], Fits]] = {
  'type': kinds,
  'enum': lambda xs: lambda x: strict(x) in {strict(y) for y in xs},
  'const': lambda y: lambda x: strict(x) == strict(y),
  'properties': properties,
  'required': lambda names: of(dict, lambda x: set(names) <= x.keys()),
  'minProperties': lambda n: of(dict, lambda x: len(x) >= n),
  'maxProperties': lambda n: of(dict, lambda x: len(x) <= n),
  'items': items,
  'minItems': lambda n: of(list, lambda x: len(x) >= n),
  'maxItems': lambda n: of(list, lambda x: len(x) <= n),
  'uniqueItems': lambda on: of(
    list, lambda x: not on or len({strict(y) for y in x}) == len(x)
  ),
  'minLength': lambda n: of(str, lambda x: len(x) >= n),
  'maxLength': lambda n: of(str, lambda x: len(x) <= n),
  'pattern': pattern,
  'minimum': lambda n: of(NUMBER, lambda x: x >= n),
  'maximum': lambda n: of(NUMBER, lambda x: x <= n),
  'exclusiveMinimum': lambda n: of(NUMBER, lambda x: x > n),
  'exclusiveMaximum': lambda n: of(NUMBER, lambda x: x < n),
  'multipleOf': multiple,
  'allOf': several(all),
  'anyOf': several(any),
  'oneOf': several(lambda found: sum(found) == 1),
  'not': inverse,
}
