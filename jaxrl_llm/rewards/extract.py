"""Completion text to the answer in it: a string, or None where there is none.

Every function takes time linear in the text and runs nothing that the text says.
"""

import difflib
import re
from collections.abc import Callable, Iterable

from jaxrl_llm.rewards import numbers
from jaxrl_llm.types import InputError

TAIL = 300  # Characters in which a '####' line counts; a bound on answer spraying.
# A sign counts where it does not subtract: in '5-3' the last number is 3.
NUMBER = re.compile(
  rf'(?:(?<![0-9A-Za-z)])[-+])?\$?(?:{numbers.UNSIGNED})(?:\s?/\s?[0-9]+)?%?'
)

CHOICES = (
  re.compile(r'(?i:answer|option|choice)(?i:\s{0,3}is)?[\s:*]{0,5}\(?([A-J])\)?(?!\w)'),
  re.compile(r'\(([A-Ja-j])\)'),
  re.compile(r'\A\W{0,5}([A-Ja-j])(?:[.):]?\W{0,5}\Z|[.):]\s)'),
)


def last_number(text: str) -> str | None:
  """The last number: '3 + 4 = 7.' gives '7'."""
  found = None
  for match in NUMBER.finditer(numbers.plain_signs(text)):
    found = match.group()
  return found


def first_number(text: str) -> str | None:
  """The first number: '7, since 3 + 4 = 7' gives '7'."""
  match = NUMBER.search(numbers.plain_signs(text))
  return match.group() if match else None


def answer_tag(text: str) -> str | None:
  """What stands in the last <answer>...</answer>, stripped."""
  start, end = answer_span(text) or (0, -1)
  return text[start:end].strip() if end >= 0 else None


def following(text: str, mark: str) -> str:
  """What follows the last `mark`, '' where there is none; all of it for no mark."""
  if not mark:
    return text
  return text.rpartition(mark)[2] if mark in text else ''


def answer_span(text: str) -> tuple[int, int] | None:
  """Where the characters between the last <answer> and </answer> begin and end."""
  end = text.rfind('</answer>')
  start = text.rfind('<answer>', 0, max(end, 0))
  return (start + len('<answer>'), end) if start >= 0 else None


def boxed(text: str) -> str | None:
  """What stands in the last \\boxed{...}, whose braces may nest."""
  start = text.rfind('\\boxed{')
  if start < 0:
    return None
  start += len('\\boxed{')
  depth = 1
  for i in range(start, len(text)):
    depth += {'{': 1, '}': -1}.get(text[i], 0)
    if depth == 0:
      return text[start:i].strip()
  return None


def hash_answer(text: str) -> str | None:
  """The rest of the line after the last '####', as GSM8K writes its answers."""
  _, mark, rest = text[-TAIL:].rpartition('####')
  return rest.strip().partition('\n')[0].strip() if mark else None


def choice(text: str) -> str | None:
  """The letter of a multiple choice, as a capital: of the last 'answer is (B)', else of
  the last '(B)', else the text itself.
  """
  tail = text[-TAIL:]
  for form in CHOICES:
    if found := form.findall(tail):
      return found[-1].upper()
  return None


def whole(text: str) -> str | None:
  """The text itself, stripped; None if nothing is left."""
  return text.strip() or None


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
  f.__name__: f
  for f in (last_number, first_number, answer_tag, boxed, hash_answer, choice, whole)
}


def by_name(name: str) -> Callable[[str], str | None]:
  """The function of that name. Raises InputError with the nearest names."""
  if name not in EXTRACTORS:
    raise InputError(f'extract: {nearest(name, EXTRACTORS)}')
  return EXTRACTORS[name]


def nearest(name: str, names: Iterable[str]) -> str:
  """'no x; did you mean y?', or all names where none is close."""
  names = sorted(names)
  close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
  if close:
    return f'there is no {name!r}; did you mean {" or ".join(close)}?'
  return f'there is no {name!r}; there are {", ".join(names)}.'
