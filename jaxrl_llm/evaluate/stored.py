"""A method's own metrics on held-out examples, in batches."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_llm.data.examples import Encoder, Example
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.evaluate.held_out import Held
from jaxrl_llm.ops import metrics as metrics_lib


def make_stored(
  measure,
  examples: Sequence[Example],
  encode: Encoder,
  *,
  batch: int,
  place=lambda x: x,
) -> Callable:
  """Returns `evaluate(state) -> Held`.

  A batch counts by the groups it has; a share named accuracy gets its 95 % Wilson
  interval over all groups.

  Args:
    measure: see step.make_measure.
    encode: see examples.Encoder.
    batch: groups at once; the last batch is filled up and the filling is not valid.
    place: puts a batch on the devices.
  """
  measure = jax.jit(measure)

  def evaluate(state) -> Held:
    sums: dict[str, list] = {}
    for start in range(0, len(examples), batch):
      index = range(start, min(start + batch, len(examples)))
      rows = encode([examples[index[i % len(index)]] for i in range(batch)]).batch
      inside = (np.arange(batch) < len(index))[:, None]
      valid = (rows.valid * inside).astype(np.float32)
      ids = np.arange(start, start + batch, dtype=np.int32)
      rows = rows.replace(valid=valid, prompt_id=ids)
      groups = float(valid[:, 0].sum())
      found = jax.device_get(metrics_lib.finish(measure(state, place(rows))))
      found = {f'eval/{name}': x for name, x in found.items()}
      if valid.shape[1] == 2:
        found['eval/longer'] = longer(rows.length, valid[:, 0])
      for name, x in found.items():
        sums.setdefault(name, []).append((float(x), groups))
    return Held(summary(sums), [])

  return evaluate


def longer(length: np.ndarray, valid: np.ndarray) -> float:
  """Share of valid pairs [B, 2] whose first completion is the longer; a tie is half."""
  ahead = (1 + np.sign(length[:, 0] - length[:, 1])) / 2
  return float((ahead * valid).sum() / max(valid.sum(), 1.0))


def summary(sums: dict[str, list]) -> dict[str, float]:
  """Batches' values and sizes as one number each."""
  found = {}
  for name, pairs in sums.items():
    values, sizes = np.array(pairs).T
    if metrics_lib.is_max(name.removeprefix('eval/')):
      found[name] = float(values.max())
    else:
      found[name] = float((values * sizes).sum() / max(sizes.sum(), 1.0))
  if 'eval/accuracy' in sums:
    n = int(sum(size for _, size in sums['eval/accuracy']))
    right = min(max(found['eval/accuracy'], 0.0), 1.0) * n
    found['eval/low'], found['eval/high'] = accuracy.wilson(right, n)
  return found
