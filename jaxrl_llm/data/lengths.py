"""How many examples the policies for length take, said before training."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrl_llm.types import InputError


class Found(NamedTuple):
  """Tokens of N examples' prompts and longest completions [N, 2]; who is left [N]; and
  tokens of the longest group that is left, prompts and completions, as they are read.
  """

  sizes: np.ndarray
  kept: np.ndarray
  longest: int


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


def measured(found: Found, e) -> tuple:
  """Of prompts and completions: tokens [N], how many fit, the option, the policy."""
  asked, said = found.sizes.T
  return (
    ('prompt', asked, e.max_prompt, 'max_prompt', f'long_prompt={e.long_prompt!r}'),
    (
      'completion',
      said,
      e.max_length,
      'max_length',
      f'long_completion={e.long_completion!r}',
    ),
  )


def over(found: Found, encode) -> Iterator[str]:
  """How many prompts, and completions, are longer than fits."""
  for what, sizes, room, option, policy in measured(found, encode):
    if count := int((sizes > room).sum()):
      yield (
        f'{count} with a {what} over {option}={room}, the longest {sizes.max()} tokens '
        f'({policy})'
      )


def advice(found: Found, encode) -> Iterator[str]:
  """What to raise where every example is dropped."""
  for what, sizes, room, option, _ in measured(found, encode):
    if len(long := sizes[sizes > room]):
      yield (
        f'Raise config.source.{option}={room}: the shortest {what} that does not fit '
        f'has {long.min()} tokens, the longest {long.max()}.'
      )
