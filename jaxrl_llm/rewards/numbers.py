"""Numbers as text: parsed by one regular expression, compared as fractions.

Nothing is evaluated: '9**9' and '10^1000' are no numbers, and digits, exponents and
length are bounded before any arithmetic.
"""

import re
from fractions import Fraction

LONGEST = 100  # Characters of a number; longer text is no number.
UNSIGNED = (
  r'(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?'
  r'(?:[eE][-+]?[0-9]{1,2}(?![0-9]))?'
  r'|\.[0-9]+'
)
FORM = re.compile(
  r'(?P<sign>[-+]?)\s?\\?\$?(?P<inner>[-+]?)'
  rf'(?P<number>{UNSIGNED})(?:\s?/\s?(?P<over>[0-9]+))?'
  r'\s?(?:\\?%)?(?:\\?\$)?\.?'
)
LATEX_FRACTION = re.compile(
  r'([-+]?)\\[dt]?frac(?:\{([0-9]+)\}\{([0-9]+)\}|([0-9])([0-9]))'
)


def plain_signs(text: str) -> str:
  """The text with Unicode's minus sign written as a hyphen."""
  return text.replace('\N{MINUS SIGN}', '-')


def parse(text: str | None) -> Fraction | None:
  """'1,000' '$5' '-3.50' '50%' '1/2' '\\frac{1}{2}' '2e3' as a fraction, or None.

  A percent sign is dropped, so '50%' is 50. The whole text has to be one number.
  """
  if text is None or len(text) > LONGEST:
    return None
  text = plain_signs(text.strip())
  latex = LATEX_FRACTION.fullmatch(text.strip('$'))
  match = FORM.fullmatch(latex.expand(r'\1\2\4/\3\5') if latex else text)
  if match is None or (match['sign'] and match['inner']):
    return None
  value = Fraction(match['number'].replace(',', ''))
  over = int(match['over'] or 1)
  if over == 0:
    return None
  return -value / over if '-' in (match['sign'], match['inner']) else value / over


def equal(gold: str, answer: str | None) -> bool:
  """Whether both are numbers, and the same.

  A gold answer with a decimal point allows a relative error of 1e-6, others none.
  """
  want, got = parse(gold), parse(answer)
  if want is None or got is None:
    return False
  slack = abs(want) / 10**6 if '.' in gold.strip().rstrip('.') else 0
  return abs(want - got) <= slack
