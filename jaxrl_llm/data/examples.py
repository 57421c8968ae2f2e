"""Stored completions as a batch: demonstrations, pairs, rankings, labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.sources import Text, pad
from jaxrl_llm.types import Batch, InputError


class Example(NamedTuple):
  """A prompt and its completions: (chosen, rejected), a ranking, or one alone."""

  messages: list[dict]
  completions: Sequence[str]
  reward: Sequence[float]  # Score or label of each completion.


def check_kind(rows: Batch, method: str) -> None:
  """Refuses completions that the method would misread; others it checks itself."""
  if method == 'kto' and not np.isin(rows.reward, (-1.0, 1.0)).all():
    raise InputError(
      'kto: rewards are +1 (desirable) or -1 (undesirable); the data have '
      f'{sorted(set(rows.reward.ravel().tolist()))[:5]}.'
    )
  if method == 'sft' and rows.completions.shape[1] != 1:
    raise InputError(
      'sft: every completion is imitated, and the data have '
      f'{rows.completions.shape[1]} a prompt. Keep the good ones, as groups of one.'
    )


def encode(
  examples: Sequence[Example],
  *,
  text: Text,
  tokens: Callable[[str], list[int]],
  stop_id: int,
  max_length: int,
) -> Batch:
  """Examples of one group size as a host `Batch` [N, G, max_length].

  Args:
    text: encodes prompts.
    tokens: completion text to ids, without special tokens.
    stop_id: ends every completion that fits; a longer one is cut and is `truncated`.
    max_length: room for a completion, the stop token included.
  """
  groups = {len(e.completions) for e in examples}
  if len(groups) != 1:
    raise InputError(
      f'Examples have {sorted(groups)} completions; every one needs the same number.'
    )
  prompts, prompt_length = pad(
    [text.encode(e.messages) for e in examples], text.max_prompt
  )
  rows = [[*tokens(c), stop_id] for e in examples for c in e.completions]
  if empty := [i for i, r in enumerate(rows) if len(r) == 1]:
    raise InputError(
      f'Example {empty[0] // groups.pop()} has an empty completion. Drop it.'
    )
  shape = (len(examples), -1)
  cut = np.array([len(r) > max_length for r in rows], np.float32).reshape(shape)
  padded, length = pad([r[:max_length] for r in rows], max_length)
  batch = types.make_batch(
    prompts,
    prompt_length,
    padded.reshape(len(examples), -1, max_length),
    length.reshape(shape),
  )
  reward = np.array([e.reward for e in examples], np.float32)
  return batch.replace(truncated=cut, reward=reward)
