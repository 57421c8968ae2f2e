"""How much of a quotation stands in a text: RapidFuzz's partial_ratio.

https://rapidfuzz.github.io/RapidFuzz/Usage/fuzz.html, without its package.
"""

from collections import defaultdict


def partial_ratio(one: str, other: str) -> float:
  """From 0 to 100: the best `ratio` of the shorter text and a part of the longer.

  Parts are of the shorter one's length, or shorter where they begin or end the longer.
  Case and spaces count. 0 where one of two is empty, 100 where both are.
  """
  short, long = sorted((one, other), key=len)
  if not short or short in long:
    return 100.0 * (bool(short) or not long)
  size, places = len(short), letters(short)
  spans = ((i, i + size) for i in range(1 - size, len(long)))
  parts = {long[max(start, 0) : end] for start, end in spans}
  best = max(ratio(places, size, part) for part in parts)
  if len(short) == len(long):  # Neither is the shorter one.
    best = max(best, *(ratio(letters(long), size, part) for part in pieces(short)))
  return best


def pieces(text: str) -> set[str]:
  """Beginnings and ends of a text, the whole included."""
  return {x for i in range(len(text)) for x in (text[i:], text[: i + 1])}


def ratio(places: dict[str, int], size: int, part: str) -> float:
  """200 lcs / (size + len(part)), lcs the longest common subsequence's length.

  That is 100 less what must be deleted and inserted, as a share of both lengths. By
  Hyyrö's bits (2004): a 0 in `state` is a letter of the subsequence.
  """
  whole = state = (1 << size) - 1
  for letter in part:
    met = state & places.get(letter, 0)
    state = ((state + met) | (state - met)) & whole
  return 200.0 * (size - state.bit_count()) / (size + len(part))


def letters(text: str) -> dict[str, int]:
  """Where each letter stands, as bits."""
  found: dict[str, int] = defaultdict(int)
  for i, letter in enumerate(text):
    found[letter] |= 1 << i
  return found
