"""How many examples the policies for length take, said before training."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrl_llm.types import InputError

# What is measured, the option that says how much fits, and the one for what does not.
MEASURED = (
  ('prompt', 'max_prompt', 'long_prompt'),
  ('completion', 'max_length', 'long_completion'),
)


class Found(NamedTuple):
  """Tokens of N examples' prompts and longest completions [N, 2]; who is left [N]."""

  sizes: np.ndarray
  kept: np.ndarray


def report(found: Found, encode, split: str) -> list[str]:
  """A line to say which examples are too long, if any are.

  Args:
    encode: an examples.Encoder: its options for length.
    split: 'training' or 'held-out'.

  Raises:
    InputError: no example is left.
  """
  total, left = len(found.kept), int(found.kept.sum())
  if not left:
    raise InputError(
      f'config.data: all {total} {split} examples are dropped for their length. '
      f'{" ".join(advice(found, encode))}'
    )
  told = [*over(found, encode)]
  if not told and left == total:
    return []
  return [
    f'Of {total} {split} examples {total - left} are dropped for their length: '
    f'{" and ".join(told) or "none of their tokens is trained"}.'
  ]


def over(found: Found, encode) -> Iterator[str]:
  """How many prompts, and completions, are longer than fits."""
  for (what, room, policy), sizes in zip(MEASURED, found.sizes.T):
    if count := int((sizes > getattr(encode, room)).sum()):
      yield (
        f'{count} with a {what} over {room}={getattr(encode, room)}, the longest '
        f'{sizes.max()} tokens ({policy}={getattr(encode, policy)!r})'
      )


def advice(found: Found, encode) -> Iterator[str]:
  """What to raise where every example is dropped."""
  for (what, room, _), sizes in zip(MEASURED, found.sizes.T):
    if len(long := sizes[sizes > getattr(encode, room)]):
      yield (
        f'Raise config.source.{room}={getattr(encode, room)}: the shortest {what} that '
        f'does not fit has {long.min()} tokens, the longest {long.max()}.'
      )
