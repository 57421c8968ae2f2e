"""Prompts by difficulty: whether each was solved at its last visits, in bins."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import advantages, extras, sequences, surrogates
from jaxrl_llm.types import BG, Array, Batch, InputError, Metrics, Outputs, State


def start(prompts: int, history: int) -> dict[str, np.ndarray]:
  """State.extra of prompts that nobody has visited: all in bin 0, the hardest."""
  return {
    'gdro_passed': np.full((prompts, history), -1.0),  # -1 where there was no visit.
    'gdro_visits': np.zeros(prompts),
    'gdro_bin': np.zeros(prompts),
  }


def visited(extra: dict, who: Array, passed: Array, count: int, margin: float) -> dict:
  """`extra` with a visit of the prompts `who` [B], `passed` [B] or not.

  A prompt that stands in the batch twice is visited twice, and one whose number is past
  the last not at all. A prompt leaves its bin where its share of passed visits is
  `margin` past an edge.
  """
  history, visits = extra['gdro_passed'], extra['gdro_visits']
  size, same = history.shape[1], who[:, None] == who[None]
  slot = (visits[who].astype(jnp.int32) + jnp.tril(same, -1).sum(1)) % size
  slot = jnp.where(jnp.triu(same, 1).sum(1) < size, slot, size)  # Not kept so long.
  history = history.at[who, slot].set(passed.astype(history.dtype))
  seen = history[who]
  share = (seen > 0).sum(1) / jnp.maximum((seen >= 0).sum(1), 1)
  now = extra['gdro_bin'][who]
  outside = (share < now / count - margin) | (share >= (now + 1) / count + margin)
  found = jnp.clip(jnp.floor(share * count), 0, count - 1)
  found = jnp.where(outside, found, now).astype(now.dtype)
  return extra | {
    'gdro_passed': history,
    'gdro_visits': visits.at[who].add(1.0),
    'gdro_bin': extra['gdro_bin'].at[who].set(found),
  }


def means(which: Array, x: BG, valid: BG, count: int) -> tuple[Array, Array]:
  """Of each bin its number of prompts that are there and their mean of x: [count]."""
  there = valid.any(1)
  each = (x * valid).sum(1) / jnp.maximum(valid.sum(1), 1.0)
  member = (which[None] == jnp.arange(count)[:, None]) & there[None]
  size = member.sum(1)
  return size, (member * each[None]).sum(1) / jnp.maximum(size, 1)


# ---- What prompt_gdro and rollout_gdro share -----------------------------------------


def check_signal(method: str, signal: str) -> None:
  if signal not in ('loss', 'reward'):
    raise InputError(f"{method}: signal={signal!r}; give 'loss' or 'reward'.")


def looked_up(state: State, batch: Batch, count: int, margin: float):
  """The state after this visit, and the batch with each prompt's bin before it [B] and
  grpo's advantage, held within 5 [B, G].
  """
  who = batch.extra.get('question', batch.prompt_id) % len(state.extra['gdro_bin'])
  mine = state.extra['gdro_bin'][who].astype(jnp.int32)
  raw = jnp.clip(advantages.group_norm(batch.reward, batch.valid), -5.0, 5.0)
  solved, asked = extras.visits(batch)
  there = jnp.where(asked, who, len(state.extra['gdro_bin']))
  state = state.replace(extra=visited(state.extra, there, solved > 0, count, margin))
  extra = batch.extra | {'gdro_bin': mine, 'gdro_raw': raw}
  return state, batch.replace(extra=extra)


def losses(out: Outputs, batch: Batch, low: float, high: float, count: int) -> Metrics:
  """The unweighted loss of each bin."""
  ratio = surrogates.ratio(out.logp, batch.old_logp)
  raw = batch.extra['gdro_raw'][..., None]
  gain = surrogates.clipped(ratio, raw, low=low, high=high)
  rows = (sequences.seq_mean(-gain, batch.mask) * batch.seq_weight).sum(1)
  share, which = batch.seq_weight.sum(1), batch.extra['gdro_bin']
  pair = lambda here: (jnp.sum(rows * here), jnp.sum(share * here))
  return {f'gdro_loss/{i}': pair(which == i) for i in range(count)}


def signalled(batch: Batch, found: Metrics, count: int, signal: str) -> Array:
  """How much each bin loses [count]: its loss, or minus its mean reward."""
  if signal == 'loss':
    return jnp.stack([found[f'gdro_loss/{i}'] for i in range(count)])
  return -means(batch.extra['gdro_bin'], batch.reward, batch.valid, count)[1]
