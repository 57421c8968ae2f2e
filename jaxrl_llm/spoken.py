"""Where a completion gives its verdict, and which it should give: rlbff_generative.

A verdict is one of two words, each a single token, and the last one before the stop
token. A completion that ran out of room, or ends with another word, has none.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_llm.sources import Source, changed
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import Batch, InputError, State


def judged(source: Source, tokenizer, record: Callable[[int], Record]) -> Source:
  """The source with what its records' `extra['verdicts']`, two words, are about.

  extra['verdict'] [B, G, T] is 1 at a verdict, 'verdict_first' and 'verdict_second' [B]
  are the two words' tokens, 'verdict_side' [B] is 1 where the first word is the
  record's answer, else -1.
  """
  words = record(0).extra.get('verdicts')
  if words is None:
    raise InputError(
      'config.source.verdict: the records of config.task have no verdicts. Set it to '
      "False, or config.task.name='principles'."
    )
  ids = tokens(tokenizer, words)

  def marked(batch: Batch, state: State, step: int) -> Batch:
    answers = [record(int(i)).answer for i in batch.prompt_id]
    side = [1.0 if answer == words[0] else -1.0 for answer in answers]
    told = {
      'verdict': places(batch, ids),
      'verdict_side': np.array(side, np.float32),
    }
    told |= asked(ids, len(answers))
    return batch.replace(extra=batch.extra | told)

  return changed(source, marked)


def asked(ids: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """The two tokens whose odds are asked for, for so many prompts."""
  return {
    'verdict_first': np.repeat(ids[:1], count),
    'verdict_second': np.repeat(ids[1:], count),
  }


def tokens(tokenizer, words: Sequence[str]) -> np.ndarray:
  """The token of each word, [2] int32."""
  found = [tokenizer.encode(word, add_special_tokens=False) for word in words]
  if len(found) != 2 or any(len(x) != 1 for x in found) or found[0] == found[1]:
    raise InputError(
      f'verdicts {words!r} are the tokens {found}; give two words, each of one token '
      'of its own, with the space before them that they have in a text.'
    )
  return np.array([x[0] for x in found], np.int32)


def places(batch: Batch, ids: np.ndarray) -> np.ndarray:
  """[B, G, T]: 1 at the last token before the stop token, where it is one of `ids`."""
  last = batch.length - 2
  said = np.take_along_axis(batch.completions, np.maximum(last, 0)[..., None], -1)
  there = np.isin(said[..., 0], ids) & (last >= 0) & (batch.truncated == 0)
  at = np.arange(batch.completions.shape[-1]) == last[..., None]
  return np.float32(at & there[..., None])
