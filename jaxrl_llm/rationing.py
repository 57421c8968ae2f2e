"""Groups of unequal size under an exact budget, for rollout_gdro.

How many completions a question gets is decided by its own difficulty bin, which the
method keeps with the state. Only those are decoded, as groups of one; a batch has room
for the most, and what is not there is not valid.
"""

import time

import jax
import numpy as np

from jaxrl_llm import sources
from jaxrl_llm.ops import allocation
from jaxrl_llm.rollout import draw
from jaxrl_llm.sources import Ask, Drawn, Source
from jaxrl_llm.types import InputError, Rollout, State

NAMES = ('arms', 'arm_logp', 'arm_mean', 'gdro_bin')


def rationed(ask: Ask, *, prompts: int, group: int) -> Source:
  """Fresh completions, as sources.on_policy, of groups whose sizes the state chooses.

  Args:
    ask: with a sampler of group 1.
    prompts: groups per batch.
    group: room for completions in each.
  """

  def source(state: State, step: int) -> Drawn:
    start = time.perf_counter()
    index = range(step * prompts, (step + 1) * prompts)
    records = [ask.record(i) for i in index]
    which, number = rations(state, [r.id for r in records], group)
    owner = np.repeat(np.arange(prompts), number)
    member = np.concatenate([np.arange(n) for n in number])
    ids = (np.array(index)[owner] * group + member).astype(np.int32)
    asked = [records[b] for b in owner]
    how, key = ask.options(len(ids)), jax.random.fold_in(state.key, step)
    params = ask.policy(state)
    found = (asked, ask.text, params, ids, how, key, state.step)
    tokens, length, rollout = sources.completed(ask.sample, *found)
    sources.check_finite(rollout, step)
    sampled = time.perf_counter()
    rows = sources.to_samples(rollout, asked, ask.text)
    total, parts = ask.reward(rows)
    first = np.flatnonzero(member == 0)
    spread = lambda x: scattered(x, owner, member, (prompts, group))
    batch = sources.to_batch(
      tokens[first],
      length[first],
      gathered(rollout, spread, np.array(index, np.int32)),
      spread(total),
      truncated=draw.truncates(how).any(),
    )
    right = spread(parts[ask.accuracy]) if ask.accuracy else None
    batch = batch.replace(valid=spread(np.ones(len(ids), np.float32)))
    batch = sources.told_apart(batch, records, right)
    metrics = sources.describe(batch, parts) | {
      f'gdro_rollouts/{b}': float(n) for b, n in zip(which, number)
    }
    shown = sources.table(rows, total, parts)
    return Drawn(batch, metrics | sources.seconds(start, sampled), shown)

  return source


def rations(state: State, questions, group: int) -> tuple[np.ndarray, np.ndarray]:
  """The bin of each question [B], and how many completions it gets [B]."""
  if missing := [n for n in NAMES if n not in state.extra]:
    raise InputError(
      f"config.source.name='rationed' finds no {missing} in the state: it is for "
      'config.method.name=rollout_gdro.'
    )
  extra = jax.device_get({n: state.extra[n] for n in NAMES})
  arms, mean = extra['arms'].astype(int), int(extra['arm_mean'])
  if arms[-1] != group:
    raise InputError(
      f'config.source.group={group} is to be config.method.most={arms[-1]}.'
    )
  stored = extra['gdro_bin'].astype(int)
  which = stored[np.array(questions) % len(stored)]
  there, counts = np.unique(which, return_counts=True)
  chosen = allocation.choose(counts, extra['arm_logp'][there], arms, mean)
  return which, arms[np.array(chosen)[np.searchsorted(there, which)]]


def scattered(x: np.ndarray, owner, member, shape) -> np.ndarray:
  """Rows [N, ...] at their place in a group: [B, G, ...], 0 where there is none."""
  found = np.zeros((*shape, *x.shape[1:]), x.dtype)
  found[owner, member] = x
  return found


def gathered(rollout: Rollout, spread, ids: np.ndarray) -> Rollout:
  """A rollout of groups of one as one of groups; what is not there has no tokens."""
  rows = {
    name: spread(x[:, 0])
    for name, x in vars(rollout).items()
    if name not in ('prompt_id', 'version') and x is not None
  }
  warm = np.where(rows['length'] > 0, rows['temperature'], 1.0).astype(np.float32)
  return rollout.replace(**rows | {'prompt_id': ids, 'temperature': warm})
