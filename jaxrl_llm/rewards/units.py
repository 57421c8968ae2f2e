"""A number with its unit: '3 km' is '3000 m', '36 km/h' is '10 m/s'.

Exact, by fractions. Units are products and quotients of the names below with prefixes
and integer powers; a temperature in degrees has an offset and is its own dimension.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from jaxrl_llm.rewards import numbers

LONGEST = 100  # Characters.
NUMBER = re.compile(rf'[-+]?\s?\$?(?:{numbers.UNSIGNED})(?:\s?/\s?[0-9]+(?![0-9.]))?')
POWER_OF_TEN = re.compile(
  r'\s*(?:\*|x|\\times|\\cdot)\s*10\s*\^\s*\{?([-+]?[0-9]{1,2})\}?'
)
FACTOR = re.compile(r'([*/])?([^\W\d_]+|°[CF]?|[%$])(?:\^\{?|\*\*)?(-?[1-9])?\}?')
LATEX = re.compile(r'\\(?:text|mathrm|,|;|!|quad)|[{}$~]')

PREFIXES = {
  **{'n': -9, 'u': -6, 'µ': -6, 'm': -3, 'c': -2, 'd': -1, '': 0, 'h': 2, 'k': 3},
  **{'M': 6, 'G': 9, 'T': 12},
}
# Name -> (size, dimensions by base unit); those of PREFIXED may have a prefix.
BASES = {'m': 1, 's': 1, 'A': 1, 'K': 1, 'mol': 1, 'rad': 1, 'g': Fraction(1, 1000)}
DERIVED = {
  'N': (1, 'kg m s^-2'),
  'J': (1, 'kg m^2 s^-2'),
  'W': (1, 'kg m^2 s^-3'),
  'Pa': (1, 'kg m^-1 s^-2'),
  'Hz': (1, 's^-1'),
  'C': (1, 'A s'),
  'V': (1, 'kg m^2 s^-3 A^-1'),
  'L': (Fraction(1, 1000), 'm^3'),
  'l': (Fraction(1, 1000), 'm^3'),
  'bar': (100_000, 'kg m^-1 s^-2'),
}
PLAIN = {
  'min': (60, 's'),
  'h': (3600, 's'),
  'hr': (3600, 's'),
  'hour': (3600, 's'),
  'day': (86_400, 's'),
  'week': (604_800, 's'),
  'second': (1, 's'),
  'sec': (1, 's'),
  'minute': (60, 's'),
  'meter': (1, 'm'),
  'metre': (1, 'm'),
  'kilometer': (1000, 'm'),
  'kilometre': (1000, 'm'),
  'centimeter': (Fraction(1, 100), 'm'),
  'gram': (Fraction(1, 1000), 'kg'),
  'kilogram': (1, 'kg'),
  'liter': (Fraction(1, 1000), 'm^3'),
  'litre': (Fraction(1, 1000), 'm^3'),
  'inch': (Fraction(254, 10_000), 'm'),
  'in': (Fraction(254, 10_000), 'm'),
  'ft': (Fraction(3048, 10_000), 'm'),
  'foot': (Fraction(3048, 10_000), 'm'),
  'feet': (Fraction(3048, 10_000), 'm'),
  'yd': (Fraction(9144, 10_000), 'm'),
  'mile': (Fraction(1_609_344, 1000), 'm'),
  'mi': (Fraction(1_609_344, 1000), 'm'),
  'mph': (Fraction(44_704, 100_000), 'm s^-1'),
  'lb': (Fraction(45_359_237, 100_000_000), 'kg'),
  'eV': (Fraction(1_602_176_634, 10**28), 'kg m^2 s^-2'),
  'dollar': (1, '$'),
  'cent': (Fraction(1, 100), '$'),
  '%': (Fraction(1, 100), ''),
  'percent': (Fraction(1, 100), ''),
}


class Quantity(NamedTuple):
  """A value in base units, and the power of each of them."""

  value: Fraction
  dimensions: dict[str, int]


def equal(gold: str, answer: str | None) -> bool:
  """Whether both are the same quantity.

  A gold answer with a decimal point or a power of ten allows a relative error of 1e-6.
  One without a unit takes an answer in any unit by its number alone; one with a unit
  takes no bare number.
  """
  want, got = parse(gold), parse(answer)
  if want is None or got is None:
    return False
  if not want.dimensions and '%' not in gold and number(answer)[0] is not None:
    return number(answer)[0] == want.value
  slack = abs(want.value) / 10**6 if re.search(r'\.[0-9]|10\s*\^', gold) else 0
  same = want.dimensions == got.dimensions
  return same and abs(want.value - got.value) <= slack


def parse(text: str | None) -> Quantity | None:
  """'3 km', '$5', '2.5 m/s^2', '3 \\times 10^8 m/s' as a quantity, or None."""
  if text is None or len(text) > LONGEST:
    return None
  found, rest = number(text)
  if found is None:
    return None
  money = '$' in text.lstrip('-+ ')[:1] and not rest
  size, dimensions = unit('$' if money else rest) or (None, {})
  return None if size is None else Quantity(found * size, dimensions)


def number(text: str) -> tuple[Fraction | None, str]:
  """The number that the text begins with, and what follows it."""
  text = numbers.plain_signs(text.strip()).removeprefix('\\').rstrip('.')
  text = text.removeprefix('$') if text.count('$') == 2 else text
  match = NUMBER.match(text)
  if not match:
    return None, text
  found, rest = numbers.parse(match.group()), text[match.end() :]
  ten = POWER_OF_TEN.match(rest)
  if ten and found is not None:
    found, rest = found * Fraction(10) ** int(ten[1]), rest[ten.end() :]
  return found, LATEX.sub(' ', rest).strip()


def unit(text: str) -> tuple[Fraction, dict[str, int]] | None:
  """The size and dimensions of 'm/s^2', 'kg m^2', 'miles per hour', or None."""
  text = re.sub(r'\s*\bper\b\s*', '/', text)
  text = re.sub(r'\s*([*/·])\s*', r'\1', text.replace('·', '*').strip())
  text = re.sub(r'\s+', '*', text)
  size, dimensions, at = Fraction(1), {}, 0
  while at < len(text):
    match = FACTOR.match(text, at)
    one = known(match[2]) if match else None
    if one is None or (at > 0) != bool(match[1]):
      return None
    power = int(match[3] or 1) * (-1 if match[1] == '/' else 1)
    size *= one[0] ** power
    for name, own in one[1].items():
      dimensions[name] = dimensions.get(name, 0) + own * power
    at = match.end()
  return size, {k: v for k, v in dimensions.items() if v}


def known(name: str) -> tuple[Fraction, dict[str, int]] | None:
  """A unit's size and dimensions, prefix and plural included."""
  if name in ('$', '°', '°C', '°F'):
    return Fraction(1), {name: 1}
  for word in (name, name.removesuffix('s'), name.removesuffix('es')):
    if word in PLAIN:
      size, base = PLAIN[word]
      return Fraction(size), powers(base)
  for prefix, ten in PREFIXES.items():
    rest = name.removeprefix(prefix)
    if not name.startswith(prefix) or rest not in {**BASES, **DERIVED}:
      continue
    size, base = DERIVED.get(rest) or (BASES[rest], 'kg' if rest == 'g' else rest)
    return size * Fraction(10) ** ten, powers(base)
  return None


def powers(text: str) -> dict[str, int]:
  """'kg m^2' as {'kg': 1, 'm': 2}."""
  pairs = (part.partition('^') for part in text.split())
  return {name: int(power or 1) for name, _, power in pairs}
