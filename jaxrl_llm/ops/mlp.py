"""Small networks as trees of arrays, for what a method trains itself (Method.own)."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array, Params


def init(key: Array, sizes: Sequence[int], *, last: float = 1.0) -> Params:
  """w_i normal(0, 2 / fan-in) and b_i = 0; the last matrix is scaled by `last`."""
  keys = jax.random.split(key, len(sizes) - 1)
  found = {}
  for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
    gain = last if i == len(sizes) - 2 else 1.0
    scale = gain * jnp.sqrt(2.0 / rows)
    found[f'w_{i}'] = scale * jax.random.normal(keys[i], (rows, columns))
    found[f'b_{i}'] = jnp.zeros(columns)
  return found


def apply(tree: Params, x: Array, bend: Callable[[Array], Array]) -> Array:
  """[..., sizes[0]] to [..., sizes[-1]], with `bend` between the layers."""
  count = len(tree) // 2
  for i in range(count):
    x = x @ tree[f'w_{i}'] + tree[f'b_{i}'][(None,) * (x.ndim - 1)]
    x = bend(x) if i < count - 1 else x
  return x
