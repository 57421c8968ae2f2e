"""Groups behind each other in rows, planned on the host.

Nothing of a loss changes: forward.packed and forward.unpadded read the same numbers
from fewer slots. `pack` says which token goes where, for rows of one width and as many
of them as it takes; `room` counts the slots that padded groups need without padding.
"""

from collections.abc import Sequence

import numpy as np

from jaxrl_llm.types import Batch, InputError, Layout, Room


def pack(batch: Batch, width: int, *, rows: int = 1) -> Batch:
  """The batch with a layout.

  Its shapes depend on those of the batch alone, however long its completions are. A
  group without a valid completion has no place in it; where none has one, one piece is
  empty.

  Args:
    batch: of numpy arrays.
    width: slots of a row, S. A group, prompt and completions, must fit.
    rows: rows of a piece, R; a piece is computed at once.

  Raises:
    InputError: a group is longer than a row.
  """
  b, g, t = batch.completions.shape
  own = batch.row_prompt is not None
  lengths = batch.row_prompt_length if own else batch.prompt_length[:, None]
  positions = (batch.row_prompt if own else batch.prompts).shape[-1]
  # [B, members, completions of each]: rows with prompts of their own share none.
  completions = batch.length.reshape(*lengths.shape, -1)
  sizes = lengths.sum(1) + batch.length.sum(1)
  there = np.flatnonzero(batch.valid.any(1))
  found = [list(there[row]) for row in bins(sizes[there], width)]
  layout = place(lengths, completions, found, -(-b // rows) * rows, width, positions, t)
  back = layout.pop('back') % (rows * width)
  layout = {k: x.reshape(-1, rows, width) for k, x in layout.items()}
  piece = np.full(b, -1, np.int32)
  for r, members in enumerate(found):
    piece[members] = r // rows
  count = np.array([max(-(-len(found) // rows), 1)], np.int32)
  back = back.reshape(b, g, t)
  return batch.replace(layout=Layout(**layout, back=back, piece=piece, count=count))


def check(longest: int, width: int) -> None:
  """Refuses a group that is longer than a row."""
  if longest > width:
    raise InputError(
      f'A group, prompt and completions, has {longest} tokens and config.plan.pack is '
      f'{width}. Raise it, or set it to 0 for padded rows.'
    )


def bins(sizes: Sequence[int], width: int) -> list[list[int]]:
  """First fit, the longest first: groups of indices, each of at most `width`."""
  check(int(max(sizes, default=0)), width)
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


def place(prompts, length, rows, height, width, positions, t) -> dict:
  """The rows' arrays [height, S], and `back` into all their completion tokens.

  Args:
    prompts: [B, N] lengths, N = 1 or G where each row has a prompt of its own.
    length: [B, N, K] lengths of the completions behind each.
    rows: the groups of each row.
  """
  b, n, k = length.shape
  names = ('source', 'position', 'group', 'branch', 'before')
  out = {name: np.zeros((height, width), np.int32) for name in names}
  out['said'] = np.full((height, width), -1, np.int32)
  back = np.zeros((b, n * k, t), np.int32)
  for r, members in enumerate(rows):
    slot = told = 0
    alone = [(i, j) for i in members for j in range(n)]
    for number, (i, m) in enumerate(alone, 1):
      p = int(prompts[i, m])
      last = slot + p - 1
      runs = [((i * n + m) * positions, p, 0, 0)]
      for j in range(k):
        start = b * n * positions + ((i * n + m) * k + j) * t
        runs.append((start, int(length[i, m, j]), p, j + 1))
      for start, size, first, branch in runs:
        at = slice(slot, slot + size)
        out['source'][r, at] = start + np.arange(size)
        out['position'][r, at] = first + np.arange(size)
        out['group'][r, at], out['branch'][r, at] = number, branch
        if branch and size:
          here = slice(told, told + size)
          out['before'][r, here] = [last, *range(slot, slot + size - 1)]
          out['said'][r, here] = slot + np.arange(size)
          back[i, m * k + branch - 1, :size] = r * width + told + np.arange(size)
          told += size
        slot += size
  return out | {'back': back}


def room(
  batch: Batch, *, minibatches: int = 1, microbatches: int = 1, rows: int = 1
) -> Room:
  """What a batch of numpy arrays needs in any part that is computed at once.

  Args:
    minibatches, microbatches: as in config.plan; they divide the prompts.
    rows: into how many the batch is split over devices.
  """
  own = batch.row_prompt is not None
  prompts = batch.row_prompt_length.sum(1) if own else batch.prompt_length
  width = batch.row_prompt[0].size if own else batch.prompts.shape[1]
  parts = {microbatches, minibatches * microbatches}
  shuffled = [...] if batch.order is None else [..., *batch.order.T]

  def eighths(sizes, width):
    cut = lambda order, n: sizes[order].reshape(-1, n).T.reshape(n, rows, -1)
    most = max(cut(order, n).mean(2).max() for order in shuffled for n in parts)
    return int(np.ceil(8 * most / width))

  completions = eighths(batch.length.sum(1), batch.completions[0].size)
  return Room(rows, eighths(prompts, width), completions)
