"""A method's own metrics on held-out examples, in batches."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_llm import pieces
from jaxrl_llm.data.examples import Encoder, Example, numbered
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.evaluate.held_out import Held
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.ops import sequences
from jaxrl_llm.types import Batch


def make_stored(
  measure,
  weigh,
  examples: Sequence[Example],
  encode: Encoder,
  *,
  batch: int,
  place=lambda x: x,
) -> Callable:
  """Returns `evaluate(state) -> Held`.

  Every example has the weight that it has in a minibatch of all, whatever `batch` is. A
  share named accuracy gets its 95 % Wilson interval over the groups.

  Args:
    measure: see step.make_measure.
    weigh: writes the weights of a minibatch (step.weigh).
    batch: groups at once; the last batch is filled up and the filling is not valid.
    place: puts a batch on the devices.
  """
  measure = jax.jit(measure)
  turns = [range(len(examples))[i : i + batch] for i in range(0, len(examples), batch)]
  coded = lambda turn: numbered(encode, examples, turn, batch)
  whole = functools.cache(
    lambda: weights_of_all(weigh, [coded(t).batch for t in turns], encode.max_length)
  )

  def evaluate(state) -> Held:
    totals: list[dict] = []
    pairs: list[tuple[float, float]] = []
    counts = {'eval/dropped': 0.0, 'eval/cut': 0.0}
    for turn in turns:
      rows, dropped, cut = coded(turn)
      mine, width = slice(turn[0], turn[0] + batch), rows.mask.shape[2]
      weights = {k: x[mine] for k, x in whole().items()}
      weights['weight'] = weights['weight'][..., :width]
      totals.append(jax.device_get(measure(state, place(rows.replace(**weights)))))
      size = rows.valid.shape[1]
      if size == 2 or (size > 2 and rows.row_prompt is None):
        pairs.append(longer(rows.length, rows.reward, rows.valid[:, 0]))
      counts['eval/dropped'] += dropped
      counts['eval/cut'] += cut
    if pairs:
      ahead, count = np.sum(pairs, 0)
      counts['eval/longer'] = float(ahead / max(count, 1.0))
    groups = int((whole()['prompt_weight'] > 0).sum())
    return Held(summary(totals, groups) | counts, [])

  return evaluate


def weights_of_all(weigh, batches: Sequence[Batch], width: int) -> dict:
  """The weights of the rows of all batches, as of one minibatch, on the host."""
  wide = [(0, 0), (0, 0)]
  mask = [x.mask * x.valid[..., None] for x in batches]
  mask = [np.pad(m, [*wide, (0, width - m.shape[2])]) for m in mask]
  rows = weigh(batches[0].replace(mask=np.concatenate(mask)))
  return jax.device_get({k: vars(rows)[k] for k in pieces.WEIGHTS})


def longer(
  length: np.ndarray, reward: np.ndarray, valid: np.ndarray
) -> tuple[float, float]:
  """How many comparisons the longer completion wins, a tie being half, of how many.

  Those of a valid group (`valid` [B]) count as one; `length`, `reward` are [B, G].
  """
  best, rest, share = map(np.asarray, sequences.compared(length, reward))
  share = share * valid[:, None]
  won = accuracy.ahead(np.stack([best, rest], -1))
  return float((won * share).sum()), float(share.sum())


def summary(totals: Sequence[dict], groups: int) -> dict[str, float]:
  """Batches' (sum, weight) pairs as one number each."""
  stacked = jax.tree.map(lambda *x: np.stack(x), *totals)
  added = metrics_lib.reduce(stacked)
  found = metrics_lib.finish(added)
  found = {f'eval/{name}': float(x) for name, x in found.items()}
  if 'eval/accuracy' in found:
    # Groups in which nothing is compared tell nothing.
    groups = max(round(groups * min(float(added['accuracy'][1]), 1.0)), 1)
    right = min(max(found['eval/accuracy'], 0.0), 1.0) * groups
    found['eval/low'], found['eval/high'] = accuracy.wilson(right, groups)
  return found
