"""Mathematical answers as text, LaTeX or plain: are two of them the same value?

What a model writes is parsed (formula.py) and never run as code, and no number grows
beyond what a float or a few thousand bits hold. In order:

  the same text    after spaces, dollars, \\left, \\text and the like are gone
  numbers          as fractions; a relative error of 1e-6 where the gold has a point
  structure        (1, 2) in order, {1, 2} in any; intervals with their brackets; unions
  expressions      exactly where they are rational, else at points of the complex plane

Two expressions that agree at all points are taken for equal; two that are not defined
at the same points are not. log is ln, and a variable may be complex: |x| is not
sqrt(x^2).
"""

import cmath
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

from jaxrl_llm.rewards import formula, numbers

BITS = 4000  # Of a fraction's numerator or denominator.
EXACT = 1e-9  # Relative error of two values that are the same.
DECIMAL = 1e-6  # As rewards/numbers.py, where the gold is a decimal number.
POINTS = 5
SPACE = re.compile(r'(?<![0-9])\s+|\s+(?![0-9])')  # Not between digits.

FUNCTIONS: dict[str, Callable[[complex], complex]] = {
  'sqrt': cmath.sqrt,
  'sin': cmath.sin,
  'cos': cmath.cos,
  'tan': cmath.tan,
  'arcsin': cmath.asin,
  'arccos': cmath.acos,
  'arctan': cmath.atan,
  'sinh': cmath.sinh,
  'cosh': cmath.cosh,
  'tanh': cmath.tanh,
  'ln': cmath.log,
  'log': cmath.log,
  'exp': cmath.exp,
  'abs': abs,
}


def equal(gold: str, answer: str | None) -> bool:
  """Whether the answer is the gold one."""
  if answer is None or len(answer) > formula.LONGEST or len(gold) > formula.LONGEST:
    return False
  one, other = formula.normal(gold), formula.normal(answer)
  if SPACE.sub('', one) == SPACE.sub('', other):
    return bool(one.strip())
  if numbers.equal(one, other):
    return True
  try:
    one, other = formula.parse(one), formula.parse(other)
  except ValueError:
    return False
  slack = DECIMAL if '.' in gold else EXACT
  return same(one, other, slack)


def same(one: formula.Tree, other: formula.Tree, slack: float) -> bool:
  """Whether two trees are the same value."""
  lists = {'set', '()', '[]', '(]', '[)'}
  if one.kind in lists or other.kind in lists:
    if one.kind != other.kind or len(one.parts) != len(other.parts):
      return False
    if one.kind == 'set':
      return paired(one.parts, other.parts, slack)
    return all(same(a, b, slack) for a, b in zip(one.parts, other.parts))
  try:
    return exact(one) == exact(other)
  except (ValueError, ZeroDivisionError):
    return agree(one, other, slack)


def paired(ones, others, slack: float) -> bool:
  """Whether each of one has its own equal in the other."""
  left = list(others)
  for one in ones:
    for i, other in enumerate(left):
      if same(one, other, slack):
        del left[i]
        break
    else:
      return False
  return True


def exact(tree: formula.Tree) -> Fraction:
  """The value of a tree that is rational. ValueError where it is not, or too large."""
  kind, parts = tree
  if kind == 'number':
    return parts[0]
  if kind in ('name', 'call'):
    raise ValueError(kind)
  values = [exact(part) for part in parts]
  if kind == '^':
    base, exponent = values
    bits = max(abs(base.numerator), base.denominator).bit_length()
    if exponent.denominator != 1 or bits * abs(exponent) > BITS:
      raise ValueError('a power')
    found = base ** int(exponent)
  else:
    found = ARITHMETIC[kind](*values)
  if max(abs(found.numerator), found.denominator).bit_length() > BITS:
    raise ValueError('too large')
  return found


ARITHMETIC: dict[str, Callable] = {
  '+': lambda a, b: a + b,
  '-': lambda a, b: a - b,
  '*': lambda a, b: a * b,
  '/': lambda a, b: a / b,
  'minus': lambda a: 0 - a,  # -a would have -0.0 i, from where sqrt goes the other way.
}


def agree(one: formula.Tree, other: formula.Tree, slack: float) -> bool:
  """Whether two trees have the same values at every point where one has any."""
  met = 0
  for number in range(POINTS):
    values = [at_point(tree, number) for tree in (one, other)]
    if None in values:
      if values[0] is not values[1]:
        return False
      continue
    met += 1
    if abs(values[0] - values[1]) > slack * max(abs(values[0]), 1e-6):
      return False
  return met > POINTS // 2


def at_point(tree: formula.Tree, number: int) -> complex | None:
  """The tree's value at a point, or None where it has none that a float can hold."""
  try:
    found = value(tree, number)
  except (ArithmeticError, ValueError):
    return None
  return found if cmath.isfinite(found) else None


def value(tree: formula.Tree, number: int) -> complex:
  kind, parts = tree
  if kind == 'number':
    return complex(float(parts[0]))
  if kind == 'name':
    return CONSTANTS[parts[0]] if parts[0] in CONSTANTS else coordinate(*parts, number)
  if kind == 'call':
    return complex(FUNCTIONS[parts[0]](value(parts[1], number)))
  values = [value(part, number) for part in parts]
  return values[0] ** values[1] if kind == '^' else ARITHMETIC[kind](*values)


CONSTANTS = {'pi': complex(math.pi), 'e': complex(math.e), 'i': 1j}


def coordinate(name: str, number: int) -> complex:
  """A variable at a point: the first two negative, so that sqrt(x^2) is not x."""
  draw = random.Random(f'{name}/{number}')
  if number < 2:
    return complex(-draw.uniform(0.3, 2.0))
  return cmath.rect(draw.uniform(0.3, 2.0), draw.uniform(-3.0, 3.0))
