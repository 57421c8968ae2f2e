"""Keys and values between tokens: in the network's own numbers, or in fewer bytes.

In int8 every row of a head, d numbers, has a scale: x is about scale * whole with
scale = max |x| / 127, and no number is off by more than half a scale. A row takes d + 4
bytes in place of 4 d in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.models.attention import KV
from jaxrl_llm.types import Array

DTYPES = {'': None, 'bfloat16': jnp.bfloat16, 'int8': jnp.int8}  # '': the network's.


class Int8(NamedTuple):
  """Numbers as whole * scale."""

  whole: Array  # [..., d] int8.
  scale: Array  # [..., 1] float32.


def kept(x: Array, dtype) -> Array | Int8:
  """Numbers [..., d] as a cache of this dtype has them; None leaves them."""
  if dtype != jnp.int8:
    return x if dtype is None else x.astype(dtype)
  wide = x.astype(jnp.float32)
  scale = jnp.abs(wide).max(-1, keepdims=True) / 127
  whole = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
  return Int8(whole.astype(jnp.int8), scale)


def held(cache) -> int:
  """The tokens of a row for which a cache, a tree of [..., G, S, d], has slots: S."""
  return jax.tree.leaves(cache)[0].shape[-2]


def widened(cache, size: int):
  """The cache with slots for `size` tokens of a row, the new ones last and empty."""
  more = size - held(cache)
  return grown(cache, more) if more > 0 else cache


@functools.partial(jax.jit, static_argnums=1)
def grown(cache, more: int):
  """The cache with so many slots more."""
  pad = lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, more), (0, 0)])
  return jax.tree.map(pad, cache)


def written(cache: KV, new: KV, index: Array) -> KV:
  """The cache [B, K, G, S, d] with `new` [B, K, G, T, d] from slot `index` [B] on."""
  put = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2))

  def one(old, x):
    x = kept(x, jnp.int8 if isinstance(old, Int8) else old.dtype)
    return jax.tree.map(lambda old, x: put(old, x, index), old, x)

  return KV(*map(one, cache, new))


def read(kv: KV | None, dtype) -> KV | None:
  """Keys and values in `dtype`, however they are kept."""
  one = lambda x: x.whole * x.scale if isinstance(x, Int8) else x
  quantised = lambda x: isinstance(x, Int8)
  return jax.tree.map(lambda x: one(x).astype(dtype), kv, is_leaf=quantised)
