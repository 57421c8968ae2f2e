"""The reference's log-probs of stored completions: scored once and kept in a file.

The reference is the policy at its birth, with LoRA the base alone, so a run that has
the scores needs no second model. A file that is there is read, so that a resumed run
sees the same numbers.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxrl_llm import step
from jaxrl_llm.data.examples import Data, Encoder, Example, in_turns
from jaxrl_llm.forward import Forward
from jaxrl_llm.types import BGT, Batch, State


def birth(forward: Forward, state: State, batch: Batch) -> BGT:
  """Log-probs of the first policy: adapters add nothing yet, and are left out."""
  name = 'ref_logp' if 'base' in state.frozen else 'logp'
  return vars(step.read(forward, state, batch, (name,), 1))[name]


class Scores:
  """Log-probs of the training and held-out examples, [N, G, T] each; 0 until `fill`.

  `drawn` are the training examples that the run will draw; the others stay 0, which
  takes no room on the disk.
  """

  def __init__(
    self, forward: Forward, data: Data, encode: Encoder, place, batch: int, drawn
  ):
    self.splits = {'train': data.train, 'test': data.test}
    self.wanted = {'train': sorted(drawn), 'test': range(len(data.test))}
    self.digest, self.encode, self.batch = data.digest[:8], encode, batch
    self.found = {k: np.broadcast_to(np.float32(0), self.shape(k)) for k in self.splits}
    self.logp = jax.jit(functools.partial(birth, forward))
    self.place = place

  def shape(self, split: str) -> tuple[int, int, int]:
    examples = self.splits[split]
    return len(examples), len(examples[0].completions), self.encode.max_length

  def fill(self, folder: Path, state: State, say: Callable[[str], None]) -> None:
    """Reads the scores from `folder`, or computes them with the policy of `state`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in self.splits.items():
      path = folder / f'{split}-{self.digest}.npy'
      if not path.exists():
        say(f'The reference scores {len(self.wanted[split])} {split} examples, once.')
        partial = path.with_suffix('.partial')
        out = np.lib.format.open_memmap(partial, 'w+', np.float32, self.shape(split))
        self.write(out, state, examples, self.wanted[split])
        out.flush()
        os.replace(partial, path)
      self.found[split] = np.load(path, mmap_mode='r')

  def write(
    self, out: np.ndarray, state: State, examples: Sequence[Example], wanted
  ) -> None:
    for turn, batch in in_turns(self.encode, examples, wanted, self.batch):
      logp = np.asarray(self.logp(state, self.place(batch)))
      inside = np.arange(logp.shape[-1]) < batch.length[..., None]
      found = np.where(inside, logp, 0.0)[: len(turn)]
      out[np.array(turn), :, : logp.shape[-1]] = found

  def into(self, batch: Batch, split: str) -> Batch:
    """The batch with its reference's log-probs, found by `prompt_id`."""
    width, found = batch.completions.shape[-1], self.found[split]
    rows = np.minimum(batch.prompt_id, len(found) - 1)  # Filling has no row.
    return batch.replace(ref_logp=np.asarray(found[rows, :, :width]))
