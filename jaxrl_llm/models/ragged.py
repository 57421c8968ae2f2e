"""Groups without their padding: tokens behind each other, and back into rows.

What treats tokens one by one (matrices, norms, the head) then runs on the tokens alone;
attention sees rows. The field calls it padding-free, or unpadding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.models.attention import causal
from jaxrl_llm.types import BGT, Array, Room


class Fold(NamedTuple):
  """Which of the W slots of a row hold tokens, and where those lie in S <= W slots."""

  live: Array  # [R, W] bool, slots that hold a token.
  place: Array  # [R, W] int32, where in S a live slot's token lies.
  used: Array  # [R, S] bool.
  source: Array  # [R, S] int32, which of the W slots a used one comes from.


class Ragged(NamedTuple):
  """R rows, each the prompts of B / R groups in S slots, then their completions."""

  prompts: Fold
  completions: Fold
  length: Array  # [B] int32, of prompts.
  shape: BGT  # [B, G, T], of completions; its shape alone is read.


def fold(live: Array, size: int) -> Fold:
  """The tokens of rows `live` [R, W] in order, each row's in `size` slots.

  No row may have more; see packing.room.
  """
  source = jnp.argsort(~live, axis=1, stable=True)[:, :size]
  place = jnp.clip(jnp.cumsum(live, 1) - 1, 0, size - 1)
  return Fold(live, place, jnp.take_along_axis(live, source, 1), source)


def lay(prompts, length, completions, lengths, room: Room):
  """Where the tokens of groups lie: `Ragged`, their positions [R, 1, S] and tokens.

  Args:
    prompts: [B, P]; length: [B] their lengths; completions: [B, G, T]; lengths: of
      completions, in any shape of as many.
  """
  row = lambda x: x.reshape(room.rows, -1)
  at = lambda x: jnp.arange(x.shape[-1])
  lengths = lengths.reshape(completions.shape[:2])
  first = row(at(prompts)[None] < length[:, None])
  second = row(at(completions)[None, None] < lengths[..., None])
  first = fold(first, slots(first.shape[1], room.prompts))
  second = fold(second, slots(second.shape[1], room.completions))
  r = Ragged(first, second, length, completions)
  both = lambda x, y: tokens_of(x[:, None], y, r)
  where = jnp.broadcast_to(at(prompts)[None], prompts.shape)
  behind = length[:, None, None] + at(completions)[None, None]
  behind = jnp.broadcast_to(behind, completions.shape)
  return r, both(where, behind), both(prompts, completions)


def before(r: Ragged) -> Array:
  """The slot of the token before each completion's: [R, S of completions] int32."""
  first, (b, g, t) = r.prompts.used.shape[1], r.shape.shape
  prompts = r.prompts.place.reshape(b, -1)
  last = jnp.take_along_axis(prompts, r.length[:, None] - 1, 1)
  last = jnp.broadcast_to(last[..., None], (b, g, 1))
  own = first + r.completions.place.reshape(b, g, t)[..., :-1]
  found = jnp.concatenate([last, own], -1)
  return folded(found.reshape(r.completions.live.shape), r.completions)


def slots(width: int, eighths: int) -> int:
  """So many eighths of a row's slots, at least one slot."""
  return -(-width * eighths // 8)


@functools.partial(jax.custom_vjp)
def move(x: Array, to: Array, live: Array, back: Array, used: Array) -> Array:
  """y[r, i] = x[r, to[r, i]] where `live`, else 0.

  `back` undoes it where `used`. So the gradient is a gather too, not a scatter, which
  runs on one core.
  """
  del back, used
  return taken(x, to, live)


def taken(x, index, live):
  found = jax.vmap(lambda row, i: row[i])(x, index)
  return jnp.where(live.reshape(*live.shape, *(1,) * (x.ndim - 2)), found, 0)


def move_forward(x, to, live, back, used):
  return move(x, to, live, back, used), (back, used)


def move_backward(kept, gradient):
  return taken(gradient, *kept), None, None, None, None


move.defvjp(move_forward, move_backward)


def folded(x: Array, f: Fold) -> Array:
  """Rows [R, W, ...] to tokens [R, S, ...]."""
  return move(x, f.source, f.used, f.place, f.live)


def unfolded(x: Array, f: Fold) -> Array:
  """Tokens [R, S, ...] to rows [R, W, ...], 0 where there is none."""
  return move(x, f.place, f.live, f.source, f.used)


def rows_of(x: Array, r: Ragged) -> tuple[Array, Array]:
  """Tokens [R, 1, S, ...] to prompts [B, 1, P, ...] and completions [B, G, T, ...]."""
  split, rest = r.prompts.used.shape[1], x.shape[3:]
  x = x[:, 0]
  prompts = unfolded(x[:, :split], r.prompts)
  completions = unfolded(x[:, split:], r.completions)
  prompts = prompts.reshape(r.length.shape[0], 1, -1, *rest)
  return prompts, completions.reshape(*r.shape.shape, *rest)


def tokens_of(prompts: Array, completions: Array, r: Ragged) -> Array:
  """The way back of `rows_of`."""
  count, rest = r.prompts.live.shape[0], completions.shape[3:]
  row = lambda x: x.reshape(count, -1, *rest)
  parts = folded(row(prompts), r.prompts), folded(row(completions), r.completions)
  return jnp.concatenate(parts, 1)[:, None]


def attend(see, q: Array, k: Array, v: Array, r: Ragged) -> Array:
  """What tokens [R, 1, S, heads, d] read: prompts first, which completions see.

  Args:
    see: decoder.Block.attend, of one layer.
  """
  (q1, q2), (k1, k2), (v1, v2) = (rows_of(x, r) for x in (q, k, v))
  at = lambda n: jnp.arange(n)[None, None]
  p, t = q1.shape[2], q2.shape[2]
  prompts, prefix = see(q1, k1, v1, at(p), causal(p))
  known = at(p)[0] < r.length[:, None]
  positions = jnp.broadcast_to(r.length[:, None, None] + at(t), q2.shape[:3])
  completions, _ = see(q2, k2, v2, positions, causal(t), prefix, known)
  return tokens_of(prompts, completions, r)
