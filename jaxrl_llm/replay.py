"""Groups of earlier steps beside the fresh ones, as they were sampled and rewarded.

The last so many groups are kept in the state, as arrays, so that a resumed run replays
the same. What is replayed keeps the log-probs of the parameters that sampled it, and
the step makes up for the difference: by a weight (config.plan.importance), or by the
method's own ratio, if it has one (config.plan.trust_sampler). Ours; no paper is
reproduced.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.sources import Drawn, Source, host_rng
from jaxrl_llm.types import Array, Batch, InputError, Method, State

FIELDS = ('prompts', 'prompt_length', 'completions', 'length', 'mask', 'prompt_id')
FIELDS += ('valid', 'truncated', 'temperature', 'reward', 'behavior_logp')
FIELDS += ('kept_mass', 'keep_within')


def table(batch: Batch, names) -> dict[str, Array]:
  """What is kept of every group: fields of the batch, and these of its extra."""
  kept = {f'replay_{k}': x for k in FIELDS if (x := vars(batch)[k]) is not None}
  return kept | {f'replay_extra_{k}': batch.extra[k] for k in names}


def remembered(method: Method, like: Batch, *, size: int, fresh: int) -> Method:
  """The method, keeping the last `size` groups in the state.

  Args:
    like: a batch of the widest rows, with all of extra that is to be kept.
    fresh: how many groups of a batch are new; they come first.
  """
  if size < fresh:
    raise InputError(
      f'config.source.replay_size={size}: keep at least the {fresh} groups of a step.'
    )
  empty = table(like, like.extra)
  start = {k: np.zeros((size, *x.shape[1:]), np.float32) for k, x in empty.items()}

  def prepare(state, batch):
    extra, new = state.extra, table(batch, like.extra)
    first = extra['replay_next'].astype(jnp.int32)
    where = (first + jnp.arange(fresh)) % size
    found = {k: put(extra[k], where, x[:fresh]) for k, x in new.items()}
    found['replay_next'] = ((first + fresh) % size).astype(jnp.float32)
    found['replay_filled'] = jnp.minimum(extra['replay_filled'] + fresh, size)
    state, batch = method.prepare(state, batch)
    return state.replace(extra=state.extra | found), batch

  start |= {'replay_next': 0.0, 'replay_filled': 0.0}
  return method._replace(prepare=prepare, extra=method.extra | start)


def put(kept: Array, where: Array, new: Array) -> Array:
  """`new` in the places `where` of `kept`; where it is narrower, zeros fill it up."""
  room = [(0, a - b) for a, b in zip(kept.shape[1:], new.shape[1:])]
  return kept.at[where].set(jnp.pad(new.astype(kept.dtype), [(0, 0), *room]))


def replayed(source: Source, *, groups: int) -> Source:
  """The source with `groups` kept ones behind its own, drawn without replacement.

  Until so many are there the rest are copies of the first group, and not valid.
  extra['replayed'] [B] is 1 for what is not fresh.
  """

  def drawn(state: State, step: int) -> Drawn:
    found = source(state, step)
    filled = int(state.extra['replay_filled'])
    which = host_rng(state, step).permutation(filled)[:groups]
    count = len(which)
    which = np.append(which, np.zeros(groups - count, which.dtype))
    names = table(found.batch, found.batch.extra)
    old = jax.device_get(taken({k: state.extra[k] for k in names}, which))

    def joined(name, new):
      first = np.repeat(np.asarray(new[:1]), groups - count, 0)
      return np.concatenate([new, old[name][:count].astype(new.dtype), first])

    both = {name: joined(name, x) for name, x in names.items()}
    both['replay_valid'][len(found.batch.valid) + count :] = 0.0
    extra = {k: both[f'replay_extra_{k}'] for k in found.batch.extra}
    extra['replayed'] = np.repeat([0.0, 1.0], [len(found.batch.valid), groups])
    extra['replayed'] = extra['replayed'].astype(np.float32)
    fields = {k: x for k in FIELDS if (x := both.get(f'replay_{k}')) is not None}
    batch = found.batch.replace(**fields)
    told = found.metrics | {'replayed': float(count)}
    return found._replace(batch=batch.replace(extra=extra), metrics=told)

  return drawn


@jax.jit
def taken(kept: dict[str, Array], which: Array) -> dict[str, Array]:
  """These groups of what is kept."""
  return {k: x[which] for k, x in kept.items()}
