"""How likely the first of two completions beats the second: rewards [B, 2] to [B]."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import sequences
from jaxrl_llm.types import BG, Array, InputError


def bradley_terry(reward: BG, *, scale: float = 1.0) -> Array:
  """sigmoid of the difference of the rewards, times `scale`."""
  return jax.nn.sigmoid(scale * sequences.margin(reward))


def better(reward: BG) -> Array:
  """1 for the higher reward, 1/2 for a tie."""
  return (1 + jnp.sign(sequences.margin(reward))) / 2


def matrix(reward: BG, *, table: tuple) -> Array:
  """table[i][j], where i and j are the rewards of the two: kinds, counted from 0.

  P may be intransitive. A table whose P(i, j) and P(j, i) do not add up to 1 is an
  InputError.
  """
  found = np.array(table, np.float32)
  if found.ndim != 2 or not np.allclose(found + found.T, 1.0, atol=1e-5):
    raise InputError(
      f'matrix: table[i][j] + table[j][i] is 1 in a square; not {table}.'
    )
  sequences.margin(reward)  # Refuses other groups than pairs.
  kind = jnp.clip(reward.astype(jnp.int32), 0, len(found) - 1)
  return jnp.asarray(found)[kind[:, 0], kind[:, 1]]
