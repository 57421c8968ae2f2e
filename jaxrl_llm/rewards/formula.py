"""A mathematical answer as text, LaTeX or plain, to a tree.

A parser of its own, bounded in length and depth: what a model writes is never run.
"""

import re
from fractions import Fraction
from typing import Any, NamedTuple

LONGEST = 300  # Characters.
DEEPEST = 30  # Brackets.

DROPPED = re.compile(
  r'\\(?:left|right|displaystyle|,|!|;|:|quad|qquad|ldots|%|\$)|\^\\circ|\^\{\\circ\}'
  r'|\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)(?=\s*\{)|[$~]'
)
NAMED = re.compile(r'^(?:[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?|[fghy]\([a-z]\))\s*=(?!=)\s*')
TOKEN = re.compile(
  r'\s*(?:(?P<number>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?'
  r'|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<name>[A-Za-z]+|[{}|])|(?P<word>[A-Za-z]+)'
  r'|(?P<sign>\*\*|[-+*/^(){}\[\],|_=]))\s*'
)
# What stands in brackets; \frac{1,000}{3} has none.
LISTED = re.compile(r'(?:(?<=[(\[])|(?<=\\\{))[^()\[\]{}]+(?=[)\]]|\\\})')
SPACED = re.compile(r'(?<!\\)\\ ')  # A space; two backslashes end a row.
SYMBOLS = str.maketrans(
  {
    '\N{MINUS SIGN}': '-',
    '\N{MULTIPLICATION SIGN}': '*',
    '\N{DIVISION SIGN}': '/',
    '\N{MIDDLE DOT}': '*',
    '\N{GREEK SMALL LETTER PI}': ' \\pi ',
    '\N{SUPERSCRIPT TWO}': '^2',
    '\N{INFINITY}': ' \\infty ',
    '\N{SQUARE ROOT}': '\\sqrt ',
  }
)
SIGNS = {'cdot': '*', 'times': '*', 'div': '/', '{': '\\{', '}': '\\}', '|': '|'}
FRACTIONS = ('frac', 'dfrac', 'tfrac')
LETTERS = set('xyzabcnmkrst')  # Two or three of them in a row are a product.
FUNCTIONS = (
  *('sqrt', 'sin', 'cos', 'tan', 'arcsin', 'arccos', 'arctan', 'sinh', 'cosh', 'tanh'),
  *('ln', 'log', 'exp', 'abs'),
)


class Tree(NamedTuple):
  """An operation and its parts: numbers, names, or further trees."""

  kind: str
  parts: tuple[Any, ...]


def normal(text: str) -> str:
  """The text without what does not change its meaning, and without 'x = '."""
  text = SPACED.sub(' ', text.translate(SYMBOLS)).replace('{,}', ',')
  text = DROPPED.sub('', text).strip().rstrip('.')
  while text.startswith('{') and text.endswith('}') and matched(text) == len(text) - 1:
    text = text[1:-1]
  return NAMED.sub('', text) if text.count('=') == 1 else text


def matched(text: str) -> int:
  """Where the brace that the text begins with is closed, or -1."""
  depth = 0
  for i, c in enumerate(text):
    depth += {'{': 1, '}': -1}.get(c, 0)
    if depth == 0:
      return i
  return -1


# ---- Text to trees -------------------------------------------------------------------


def parse(text: str) -> Tree:
  """The tree of a whole answer. Raises ValueError for text that is none."""
  tokens, at, text = [], 0, LISTED.sub(parted, text)
  for match in TOKEN.finditer(text):
    if match.start() != at:
      raise ValueError(text)
    tokens += spelled(match)
    at = match.end()
  if at != len(text) or not tokens:
    raise ValueError(text)
  tree, at = union(tokens)
  if at != len(tokens):
    raise ValueError(text)
  return tree


def parted(match: re.Match) -> str:
  """'1,234' in brackets is two numbers, but in '1,000, 2,000' there are two as well."""
  found = match[0]
  return found if re.search(r',\s|,0[0-9]', found) else found.replace(',', ', ')


def spelled(match: re.Match) -> list[tuple[str, str]]:
  """One match as tokens: (kind, text)."""
  kind, text = match.lastgroup, match.group(match.lastgroup)
  if kind == 'number':
    return [('number', text.replace(',', ''))]
  if kind == 'sign':
    return [('sign', '^' if text == '**' else text)]
  if text in SIGNS:
    return [('sign', SIGNS[text])]
  if kind == 'name' or text in FUNCTIONS or len(text) == 1:
    return [('name', text)]
  if text in ('pi', 'infty'):
    return [('name', text)]
  if len(text) > 3 or not set(text) <= LETTERS:
    raise ValueError(text)  # A word.
  return [('name', letter) for letter in text]


def union(tokens) -> tuple[Tree, int]:
  """Parts between \\cup, in any order; bare parts between commas likewise."""
  found, at = listed(tokens, 0, 0)
  parts, sign = [found], None
  while at < len(tokens) and tokens[at] in (('name', 'cup'), ('sign', ',')):
    if sign not in (None, tokens[at]):
      raise ValueError('commas and unions')
    sign = tokens[at]
    found, at = listed(tokens, at + 1, 0)
    parts.append(found)
  return (parts[0] if len(parts) == 1 else Tree('set', tuple(parts))), at


def listed(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """A tuple, set or interval where one stands, else an expression."""
  opened = tokens[at][1] if at < len(tokens) and tokens[at][0] == 'sign' else ''
  if opened in ('(', '[', '\\{'):
    parts, after = members(tokens, at + 1, depth + 1)
    closed = tokens[after][1] if after < len(tokens) else ''
    if opened == '\\{' and closed == '\\}':
      return Tree('set', tuple(parts)), after + 1
    if len(parts) > 1 and closed in (')', ']'):
      return Tree(opened + closed, tuple(parts)), after + 1
  return total(tokens, at, depth)


def members(tokens, at: int, depth: int) -> tuple[list, int]:
  """What stands between commas."""
  parts = []
  while True:
    part, at = listed(tokens, at, bounded(depth))
    parts.append(part)
    if at >= len(tokens) or tokens[at] != ('sign', ','):
      return parts, at
    at += 1


def bounded(depth: int) -> int:
  if depth > DEEPEST:
    raise ValueError('too deep')
  return depth


def total(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """Terms with + and - between them; a sign may stand first."""
  left, at = product(tokens, at, depth)
  while at < len(tokens) and tokens[at] in (('sign', '+'), ('sign', '-')):
    sign = tokens[at][1]
    right, at = product(tokens, at + 1, depth)
    left = Tree(sign, (left, right))
  return left, at


def product(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """Factors with *, / or nothing between them."""
  left, at = signed(tokens, at, depth)
  while at < len(tokens):
    token = tokens[at]
    if token in (('sign', '*'), ('sign', '/')):
      right, at = signed(tokens, at + 1, depth)
      left = Tree(token[1], (left, right))
    elif (token[0] == 'name' and token[1] != 'cup') or token == ('sign', '('):
      if token[1] in FRACTIONS and tokens[at - 1][0] == 'number':
        raise ValueError('a mixed number, or a product')
      right, at = power(tokens, at, depth)
      left = Tree('*', (left, right))
    else:
      break
  return left, at


def signed(tokens, at: int, depth: int) -> tuple[Tree, int]:
  if at < len(tokens) and tokens[at] in (('sign', '-'), ('sign', '+')):
    part, after = signed(tokens, at + 1, bounded(depth + 1))
    return (Tree('minus', (part,)) if tokens[at][1] == '-' else part), after
  return power(tokens, at, depth)


def power(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """base ^ exponent, from the right."""
  base, at = atom(tokens, at, depth)
  if at < len(tokens) and tokens[at] == ('sign', '^'):
    exponent, at = signed(tokens, at + 1, bounded(depth + 1))
    return Tree('^', (base, exponent)), at
  return base, at


PAIRS = {'(': ')', '{': '}', '[': ']', '|': '|'}


def atom(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """A number, a name, a function's call or what stands in brackets."""
  if at >= len(tokens):
    raise ValueError('nothing')
  kind, text = tokens[at]
  if kind == 'number':
    return Tree('number', (Fraction(text),)), at + 1
  if kind == 'sign':
    if text not in PAIRS:
      raise ValueError(text)
    part, at = total(tokens, at + 1, bounded(depth + 1))
    if at >= len(tokens) or tokens[at] != ('sign', PAIRS[text]):
      raise ValueError('no closing bracket')
    return (Tree('call', ('abs', part)) if text == '|' else part), at + 1
  if text in FRACTIONS:
    top, at = short(tokens, at + 1, depth)
    bottom, at = short(tokens, at, depth)
    return Tree('/', (top, bottom)), at
  if text in FUNCTIONS:
    return function(tokens, at, depth)
  return named(tokens, at)


def function(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """sqrt{x}, \\sqrt[3]{x}, \\sin^2 x is refused: its meaning is a matter of taste."""
  name, at = tokens[at][1], at + 1
  if at < len(tokens) and tokens[at] in (('sign', '^'), ('sign', '_')):
    raise ValueError(name)
  if name == 'sqrt' and at < len(tokens) and tokens[at] == ('sign', '['):
    order, at = atom(tokens, at, depth)
    inner, at = short(tokens, at, depth)
    one = Tree('number', (Fraction(1),))
    return Tree('^', (inner, Tree('/', (one, order)))), at
  if name == 'sqrt':
    inner, at = short(tokens, at, depth)
  else:
    inner, at = argument(tokens, at, bounded(depth + 1))
  return Tree('call', (name, inner)), at


def argument(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """\\ln(2)^2 is (\\ln 2)^2 and \\sin 2x is \\sin(2x); \\ln x y is refused."""
  first = tokens[at] if at < len(tokens) else ('sign', '')
  if first == ('sign', '('):
    return atom(tokens, at, depth)
  inner, at = power(tokens, at, depth)
  while first[0] in ('number', 'name') and at < len(tokens) and letter(tokens[at]):
    if first[0] == 'name' and first[1] != 'pi':
      raise ValueError('a function of one factor, or of both')
    right, at = power(tokens, at, depth)
    inner = Tree('*', (inner, right))
  return inner, at


def letter(token: tuple[str, str]) -> bool:
  """Whether it is a variable or a constant."""
  return token[0] == 'name' and token[1] not in (*FUNCTIONS, *FRACTIONS, 'cup')


def short(tokens, at: int, depth: int) -> tuple[Tree, int]:
  """LaTeX's argument: what stands in braces, or a single digit, or one name."""
  if at < len(tokens) and tokens[at][0] == 'number' and len(tokens[at][1]) > 1:
    digits = tokens[at][1]
    if not digits.isdigit():
      raise ValueError(digits)
    tokens[at : at + 1] = [('number', digits[0]), ('number', digits[1:])]
  return atom(tokens, at, bounded(depth + 1))


def named(tokens, at: int) -> tuple[Tree, int]:
  """A variable, with its subscript."""
  name, at = tokens[at][1], at + 1
  if at + 1 < len(tokens) and tokens[at] == ('sign', '_'):
    if tokens[at + 1][0] == 'sign':
      raise ValueError('a long subscript')
    return Tree('name', (f'{name}_{tokens[at + 1][1]}',)), at + 2
  return Tree('name', (name,)), at
