"""Which of a completion's tokens are its answer, for methods that ask: grpo_care."""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm import build
from jaxrl_llm.rewards import extract, think_format
from jaxrl_llm.sources import Source, changed
from jaxrl_llm.types import Batch, InputError, State


def thought(text: str) -> tuple[int, int] | None:
  """The answer of a text in the form of rewards/think_format.py, no other."""
  match = think_format.matched(text)
  return match.span(2) if match else None


# A text to the characters of its answer, from and to; None where it has none.
SPANS: dict[str, Callable[[str], tuple[int, int] | None]] = {
  'think_format': thought,
  'answer_tag': extract.answer_span,
  'whole': lambda text: (0, len(text)),
}


def answered(source: Source, kind: str, decode: Callable) -> Source:
  """The source with extra['answer'] [B, G, T]: 1 where a token is of the answer.

  Args:
    kind: one of SPANS. Where the text has no such form the mask is empty.
    decode: token ids to text, without the stop token.
  """
  if kind not in SPANS:
    raise InputError(f'config.source.answer={kind!r}. {build.near(kind, SPANS)}')

  def marked(batch: Batch, state: State, step: int) -> Batch:
    mask = np.zeros(batch.completions.shape, np.float32)
    for at in np.ndindex(*batch.length.shape):
      tokens = batch.completions[at][: batch.length[at]]
      if (span := SPANS[kind](decode(tokens))) is not None:
        mask[at][inside(tokens, decode, *span)] = 1.0
    return batch.replace(extra=batch.extra | {'answer': mask})

  return changed(source, marked)


def inside(tokens: Sequence[int], decode: Callable, start: int, end: int) -> slice:
  """The tokens whose characters all lie from `start` to `end` of the text."""
  counts, size = range(len(tokens) + 1), lambda n: len(decode(tokens[:n]))
  first = bisect.bisect_left(counts, start, key=size)
  last = bisect.bisect_left(counts, end, key=size)
  return slice(first, last - (size(last) > end))
