"""A batch in pieces: what is added up over the pieces is what the whole would give.

A padded batch is cut into a given number of equal pieces. A packed one has been cut by
the host (packing.py) into pieces of equal rows, as many as its tokens fill: one program
serves them all, and no time goes into rows that nobody filled.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.masking import clean
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.types import Batch

# Of a layout, by piece.
ROWS = ('source', 'position', 'group', 'branch', 'said', 'before')
WEIGHTS = ('weight', 'seq_weight', 'prompt_weight')


def total(fn, zero, batch: Batch, n: int):
  """`fn(piece) -> (tree, metrics)`, both added up over n pieces; `zero` is a tree."""
  if batch.layout is not None:
    return packed_total(fn, zero, batch)
  if n == 1:
    return fn(batch)

  def add(carry, piece):
    tree, metrics = fn(piece)
    return jax.tree.map(jnp.add, carry, tree), metrics

  tree, metrics = jax.lax.scan(add, zero, split(batch, n))
  return tree, metrics_lib.reduce(metrics)


def packed_total(fn, zero, batch: Batch):
  """See `total`."""
  one = lambda m: fn(piece(batch, m))
  rows = batch.layout.source.shape[0]
  metrics = jax.eval_shape(one, 0)[1]
  none = lambda x: jnp.zeros((rows, *x.shape))
  unseen = {
    k: none(x) - jnp.inf if metrics_lib.is_max(k) else jax.tree.map(none, x)
    for k, x in metrics.items()
  }

  def add(m, carry):
    found = one(m)
    tree = jax.tree.map(jnp.add, carry[0], found[0])
    return tree, jax.tree.map(lambda rows, x: rows.at[m].set(x), carry[1], found[1])

  tree, metrics = jax.lax.fori_loop(0, batch.layout.count[0], add, (zero, unseen))
  return tree, metrics_lib.reduce(metrics)


def mapped(fn, batch: Batch, n: int):
  """`fn(batch)`, whose result has a leading axis B, computed over n pieces in turn."""
  if batch.layout is not None:
    one = lambda m: fn(piece(batch, m))

    def put(m, found):
      mine = batch.layout.piece == m
      pick = lambda x, y: jnp.where(along(mine, x), x, y)
      return jax.tree.map(pick, one(m), found)

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
    return jax.lax.fori_loop(0, batch.layout.count[0], put, zero)
  if n == 1:
    return fn(batch)
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
  return jax.tree.map(join, jax.lax.map(fn, split(batch, n)))


def split(tree, n: int):
  """[B, ...] to [n, B / n, ...]: piece i has rows i, i + n, ... Groups stay whole.

  Strided, so that every device keeps its share of each piece.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), tree
  )


def piece(batch: Batch, m) -> Batch:
  """Piece m of a packed batch: all its groups, those of other pieces not valid."""
  layout = batch.layout
  mine = layout.piece == m
  rows = {k: vars(layout)[k][m][None] for k in ROWS}
  found = layout.replace(**rows, piece=jnp.where(mine, 0, 1))
  return clean(only(batch, mine).replace(layout=found))


def only(batch: Batch, mine) -> Batch:
  """The batch with the groups that are not `mine` [B] neither valid nor weighed."""
  names = [n for n in ('valid', *WEIGHTS) if vars(batch)[n] is not None]
  keep = lambda x: x * along(mine, x)
  found = {n: keep(vars(batch)[n]) for n in names}
  aux = None if batch.aux is None else only(batch.aux, mine)
  return batch.replace(**found, aux=aux)


def along(x, other):
  """x [B] with axes of 1, to go with `other` [B, ...]."""
  return x.reshape(-1, *(1,) * (other.ndim - 1))
