"""The host's side of a sampler: which prompt and which of its samples is where."""

import dataclasses

import jax
import numpy as np

from jaxrl_llm.types import Rollout


@dataclasses.dataclass
class Places:
  """A prompt for each slot [N] and a sample of it for each row [N, G]; -1 is none."""

  owner: np.ndarray
  sample: np.ndarray

  @classmethod
  def first(cls, size: int, count: int, group: int) -> 'Places':
    """Prompt i in slot i; a slot past the last prompt is a copy that nobody reads."""
    owner = np.where(np.arange(size) < count, np.arange(size), -1)
    sample = np.where(owner[:, None] >= 0, np.arange(group)[None], -1)
    return cls(owner, sample)

  def busy(self) -> bool:
    return bool((self.owner >= 0).any())

  def age(self, rows) -> int:
    """The most tokens that the sampler's `Rows` have in a slot that is in use."""
    return int(np.asarray(rows.age)[self.owner >= 0].max())

  def collect(self, rows, found: Rollout) -> bool:
    """Writes those of the sampler's `Rows` that have ended to `found`; whether any."""
    ended = ~np.asarray(rows.alive) & (self.sample >= 0)
    if not ended.any():
      return False
    n, g = np.nonzero(ended)
    to = self.owner[n], self.sample[n, g]
    said = {
      'tokens': rows.tokens,
      'behavior_logp': rows.logp,
      'kept_mass': rows.kept,
      'keep_within': rows.within,
      'length': rows.length,
      'stop_reason': rows.stopped,
    }
    for name, x in jax.device_get(said).items():
      vars(found)[name][to] = x[n, g]
    self.sample[n, g] = -1
    self.owner[(self.sample < 0).all(1)] = -1
    return True

  def free(self) -> np.ndarray:
    return np.flatnonzero(self.owner < 0)

  def give(self, slots: np.ndarray, first: int) -> np.ndarray:
    """The prompts that these slots get: `first` and on."""
    self.owner[slots] = np.arange(first, first + len(slots))
    self.sample[slots] = np.arange(self.sample.shape[1])[None]
    return self.owner[slots]

  def narrow(self) -> np.ndarray | None:
    """The rows to keep [N, G'], or None where every slot needs over half of them."""
    width = self.sample.shape[1]
    need = max((self.sample >= 0).sum(1).max(), 1)
    while width % 2 == 0 and width // 2 >= need:
      width //= 2
    if width == self.sample.shape[1]:
      return None
    keep = np.argsort(self.sample < 0, 1, kind='stable')[:, :width]
    self.sample = np.take_along_axis(self.sample, keep, 1)
    return keep


def padded(free, which, unit: int, size: int):
  """Slots and prompts filled up to a power of two of units, so that few compile."""
  count = unit * 2 ** int(np.ceil(np.log2(-(-len(free) // unit))))
  fill = lambda x, value: np.append(x, np.full(count - len(x), value, x.dtype))
  return fill(free, size), fill(which, which[0])
