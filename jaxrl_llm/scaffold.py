"""Scaf-GRPO's hints for what nobody solves (2025), https://arxiv.org/abs/2510.19807.

A group without one right completion teaches nothing. After an exemption each such
question is asked again with hints, one completion of the current policy a prompt: the
first l items of a category, l = 1, 2, ..., the categories in the order below. The first
prompt in that order whose completion is right makes the least help, and takes the place
of a failed row with its own prompt: log-probs now and then are both under the hint.

The first row gives way, as in the official code (the paper draws one; the rows of such
a group are exchangeable). All prompts are asked in one batch, as there; the planning
category, left out there, is the paper's.
"""

import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxrl_llm import sources
from jaxrl_llm.rollout import draw
from jaxrl_llm.sources import Ask, Drawn, Source
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import Batch, State

CATEGORIES = ('knowledge', 'planning', 'solution')  # The least help first.
TEMPLATE = 'Question: {question}\n{category} hints: {hints}'
SALT = 13  # Sets the key of hinted draws apart from that of the step.
MOST = 64  # Hinted prompts of one question, at most: the stride of their ids.
RIGHT = 0.5
ROWS = ('completions', 'length', 'mask', 'truncated', 'temperature', 'reward')
ROWS += ('behavior_logp', 'kept_mass', 'keep_within')


def hinted(record: Record, levels: int) -> list[Record]:
  """The record with the hints of every category and level, the least help first."""
  *before, last = record.messages
  found = []
  for category in CATEGORIES:
    items = record.hints.get(category, ())[:levels]
    for count in range(1, len(items) + 1):
      said = TEMPLATE.format(
        question=last['content'],
        category=category.capitalize(),
        hints=' '.join(items[:count]),
      )
      found.append(record._replace(messages=[*before, last | {'content': said}]))
  return found[:MOST]


def scaffolded(source: Source, ask: Ask, *, levels: int, first: int) -> Source:
  """The source with one hinted completion in groups that have no right one.

  Right is what has an accuracy, or without one a reward, above 0.5, as for
  source.pool.

  Args:
    levels: hints of each category to give at most.
    first: the first step that gives any.
  """

  def drawn(state: State, step: int) -> Drawn:
    found = source(state, step)
    right = found.batch.extra.get('accuracy', found.batch.reward) > RIGHT
    hard = np.flatnonzero(~right.any(1))
    told = found.metrics | {
      'groups_hard': len(hard) / len(right),
      'groups_rescued': 0.0,
    }
    found = found._replace(metrics=told)
    asked = [
      (b, i, record)
      for b in (hard if step >= first else ())
      for i, record in enumerate(hinted(ask.record(found.batch.prompt_id[b]), levels))
    ]
    return rescued(found, ask, asked, state, step) if asked else found

  return drawn


def rescued(found: Drawn, ask: Ask, asked: Sequence, state: State, step: int) -> Drawn:
  """`asked` holds (group, its i-th prompt, record), the least help of a group first."""
  start = time.perf_counter()
  group = np.array([b for b, _, _ in asked])
  ids = found.batch.prompt_id[group] * MOST + np.array([i for _, i, _ in asked])
  new, spent = answered(ask, [r for _, _, r in asked], ids, state, step)
  right = new.extra.get('accuracy', new.reward)[:, 0] > RIGHT
  where, least = np.unique(group[right], return_index=True)
  least = np.flatnonzero(right)[least]
  added = {
    'groups_rescued': len(where) / len(found.batch.reward),
    'rollouts': found.metrics['rollouts'] + len(asked),
    'tokens': found.metrics['tokens'] + float(new.length.sum()),
    'seconds/rollout': found.metrics['seconds/rollout'] + spent - start,
    'seconds/reward': found.metrics['seconds/reward'] + time.perf_counter() - spent,
  }
  batch = found.batch
  if len(where):
    batch = replaced(batch, where, jax.tree.map(lambda x: x[least], new))
  return found._replace(batch=batch, metrics=found.metrics | added)


def answered(ask: Ask, records: Sequence[Record], ids, state: State, step: int):
  """One scored completion of each record, a batch of groups of one, and the time when
  they had been sampled. A power of two is asked, so that few shapes compile.
  """
  count, room = len(records), 2 ** (len(records) - 1).bit_length()
  fill = lambda x: [*x, *[x[0]] * (room - count)]
  how = ask.options(room)
  how = how._replace(max_length=how.max_length * (np.arange(room) < count))
  key = jax.random.fold_in(jax.random.fold_in(state.key, step), SALT)
  arrays = (np.array(fill(ids), np.int32), how, key, state.step)
  asked = (fill(records), ask.text, ask.policy(state))
  everything = sources.completed(ask.sample, *asked, *arrays)
  tokens, length, rollout = jax.tree.map(
    lambda x: x[:count] if np.ndim(x) else x, everything
  )
  sources.check_finite(rollout, step)
  sampled = time.perf_counter()
  total, parts = ask.reward(sources.to_samples(rollout, records, ask.text))
  truncated = draw.truncates(how).any()
  batch = sources.to_batch(tokens, length, rollout, total, truncated=truncated)
  if ask.accuracy:
    batch = sources.with_extra(batch, 'accuracy', parts[ask.accuracy][:, None])
  return batch, sampled


def replaced(batch: Batch, where: np.ndarray, new: Batch) -> Batch:
  """The batch with the first row of the groups `where` [N] as in `new`, N groups of
  one, the prompt included.
  """

  def put(old, x):
    old = np.array(old)
    old[where, 0] = x[:, 0]
    return old

  each = lambda x: np.repeat(x[:, None], batch.length.shape[1], 1)
  rows = {k: put(x, vars(new)[k]) for k in ROWS if (x := vars(batch)[k]) is not None}
  extra = {k: put(batch.extra[k], x) for k, x in new.extra.items()}
  return batch.replace(
    **rows,
    extra=batch.extra | extra,
    row_prompt=put(each(batch.prompts), new.prompts[:, None]),
    row_prompt_length=put(each(batch.prompt_length), new.prompt_length[:, None]),
  )
