"""A head a block of words at a time, forward and backward: never [tokens, V] at once.

The gradient of each block is written into its place; autodiff of the loop would add up
arrays of the whole head.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array

BLOCK = 4096  # Words whose logits exist at once.


def mapped(fn: Callable, hidden: Array, rest, kernel: Array, size: int):
  """`fn(hidden, rest, words, kernel)` of every block of words, stacked on axis 0.

  Args:
    fn: to a tree of arrays; has a gradient in `hidden` and in the kernel alone.
    hidden: any shape; rest: a tree of arrays. All blocks get them whole.
    kernel: [V, D]. A block has W <= `size` rows of it, and `words` [W] says which;
      every block has the same W, and rows from V on are padding.

  Blocks take words at a stride, so that each device keeps its share of the kernel.
  """
  count = number(len(kernel), size)
  kernel = jnp.pad(kernel, ((0, -len(kernel) % count), (0, 0)))
  return over(fn, hidden, rest, kernel.reshape(-1, count, kernel.shape[-1]))


def number(vocab: int, size: int) -> int:
  """Blocks of at most `size` words: one that divides, where less than twice as many do.

  Padding copies the kernel.
  """
  least = -(-vocab // size)
  return next((n for n in range(least, 2 * least) if vocab % n == 0), least)


def block(fn: Callable, rest, kernel: Array, i: Array) -> Callable:
  """(hidden, rows of the kernel) to `fn` of block i, and those rows."""
  width, count, _ = kernel.shape
  words = jnp.arange(width) * count + i
  return lambda hidden, rows: fn(hidden, rest, words, rows), kernel[:, i]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def over(fn: Callable, hidden: Array, rest, kernel: Array):
  """`mapped` of a kernel [W, blocks, D]."""

  def one(i):
    say, rows = block(fn, rest, kernel, i)
    return say(hidden, rows)

  return jax.lax.map(one, jnp.arange(kernel.shape[1]))


def forward(fn: Callable, hidden: Array, rest, kernel: Array):
  return over(fn, hidden, rest, kernel), (hidden, rest, kernel)


def backward(fn: Callable, kept, slopes):
  hidden, rest, kernel = kept

  def one(found, x):
    i, slope = x
    say, rows = block(fn, rest, kernel, i)
    more, here = jax.vjp(say, hidden, rows)[1](slope)
    put = jax.lax.dynamic_update_index_in_dim(found[1], here, i, 1)
    return (found[0] + more, put), None

  # Added up in float32, whatever the network computes in.
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  start = jnp.zeros(hidden.shape, wide), jnp.zeros_like(kernel)
  found, _ = jax.lax.scan(one, start, (jnp.arange(kernel.shape[1]), slopes))
  return found[0].astype(hidden.dtype), None, found[1]


over.defvjp(forward, backward)
