"""What some methods want to know of completions beside their reward."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BG, Array, Batch, InputError

COSTS = 'Give a section config.costs, in the form of config.rewards.'
# Of Batch.extra: what it is, and what to do where it is not there.
KNOWN = {
  'cost': ('the cost of each completion', COSTS),
  'feasible': ('whether each completion keeps all constraints', COSTS),
  'greedy_reward': (
    'the reward of a greedy completion as a baseline',
    'Set config.source.greedy=True.',
  ),
  'anchor_reward': (
    "the reward of the task's own answer",
    'Set config.source.anchor=True.',
  ),
}

ANCHORS = {'answer': 'anchor_reward', 'greedy': 'greedy_reward'}


def read(batch: Batch, name: str, method: str) -> Array:
  """batch.extra[name], with 0 in rows that are not valid; its lack is an InputError."""
  if name not in batch.extra:
    what, remedy = KNOWN[name]
    raise InputError(f'{method}: it needs {what}. {remedy}')
  found = batch.extra[name]
  return jnp.where(batch.valid > 0, found, 0.0) if found.ndim > 1 else found


def carried(batch: Batch, numbers: dict[str, Array]) -> Batch:
  """The batch with these of the whole minibatch in every row of its extra."""
  rows = {k: jnp.stack([x] * len(batch.prompts)) for k, x in numbers.items()}
  return batch.replace(extra=batch.extra | rows)


def calibrated(batch: Batch, anchor: str, method: str) -> BG:
  """sigmoid(R - R'), R' the reward of the prompt's answer or of a greedy completion.

  Args:
    anchor: 'answer' or 'greedy'.
  """
  other = read(batch, ANCHORS[anchor], method)
  return jax.nn.sigmoid(batch.reward - other[:, None]) * batch.valid


def anchored(anchor: str, method: str) -> tuple[str, ...]:
  """Method.reads of who calls `calibrated`; another anchor is an InputError."""
  if anchor not in ANCHORS:
    raise InputError(f"{method}: anchor={anchor!r}; give 'answer' or 'greedy'.")
  return (ANCHORS[anchor],)


def fresh(batch: Batch) -> BG:
  """1 for valid rows of this step, 0 for what is replayed (replay.py): [B, G].

  What counts or averages from step to step has seen the others before.
  """
  return batch.valid * (1.0 - replayed(batch)[:, None])


def replayed(batch: Batch) -> Array:
  """1 for groups that an earlier step sampled: [B]."""
  return batch.extra.get('replayed', jnp.zeros(len(batch.valid)))


def visits(batch: Batch) -> tuple[Array, Array]:
  """Of each prompt its share of right completions, and whether it was asked now: [B].

  A source says the share of all that it drew, extra['solved']: no filter, pair or hint
  changes it. Right is an accuracy, or without one a reward, above 0.5.
  """
  if 'solved' in batch.extra:
    return batch.extra['solved'], replayed(batch) == 0
  told = batch.extra.get('accuracy', batch.reward)
  right = ((told > 0.5) * batch.valid).sum(1)
  return right / jnp.maximum(batch.valid.sum(1), 1.0), fresh(batch).any(1)
