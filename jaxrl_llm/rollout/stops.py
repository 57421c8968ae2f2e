"""Strings that end a completion: the host looks for them in its text."""

import bisect
from collections.abc import Callable, Mapping, Sequence

from jaxrl_llm.types import InputError


def stop_strings(
  decode: Callable,
  strings: Sequence[str] = (),
  own: Mapping[int, Sequence[str]] | None = None,
) -> Callable:
  """A `cut` of make_sampler: after the token that completes one of the strings.

  Args:
    strings: of all prompts.
    own: by prompt id, strings that end completions of that prompt alone.
  """

  def cut(tokens: Sequence[int], prompt: int) -> int:
    ends = *strings, *(own or {}).get(int(prompt), ())
    said = lambda tokens: any(s in decode(tokens) for s in ends)
    if not (ends and said(tokens)):
      return 0
    return 1 + bisect.bisect_left(
      range(1, len(tokens)), True, key=lambda n: said(tokens[:n])
    )

  return cut


def parted(strings: tuple[str, ...], tokenizer) -> tuple[tuple, tuple[int, ...]]:
  """Strings that end a completion: those that text shows, and as ids those that it
  does not, since they are special tokens.

  Raises:
    InputError: one is empty, or neither text nor a special token.
  """
  added = tokenizer.added_tokens_decoder.items()
  hidden = {token.content: i for i, token in added if token.special}
  for string in strings:
    if not (isinstance(string, str) and string):
      raise InputError(
        f'config.source.stop_strings={strings!r}: every one is text, and not empty.'
      )
    within = [token for token in hidden if token in string]
    if within and string not in hidden:
      raise InputError(
        f'config.source.stop_strings: {string!r} holds the special token '
        f'{within[0]!r}, which text does not show. Give the token alone, or the rest.'
      )
  ids = tuple(hidden[string] for string in strings if string in hidden)
  return tuple(string for string in strings if string not in hidden), ids
