"""Strings that end a completion: the host looks for them in its text."""

import bisect
from collections.abc import Callable, Sequence


def stop_strings(decode: Callable, strings: tuple[str, ...]) -> Callable:
  """A `cut` of make_sampler: after the token that completes one of the strings."""
  said = lambda tokens: any(s in decode(tokens) for s in strings)

  def cut(tokens: Sequence[int]) -> int:
    if not said(tokens):
      return 0
    return 1 + bisect.bisect_left(
      range(1, len(tokens)), True, key=lambda n: said(tokens[:n])
    )

  return cut
