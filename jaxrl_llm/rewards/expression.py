"""Arithmetic expressions as text: + - * / and brackets over integers, exactly.

A parser of its own: what a model writes is never evaluated as code. There is no power,
no decimal point and no sign in front, and length and depth are bounded.
"""

import operator
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 200  # Characters.
DEEPEST = 20  # Brackets.
TOKEN = re.compile(r'\s*([0-9]{1,9}(?![0-9.])|[-+*/()])')
WRITTEN = str.maketrans(
  {'\N{MULTIPLICATION SIGN}': '*', '\N{DIVISION SIGN}': '/', '\N{MINUS SIGN}': '-'}
)
SUMS: dict[str, Callable] = {'+': operator.add, '-': operator.sub}
PRODUCTS: dict[str, Callable] = {'*': operator.mul, '/': operator.truediv}


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
  """'(1 + 2) / 3' gives (Fraction(1), [1, 2, 3]); None for anything else."""
  if len(text) > LONGEST:
    return None
  text = text.translate(WRITTEN).strip()
  tokens = TOKEN.findall(text)
  if TOKEN.sub('', text):
    return None
  try:
    value, rest = chain(tokens, 0, 0, SUMS)
  except (ValueError, ZeroDivisionError):
    return None
  ints = [int(token) for token in tokens if token.isdigit()]
  return (value, ints) if rest == len(tokens) else None


def chain(
  tokens: list[str], at: int, depth: int, operations: dict[str, Callable]
) -> tuple[Fraction, int]:
  """Operands joined by `operations`, from the left; (value, next position)."""

  def operand(at: int) -> tuple[Fraction, int]:
    if operations is SUMS:
      return chain(tokens, at, depth, PRODUCTS)
    return atom(tokens, at, depth)

  value, at = operand(at)
  while at < len(tokens) and tokens[at] in operations:
    right, after = operand(at + 1)
    value, at = operations[tokens[at]](value, right), after
  return value, at


def atom(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
  """An integer or a bracket. Raises ValueError where neither stands."""
  if at < len(tokens) and tokens[at].isdigit():
    return Fraction(int(tokens[at])), at + 1
  if at >= len(tokens) or tokens[at] != '(' or depth >= DEEPEST:
    raise ValueError('no operand')
  value, at = chain(tokens, at + 1, depth + 1, SUMS)
  if at >= len(tokens) or tokens[at] != ')':
    raise ValueError('no closing bracket')
  return value, at + 1
