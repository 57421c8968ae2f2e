"""What a reward sees, and what it is."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jaxrl_llm.tasks.records import Record


class Sample(NamedTuple):
  """One completion of one prompt."""

  prompt: str  # The user's message, without the chat template.
  completion: str  # Decoded, without the stop token.
  tokens: int  # Length of the completion in tokens, the stop token included.
  truncated: bool  # True where it ended for want of room.
  record: Record
  score: float = 0.0  # What the environment of an episode says of it, and in parts.
  parts: Mapping[str, float] = MappingProxyType({})


Reward = Callable[[Sample], float]


class Batched(NamedTuple):
  """A reward that sees all samples of a batch at once, such as a network's."""

  score: Callable[[Sequence[Sample]], Sequence[float]]
