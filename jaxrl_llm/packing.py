"""Whole groups behind each other in rows: which token goes where, planned on the host.

Nothing of a loss changes: forward.packed reads the same numbers from fewer slots.
"""

from collections.abc import Sequence

import numpy as np

from jaxrl_llm.types import Batch, InputError, Layout


def pack(batch: Batch, width: int, *, microbatches: int = 1, shards: int = 1) -> Batch:
  """The batch with a layout.

  Args:
    batch: of numpy arrays.
    width: slots of a row, S. A group, prompt and completions, must fit.
    microbatches: pieces as step.split makes them, each with rows of its own.
    shards: the number of rows is a multiple of this.

  Raises:
    InputError: a group is longer than a row.
  """
  b, g, t = batch.completions.shape
  own = batch.row_prompt is not None
  lengths = (batch.row_prompt_length if own else batch.prompt_length).reshape(-1)
  positions = (batch.row_prompt if own else batch.prompts).shape[-1]
  completions = batch.length.reshape(len(lengths), -1)
  pieces = []
  for m in range(microbatches):
    rows = slice(m, None, microbatches)
    if own:
      rows = np.arange(b * g).reshape(b, g)[rows].ravel()
    pieces.append((lengths[rows], completions[rows]))
  binned = [bins(prompt + length.sum(1), width) for prompt, length in pieces]
  # Of few heights, so that few shapes are compiled.
  step = shards * max(b // (8 * microbatches * shards), 1)
  height = -(-max(map(len, binned)) // step) * step
  found = [place(*p, i, height, width, positions, t) for p, i in zip(pieces, binned)]
  quarter = -(-width // 4)
  read = max(f.pop('read') for f in found)
  read = min(-(-read // quarter) * quarter, width)
  layout = {k: np.stack([f[k] for f in found]) for k in found[0]}
  for k in ('before', 'at'):
    layout[k] = layout[k][..., :read]
  row, slot = layout['back'] // width, layout['back'] % width
  layout['back'] = (row * read + slot).reshape(microbatches, -1, g, t)
  return batch.replace(layout=Layout(**layout))


def bins(sizes: Sequence[int], width: int) -> list[list[int]]:
  """First fit, the longest first: groups of indices, each of at most `width`."""
  if (longest := int(max(sizes))) > width:
    raise InputError(
      f'A prompt and its completions have {longest} tokens and config.plan.pack is '
      f'{width}. Raise it, or set it to 0 for padded rows.'
    )
  rows: list[list[int]] = []
  room: list[int] = []
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    fits = next((r for r, left in enumerate(room) if left >= sizes[i]), len(rows))
    if fits == len(rows):
      rows.append([])
      room.append(width)
    rows[fits].append(i)
    room[fits] -= sizes[i]
  return rows


def place(prompt_length, length, rows, height, width, positions, t) -> dict:
  """One piece's arrays; `read` is the number of completion slots of the fullest row."""
  n, k = length.shape
  out = {
    name: np.zeros((height, width), np.int32)
    for name in ('source', 'position', 'group', 'branch', 'before', 'at')
  }
  back, fullest = np.zeros((n, k, t), np.int32), 0
  for r, members in enumerate(rows):
    slot, seen = 0, 0
    for number, i in enumerate(members, 1):
      p = int(prompt_length[i])
      last = slot + p - 1
      runs = [(i * positions, p, 0, 0)]
      runs += [
        (n * positions + (i * k + j) * t, int(length[i, j]), p, j + 1) for j in range(k)
      ]
      for start, size, first, branch in runs:
        at = slice(slot, slot + size)
        out['source'][r, at] = start + np.arange(size)
        out['position'][r, at] = first + np.arange(size)
        out['group'][r, at], out['branch'][r, at] = number, branch
        if branch and size:
          told = slice(seen, seen + size)
          out['at'][r, told] = slot + np.arange(size)
          out['before'][r, told] = [last, *range(slot, slot + size - 1)]
          back[i, branch - 1, :size] = r * width + seen + np.arange(size)
          seen += size
        slot += size
    fullest = max(fullest, seen)
  return out | {'back': back, 'read': fullest}
