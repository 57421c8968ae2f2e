"""Stored completions as a batch: demonstrations, pairs, rankings, labels."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.data.chat import Coder, Completion, Ids, Prompt
from jaxrl_llm.data.tables import located
from jaxrl_llm.types import Batch, InputError


class Example(NamedTuple):
  """A prompt and its completions: (chosen, rejected), a ranking, or one alone."""

  prompt: Prompt
  completions: Sequence[Completion]
  reward: Sequence[float]  # Score or label of each completion.
  extra: Mapping[str, float | Sequence[float]] = {}  # Of all, or of each completion.
  step_labels: Sequence[Sequence[float]] = ()  # Of each completion, where it has steps.
  prompts: Sequence[Prompt] = ()  # Of each completion, where they are not one.
  aux: 'Example | None' = None  # Becomes Batch.aux.
  template: Mapping[str, Any] = {}  # What the chat template reads beside messages.
  # The last two are no part of a digest.
  optional: bool = False  # Left out where it does not fit, in place of an error.
  where: str = ''  # File and line, for messages.


class Data(NamedTuple):
  """Training and held-out examples, read when they are asked for."""

  train: Sequence[Example]
  test: Sequence[Example]
  digest: str = ''  # Of every row; a resumed run must find the same.
  report: Sequence[str] = ()  # Lines to say before training.
  parts: Sequence[tuple[int, float]] = ()  # Of a mixture: (size, weight), in order.
  longest: int = 0  # Tokens of the longest group, prompts and completions; 0: unknown.


class Coded(NamedTuple):
  """An example as token ids, brought to length."""

  prompt: list[int]
  completions: Sequence[Ids]
  cut: Sequence[bool]  # Which completions lost their end.
  kept: bool  # Else the group is left out.
  example: Example
  prompts: Sequence[list[int]] = ()  # Of each completion, where they are not one.
  aux: 'Coded | None' = None
  whole: tuple[int, int] = (0, 0)  # Tokens of the longest prompt and completion, uncut.

  @property
  def size(self) -> int:
    """Tokens of the prompt and of the longest completion."""
    return self.asked + max(len(c.tokens) for c in self.completions)

  @property
  def total(self) -> int:
    """Tokens of all prompts and completions, or of those of aux if they are more."""
    own = sum(map(len, self.prompts or [self.prompt]))
    own += sum(len(c.tokens) for c in self.completions)
    return max(own, self.aux.total) if self.aux else own

  @property
  def asked(self) -> int:
    """Tokens of the prompt, or of the longest one, that of aux among them."""
    own = max(len(p) for p in self.prompts or [self.prompt])
    return max(own, self.aux.asked) if self.aux else own


class Encoded(NamedTuple):
  """A host batch, and how many groups were left out and completions cut for length."""

  batch: Batch
  dropped: int
  cut: int


POLICIES = {
  'long_prompt': ('error', 'drop', 'cut'),
  'long_completion': ('cut', 'drop', 'error'),
}
NOTHING = Ids([0], [0])


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Examples to a batch.

  A group that is left out stays in its place, with `valid` and `mask` 0.

  Args:
    coder: see chat.coder.
    max_prompt, max_length: tokens; the completion's stop token is included.
    long_prompt: 'error', 'drop' (the group is left out) or 'cut' (its end stays, and
      its BOS).
    long_completion: 'cut' (its first tokens stay, it is `truncated` and has no stop
      token), 'drop' or 'error'. A group of which a completion has no trained token
      left is dropped.
    bucket: a batch is as wide as its longest row, rounded up to so many tokens; 0 is
      always max_prompt and max_length. Each width compiles once.
  """

  coder: Coder
  max_prompt: int
  max_length: int
  long_prompt: str = 'error'
  long_completion: str = 'cut'
  bucket: int = 0

  def __post_init__(self):
    chosen = (self.long_prompt, self.long_completion)
    for (name, known), value in zip(POLICIES.items(), chosen):
      if value not in known:
        raise InputError(f'config.data.{name}={value!r}; there are {known}.')

  def __call__(self, examples: Sequence[Example]) -> Encoded:
    """Examples of one group size as a batch."""
    coded = [self.read(example) for example in examples]
    return collate(coded, *self.widths(coded))

  def read(self, example: Example) -> Coded:
    """One example as token ids, or what is left of it."""
    with located(example.where) if example.where else contextlib.nullcontext():
      found = self.coded(example)
      if example.aux is None:
        return found
      aux = self.coded(example.aux._replace(template=example.template))
    if found.kept and aux.kept:
      return found._replace(aux=aux)
    return emptied(found)._replace(aux=emptied(aux))

  def coded(self, example: Example) -> Coded:
    options = example.template
    prompt = self.coder.prompt(example.prompt, options)
    prompts = [self.coder.prompt(p, options) for p in example.prompts]
    before = example.prompts or [example.prompt] * len(example.completions)
    both = zip(before, example.completions)
    found = [self.coder.completion(p, c, options) for p, c in both]
    longest = max(len(c.tokens) for c in found)
    asked = max(len(p) for p in prompts or [prompt])
    over = (
      too_long(asked, self.max_prompt, self.long_prompt, 'prompt'),
      too_long(longest, self.max_length, self.long_completion, 'length'),
    )
    cut = [len(c.tokens) > self.max_length for c in found]
    found = [Ids(*(x[: self.max_length] for x in c)) for c in found]
    kept = not any(over) and all(any(c.mask) for c in found)
    prompts = [*map(self.ended, prompts)]
    left = Coded(self.ended(prompt), found, cut, kept, example, prompts)
    left = left._replace(whole=(asked, longest))
    return left if kept else emptied(left)

  def ended(self, prompt: list[int]) -> list[int]:
    """The end of a prompt that is too long, after its BOS."""
    start = max(len(prompt) - self.max_prompt, 0)
    head = prompt[:1] if start and prompt[0] == self.coder.bos else []
    return head + prompt[start + len(head) :]

  def widths(self, coded: Sequence[Coded]) -> tuple[int, int]:
    """Prompt and completion positions of a batch."""
    if not self.bucket:
      return self.max_prompt, self.max_length
    rounded = lambda size, most: min(-(-size // self.bucket) * self.bucket, most)
    longest = max(len(x.tokens) for c in coded for x in c.completions)
    return (
      rounded(max(c.asked for c in coded), self.max_prompt),
      rounded(longest, self.max_length),
    )


def emptied(coded: Coded) -> Coded:
  """What stands in the place of a group that is left out."""
  size, short = len(coded.completions), [p[:1] for p in coded.prompts]
  return coded._replace(
    prompt=coded.prompt[:1],
    completions=[NOTHING] * size,
    cut=[False] * size,
    kept=False,
    prompts=short,
  )


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


def collate(coded: Sequence[Coded], prompt_width: int, width: int) -> Encoded:
  """Rows of token ids as right-padded arrays."""
  groups = {len(c.completions) for c in coded}
  if len(groups) != 1:
    raise InputError(
      f'Examples have {sorted(groups)} completions; every one needs the same number.'
    )
  padded = lambda x, size: [*x, *[0] * (size - len(x))]
  rows = lambda get: np.array(
    [[padded(get(x), width) for x in c.completions] for c in coded]
  )
  kept = np.array([[float(c.kept)] * len(c.completions) for c in coded], np.float32)
  cut = np.array([c.cut for c in coded], np.float32)
  mask, names = rows(lambda x: x.mask).astype(np.float32), coded[0].example.extra
  extra = {k: np.array([c.example.extra[k] for c in coded], np.float32) for k in names}
  if coded[0].example.step_labels:
    extra['step_label'] = np.zeros_like(mask)
    for label, marked, c in zip(extra['step_label'], mask, coded):
      for g, known in enumerate(c.example.step_labels):
        ends = np.flatnonzero(marked[g])
        label[g, ends] = known[: len(ends)]
  batch = types.make_batch(
    np.array([padded(c.prompt, prompt_width) for c in coded], np.int32),
    np.array([len(c.prompt) for c in coded], np.int32),
    rows(lambda x: x.tokens).astype(np.int32),
    np.array([[len(x.tokens) for x in c.completions] for c in coded], np.int32),
  ).replace(
    mask=mask,
    valid=kept,
    truncated=cut,
    reward=np.array([c.example.reward for c in coded], np.float32),
    extra=extra,
  )
  if any(c.prompts for c in coded):
    batch = batch.replace(**row_prompts(coded, prompt_width))
  if all(c.aux for c in coded):
    aux = collate([c.aux for c in coded], prompt_width, width).batch
    batch = batch.replace(aux=aux)
  return Encoded(batch, sum(not c.kept for c in coded), int(cut.sum()))


def row_prompts(coded: Sequence[Coded], width: int) -> dict[str, np.ndarray]:
  """The prompt of every completion; of a group with one prompt that one."""
  rows = [c.prompts or [c.prompt] * len(c.completions) for c in coded]
  tokens = [[[*p, *[0] * (width - len(p))] for p in row] for row in rows]
  return {
    'row_prompt': np.array(tokens, np.int32),
    'row_prompt_length': np.array([[len(p) for p in row] for row in rows], np.int32),
  }


def numbered(
  encode: Encoder, examples: Sequence[Example], index: Sequence[int], batch: int
) -> Encoded:
  """The examples `index`, filled up to a batch; the filling is not valid."""
  rows, dropped, cut = encode([examples[i] for i in index])
  short = batch - len(index)
  fill = lambda x: np.concatenate([x, np.repeat(x[:1], short, 0)])
  rows = jax.tree.map(fill, rows)
  rows.valid[len(index) :] = 0.0
  ids = [*index, *[len(examples)] * short]
  return Encoded(rows.replace(prompt_id=np.array(ids, np.int32)), dropped, cut)


def in_turns(
  encode: Encoder, examples: Sequence[Example], index: Sequence[int], batch: int
) -> Iterator[tuple[Sequence[int], Batch]]:
  """The examples `index`, so many at once: which they are, and their batch."""
  for start in range(0, len(index), batch):
    turn = index[start : start + batch]
    yield turn, numbered(encode, examples, turn, batch).batch


def boundaries(coder: Coder, examples: Sequence[Example]) -> list[str]:
  """A line to say where prompts end within a token of one encoding, else none."""
  looked = [examples[i] for i in range(min(len(examples), 100))]
  merges = lambda e, c: coder.merges(e.prompt, c, e.template)
  found = sum(any(merges(e, c) for c in e.completions) for e in looked)
  if not found:
    return []
  return [
    f'{found} of the first {len(looked)} prompts end within a token, for example in a '
    'space: their completions begin with tokens that are rare there. Move such an end '
    'into the completions.'
  ]
