"""Prompts by difficulty: whether each was solved at its last visits, in bins."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import BG, Array


def start(prompts: int, history: int) -> dict[str, np.ndarray]:
  """State.extra of prompts that nobody has visited: all in bin 0, the hardest."""
  return {
    'gdro_passed': np.full((prompts, history), -1.0),  # -1 where there was no visit.
    'gdro_visits': np.zeros(prompts),
    'gdro_bin': np.zeros(prompts),
  }


def visited(extra: dict, who: Array, passed: Array, count: int, margin: float) -> dict:
  """`extra` with a visit of the prompts `who` [B], `passed` [B] or not.

  A prompt leaves its bin where its share of passed visits is `margin` past an edge.
  """
  history, visits = extra['gdro_passed'], extra['gdro_visits']
  slot = visits[who].astype(jnp.int32) % history.shape[1]
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
