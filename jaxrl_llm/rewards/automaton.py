"""Regular expressions in time linear in the text, whatever the pattern.

Python's own matcher backtracks: '(a+)+b' on thirty letters a takes minutes. This one
follows all ways at once (Thompson, 1968), so a pattern of n parts takes at most n steps
a character. Groups, classes, alternatives, repetition and anchors are understood; what
no automaton knows (back references, look-around) is refused.
"""

import re
from collections.abc import Callable
from re import _constants as codes
from re import _parser as parser
from typing import NamedTuple

from jaxrl_llm.types import InputError

STATES = 2000  # Of one automaton; repetitions are written out.
CATEGORIES = {
  codes.CATEGORY_DIGIT: r'\d',
  codes.CATEGORY_NOT_DIGIT: r'\D',
  codes.CATEGORY_SPACE: r'\s',
  codes.CATEGORY_NOT_SPACE: r'\S',
  codes.CATEGORY_WORD: r'\w',
  codes.CATEGORY_NOT_WORD: r'\W',
}
PLAIN_FLAGS = re.UNICODE | re.DOTALL | re.IGNORECASE


class State(NamedTuple):
  """Goes on by a character, by nothing, or where the place allows."""

  takes: Callable[[str], bool] | None  # Of one character.
  holds: Callable[[str, int], bool] | None  # Of the text and a position.
  then: list[int]


class Automaton(NamedTuple):
  states: list[State]
  start: int
  end: int


def compiled(pattern: str) -> Automaton:
  """Raises InputError for what is no regular expression, or one that is refused."""
  try:
    tree = parser.parse(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    raise InputError(f'{pattern!r} is no regular expression: {error}.') from error
  flags = re.RegexFlag(tree.state.flags)
  if flags & ~PLAIN_FLAGS:
    raise InputError(f'{pattern!r}: flags other than (?s) and (?i) are not understood.')
  states: list[State] = []
  end = added(states, None, None, [])
  return Automaton(states, chained(states, tree, end, flags), end)


def fullmatch(automaton: Automaton, text: str) -> bool:
  """Whether the whole text has the form."""
  return matched(automaton, text, anywhere=False)


def search(automaton: Automaton, text: str) -> bool:
  """Whether some part of the text has the form."""
  return matched(automaton, text, anywhere=True)


def matched(automaton: Automaton, text: str, *, anywhere: bool) -> bool:
  states, start, end = automaton
  now = reached(states, {start}, text, 0)
  for at, character in enumerate(text):
    if anywhere and end in now:
      return True
    through = {
      t
      for s in now
      if (takes := states[s].takes) and takes(character)
      for t in states[s].then
    }
    now = reached(states, through | ({start} if anywhere else set()), text, at + 1)
    if not now:
      return False
  return end in now


def reached(states: list[State], begun: set[int], text: str, at: int) -> set[int]:
  """All states that are reached without a character."""
  found, left = set(begun), list(begun)
  while left:
    state = states[left.pop()]
    if state.takes or (state.holds and not state.holds(text, at)):
      continue
    new = [s for s in state.then if s not in found]
    found.update(new)
    left += new
  return found


# ---- Patterns to automata: every part is built before what comes ahead of it ---------


def added(states, takes, holds, then: list[int]) -> int:
  if len(states) >= STATES:
    raise InputError(f'a regular expression has more than {STATES} parts written out.')
  states.append(State(takes, holds, then))
  return len(states) - 1


def chained(states, parts, after: int, flags) -> int:
  """The state from which the parts lead to `after`."""
  for code, detail in reversed(list(parts)):
    after = PARTS.get(code, refused)(states, code, detail, after, flags)
  return after


def refused(states, code, detail, after, flags):
  raise InputError(f'a regular expression with {str(code).lower()} is not understood.')


def character(states, code, detail, after, flags) -> int:
  return added(states, test(code, detail, flags), None, [after])


def branch(states, code, detail, after, flags) -> int:
  ways = [chained(states, way, after, flags) for way in detail[1]]
  return added(states, None, None, ways)


def group(states, code, detail, after, flags) -> int:
  _, more, fewer, inner = detail
  return chained(states, inner, after, (flags | more) & ~re.RegexFlag(fewer))


def repeat(states, code, detail, after, flags) -> int:
  """At least and at most so many times, greedy or not: the language is the same."""
  least, most, inner = detail
  if most is codes.MAXREPEAT:
    loop = added(states, None, None, [after])
    states[loop].then.append(chained(states, inner, loop, flags))
    after = loop
  else:
    out = after
    for _ in range(most - least):
      after = added(states, None, None, [chained(states, inner, after, flags), out])
  for _ in range(least):
    after = chained(states, inner, after, flags)
  return after


def anchor(states, code, detail, after, flags) -> int:
  word = lambda text, i: 0 <= i < len(text) and bool(re.match(r'\w', text[i]))
  edge = lambda text, at: word(text, at - 1) != word(text, at)
  holds = {
    codes.AT_BEGINNING: lambda text, at: at == 0,
    codes.AT_BEGINNING_STRING: lambda text, at: at == 0,
    codes.AT_END: lambda text, at: (
      at == len(text) or (at == len(text) - 1 and text[at] == '\n')
    ),
    codes.AT_END_STRING: lambda text, at: at == len(text),
    codes.AT_BOUNDARY: edge,
    codes.AT_NON_BOUNDARY: lambda text, at: not edge(text, at),
  }
  return added(states, None, holds[detail], [after])


PARTS = {
  codes.LITERAL: character,
  codes.NOT_LITERAL: character,
  codes.ANY: character,
  codes.IN: character,
  codes.BRANCH: branch,
  codes.SUBPATTERN: group,
  codes.MAX_REPEAT: repeat,
  codes.MIN_REPEAT: repeat,
  codes.AT: anchor,
}


def test(code, detail, flags) -> Callable[[str], bool]:
  """Whether a character fits, in either case with (?i)."""
  one = single(code, detail, flags)
  if flags & re.IGNORECASE:
    return lambda c: one(c) or one(c.lower()) or one(c.upper())
  return one


def single(code, detail, flags) -> Callable[[str], bool]:
  if code is codes.ANY:
    return lambda c: bool(flags & re.DOTALL) or c != '\n'
  if code is codes.LITERAL:
    return lambda c: c == chr(detail)
  if code is codes.NOT_LITERAL:
    return lambda c: c != chr(detail)
  if code is codes.RANGE:
    return lambda c: len(c) == 1 and detail[0] <= ord(c) <= detail[1]
  if code is codes.CATEGORY:
    form = re.compile(CATEGORIES[detail])
    return lambda c: bool(form.match(c))
  negate = detail[0][0] is codes.NEGATE
  members = [single(*item, flags) for item in detail[negate:]]
  return lambda c: any(member(c) for member in members) != negate
