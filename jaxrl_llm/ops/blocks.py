"""A head a block of words and a chunk of tokens at a time, forward and backward.

The gradient of each block is written into its place; autodiff of the loops would add up
arrays of the whole head, and keep a block for every chunk.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array

BLOCK = 4096  # Words whose logits exist at once.


def mapped(fn: Callable, live, hidden: Array, rest, kernel: Array, size: int):
  """`fn(hidden, rest, words, kernel)` of every block and chunk, stacked on axes 0, 1.

  Args:
    fn: to a tree of arrays; has a gradient in `hidden` and in the kernel alone.
    live: [C] bool, which of C chunks are computed, the others are 0; None: all.
    hidden: [C, ...]; rest: a tree of arrays [C, ...]. `fn` gets a chunk of each.
    kernel: [V, D]. A block has W <= `size` rows of it, and `words` [W] says which;
      every block has the same W, and rows from V on are padding.

  Blocks take words at a stride, so that each device keeps its share of the kernel.
  """
  count = number(len(kernel), size)
  kernel = jnp.pad(kernel, ((0, -len(kernel) % count), (0, 0)))
  return over(fn, live, hidden, rest, kernel.reshape(-1, count, kernel.shape[-1]))


def number(vocab: int, size: int) -> int:
  """Blocks of at most `size` words: one that divides, where less than twice as many do.

  Padding copies the kernel.
  """
  least = -(-vocab // size)
  return next((n for n in range(least, 2 * least) if vocab % n == 0), least)


def block(kernel: Array, i: Array) -> tuple[Array, Array]:
  """Which words block i has, and its rows."""
  width, count, _ = kernel.shape
  return jnp.arange(width) * count + i, kernel[:, i]


def where(live, fn: Callable, other: Callable, *args):
  """`fn` of these where `live`, or where that is None; else `other` of them."""
  return fn(*args) if live is None else jax.lax.cond(live, fn, other, *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def over(fn: Callable, live, hidden: Array, rest, kernel: Array):
  """`mapped` of a kernel [W, blocks, D]."""

  def one(i):
    words, rows = block(kernel, i)
    say = lambda hidden, rest: fn(hidden, rest, words, rows)
    none = lambda *x: jax.tree.map(jnp.zeros_like, jax.eval_shape(say, *x))
    return jax.lax.map(lambda x: where(x[0], say, none, *x[1:]), (live, hidden, rest))

  return jax.lax.map(one, jnp.arange(kernel.shape[1]))


def forward(fn: Callable, live, hidden: Array, rest, kernel: Array):
  return over(fn, live, hidden, rest, kernel), (live, hidden, rest, kernel)


def backward(fn: Callable, kept, slopes):
  live, hidden, rest, kernel = kept

  def one(found, x):
    i, slopes = x
    words, rows = block(kernel, i)

    def chunk(here, x):
      live, hidden, rest, slope = x

      def slope_of(hidden, here):
        say = lambda hidden, rows: fn(hidden, rest, words, rows)
        more, rows_slope = jax.vjp(say, hidden, rows)[1](slope)
        return more, here + rows_slope

      none = lambda hidden, here: (jnp.zeros_like(hidden), here)
      more, here = where(live, slope_of, none, hidden, here)
      return here, more

    start = jnp.zeros_like(rows)
    here, more = jax.lax.scan(chunk, start, (live, hidden, rest, slopes))
    put = jax.lax.dynamic_update_index_in_dim(found[1], here, i, 1)
    return (found[0] + more, put), None

  # Added up in float32, whatever the network computes in.
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  start = jnp.zeros(hidden.shape, wide), jnp.zeros_like(kernel)
  found, _ = jax.lax.scan(one, start, (jnp.arange(kernel.shape[1]), slopes))
  return None, found[0].astype(hidden.dtype), None, found[1]


over.defvjp(forward, backward)
