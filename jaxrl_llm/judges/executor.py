"""What a judge may have computed: text to text, parsed and never run.

  17 * 23 + sqrt(2)      a value, exactly where it is rational
  36 km/h in m/s         a quantity in another unit
  2.667 = 8/3            whether two are the same, or the same to two decimals

The last is by the points of CoSineVerifier (2025), https://arxiv.org/abs/2512.01224: an
answer rounded to two decimals is the same, and so is one without its unit. That values
which round to 0.00 are not is ours.
"""

import re
from fractions import Fraction

from jaxrl_llm.rewards import formula, symbolic, units

LONGEST = 200  # Characters of a request.
SHORT = 20  # Of a fraction that is written out.
NONE = 'cannot be computed'
INTO = re.compile(r'(?s)(.*\S)\s+(?:in|into|to)\s+(\S.*)')


def result(text: str) -> str:
  """What comes of a request. Never raises, and takes bounded time."""
  text = text.strip()
  if len(text) > LONGEST:
    return f'too long; {LONGEST} characters are the most'
  if '=' in text:
    one, _, other = text.replace('==', '=').partition('=')
    return compared(one, other)
  if found := INTO.fullmatch(text):
    return converted(*found.groups())
  found = quantity(text)
  return NONE if found is None or found.dimensions else written(found.value)


def compared(one: str, other: str) -> str:
  """Whether two are the same."""
  a, b = quantity(one), quantity(other)
  if a is None or b is None:
    return NONE
  if a.dimensions == b.dimensions and (said := same(a.value, b.value)):
    return said
  (first, unit), (second, its) = units.number(one), units.number(other)
  if bool(unit) == bool(its) or None in (first, second):
    return 'not the same'
  said = same(first, second)
  return f'{said}, but for a unit that is left out' if said else 'not the same'


def same(one: Fraction, other: Fraction) -> str:
  """In which way they are the same; '' if in none."""
  if one == other:
    return 'the same'
  near = round(one, 2) == round(other, 2) != 0
  return 'the same to two decimals' if near else ''


def converted(text: str, unit: str) -> str:
  """A quantity in another unit."""
  found, (size, dimensions) = units.parse(text), units.unit(unit) or (None, None)
  if found is None or found.dimensions != dimensions:
    return NONE
  return f'{written(found.value / size)} {unit}'


def quantity(text: str) -> units.Quantity | None:
  """An expression's value, or a number with its unit."""
  found = value(text)
  return units.parse(text) if found is None else units.Quantity(found, {})


def value(text: str) -> Fraction | None:
  """The value of an expression without variables, or None."""
  try:
    tree = formula.parse(formula.normal(text))
    if not constant(tree):
      return None
    try:
      return symbolic.exact(tree)
    except ValueError:  # No fraction, or one of too many digits.
      found = symbolic.value(tree, 0)
    return Fraction(found.real) if abs(found.imag) <= 1e-9 * abs(found) else None
  except (ValueError, ArithmeticError, KeyError, TypeError):
    return None


def constant(tree: formula.Tree) -> bool:
  """Whether there is no variable in it."""
  if tree.kind == 'name':
    return tree.parts[0] in symbolic.CONSTANTS
  return all(constant(part) for part in tree.parts if isinstance(part, formula.Tree))


def written(found: Fraction) -> str:
  """A number as text: '8/3, about 2.66667, to two decimals 2.67'."""
  exact = str(found) if len(str(found)) <= SHORT else ''
  if exact and found.denominator == 1:
    return exact
  try:
    about = f'about {float(found):.6g}, to two decimals {float(round(found, 2)):.2f}'
  except OverflowError:
    return 'larger than a float'
  return ', '.join(filter(None, (exact, about)))
