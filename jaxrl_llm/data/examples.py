"""Stored completions as a batch: demonstrations, pairs, rankings, labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.data.chat import Coder, Messages, Prompt
from jaxrl_llm.types import Batch, InputError


class Example(NamedTuple):
  """A prompt and its completions: (chosen, rejected), a ranking, or one alone."""

  prompt: Prompt
  completions: Sequence[Messages | str]
  reward: Sequence[float]  # Score or label of each completion.
  extra: Mapping[str, float] = {}


class Data(NamedTuple):
  """Training and held-out examples, read when they are asked for."""

  train: Sequence[Example]
  test: Sequence[Example]
  digest: str = ''  # Of every row; a resumed run must find the same.
  report: Sequence[str] = ()  # Lines to say before training.


class Encoded(NamedTuple):
  """A host batch, and how many groups were left out and completions cut for length."""

  batch: Batch
  dropped: int
  cut: int


Encode = Callable[[Sequence[Example]], Encoded]

POLICIES = {
  'long_prompt': ('error', 'drop', 'cut'),
  'long_completion': ('cut', 'drop', 'error'),
}


def encoder(
  coder: Coder,
  *,
  max_prompt: int,
  max_length: int,
  long_prompt: str = 'error',
  long_completion: str = 'cut',
) -> Encode:
  """Returns `encode(examples) -> Encoded`, for examples of one group size.

  A group that is left out stays in its place, with `valid` and `mask` 0.

  Args:
    coder: see chat.coder.
    max_prompt, max_length: tokens; the completion's stop token is included.
    long_prompt: 'error', 'drop' (the group is left out) or 'cut' (its end stays).
    long_completion: 'cut' (its first tokens stay, it is `truncated` and has no stop
      token), 'drop' or 'error'. A group of which a completion has no trained token
      left is dropped.
  """
  for name, value in (
    ('long_prompt', long_prompt),
    ('long_completion', long_completion),
  ):
    if value not in POLICIES[name]:
      raise InputError(f'config.data.{name}={value!r}; there are {POLICIES[name]}.')

  def encode(examples: Sequence[Example]) -> Encoded:
    groups = {len(e.completions) for e in examples}
    if len(groups) != 1:
      raise InputError(
        f'Examples have {sorted(groups)} completions; every one needs the same number.'
      )
    rows = Rows((len(examples), groups.pop()), max_prompt, max_length)
    for i, example in enumerate(examples):
      prompt = coder.prompt(example.prompt)
      found = [coder.completion(example.prompt, c) for c in example.completions]
      over = (
        too_long(len(prompt), max_prompt, long_prompt, 'prompt'),
        too_long(
          max(len(c.tokens) for c in found), max_length, long_completion, 'length'
        ),
      )
      rows.put(i, prompt[-max_prompt:], found)
      if any(over) or not all(any(c.mask[:max_length]) for c in found):
        rows.drop(i)
    return rows.encoded(examples)

  return encode


def too_long(size: int, room: int, policy: str, what: str) -> bool:
  """Whether a group is to be left out for having this many tokens."""
  if size > room and policy == 'error':
    option = {'prompt': 'long_prompt', 'length': 'long_completion'}[what]
    raise InputError(
      f'A {option.removeprefix("long_")} of {size} tokens does not fit in {room}. '
      f'Raise config.source.max_{what} to {size}, or set config.data.{option} to '
      "'drop' or 'cut'."
    )
  return size > room and policy == 'drop'


class Rows:
  """The arrays of a batch while it is filled."""

  def __init__(self, shape: tuple[int, int], max_prompt: int, max_length: int):
    n = shape[0]
    self.prompts = np.zeros((n, max_prompt), np.int32)
    self.prompt_length = np.ones(n, np.int32)
    self.completions = np.zeros((*shape, max_length), np.int32)
    self.mask = np.zeros((*shape, max_length), np.float32)
    self.length = np.zeros(shape, np.int32)
    self.truncated = np.zeros(shape, np.float32)
    self.valid = np.ones(shape, np.float32)

  def put(self, i: int, prompt: list[int], completions) -> None:
    self.prompts[i, : len(prompt)] = prompt
    self.prompt_length[i] = len(prompt)
    room = self.mask.shape[-1]
    for g, (tokens, mask) in enumerate(completions):
      size = min(len(tokens), room)
      self.completions[i, g, :size] = tokens[:size]
      self.mask[i, g, :size] = mask[:size]
      self.length[i, g] = size
      self.truncated[i, g] = len(tokens) > room

  def drop(self, i: int) -> None:
    self.valid[i], self.mask[i] = 0.0, 0.0

  def encoded(self, examples: Sequence[Example]) -> Encoded:
    batch = types.make_batch(
      self.prompts, self.prompt_length, self.completions, self.length
    ).replace(
      mask=self.mask,
      valid=self.valid,
      truncated=self.truncated,
      reward=np.array([e.reward for e in examples], np.float32),
      extra={
        key: np.array([e.extra[key] for e in examples], np.float32)
        for key in examples[0].extra
      },
    )
    cut = int((self.truncated * self.valid).sum())
    return Encoded(batch, int((self.valid[:, 0] == 0).sum()), cut)


def check_kind(batch: Batch, method: str) -> None:
  """Refuses completions that the method would misread; others it checks itself."""
  if method == 'kto' and not np.isin(batch.reward, (-1.0, 1.0)).all():
    raise InputError(
      'kto: rewards are +1 (desirable) or -1 (undesirable); the data have '
      f'{sorted(set(batch.reward.ravel().tolist()))[:5]}.'
    )
  if method == 'sft' and batch.completions.shape[1] != 1:
    raise InputError(
      'sft: every completion is imitated, and the data have '
      f'{batch.completions.shape[1]} a prompt. Keep the good ones, as groups of one.'
    )
