"""Softmax attention over a shared prefix and a row's own slots."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BGT, Array

BLOCK, BLOCKS = 128, 8  # Queries taken at once: at least so many, in so many pieces.


class KV(NamedTuple):
  """Keys (rotated) and values, heads first: [B, K, G, S, d], or a stack of layers."""

  key: Array
  value: Array


def attend(
  q, kv: KV, mask, prefix: KV | None, prefix_mask, *, cap: float = 0.0, causal: bool
) -> Array:
  """softmax(q . key) . value over the slots of the prefix and of the row together.

  The softmax is in float32. The prefix is never copied per row: its scores are a
  product of its own.

  Args:
    q: [B, G, T, H, d], scaled. kv: [B, K, G, S, d] each; mask: [B, G, T, S] bool.
    prefix: [B, K, 1, P, d] each; prefix_mask: [B, G, T, P] bool. Axes of 1 broadcast.
    cap: scores become cap * tanh(scores / cap); 0 leaves them.
    causal: token t sees own slots up to t only, and S = T. Long rows then go in blocks
      of queries that leave out the slots after them, and keep no scores for backward.

  Returns:
    [B, G, T, H, d].
  """
  b, g, t, h, d = q.shape
  q = q.reshape(b, g, t, kv.key.shape[1], -1, d).transpose(0, 3, 1, 4, 2, 5)
  if prefix is not None:
    prefix = jax.tree.map(lambda x: x[:, :, 0], prefix)
  part = functools.partial(mixed, prefix=prefix, cap=cap)
  if not causal or t <= BLOCK:
    out = part(q, kv, mask, prefix_mask=prefix_mask)
  else:
    size = max(BLOCK, -(-t // BLOCKS))
    out = []
    for end in range(size, t + size, size):
      rows = lambda x: x if x is None or x.shape[2] == 1 else x[:, :, end - size : end]
      own = jax.tree.map(lambda x: x[:, :, :, :end], kv)
      seen = rows(mask)[..., :end]
      piece = q[:, :, :, :, end - size : end]
      out.append(jax.checkpoint(part)(piece, own, seen, prefix_mask=rows(prefix_mask)))
    out = jnp.concatenate(out, 4)
  return out.transpose(0, 2, 4, 1, 3, 5).reshape(b, g, t, h, d)


def mixed(q, kv: KV, mask, prefix: KV | None, prefix_mask, *, cap: float) -> Array:
  """`attend` heads first: q [B, K, G, H / K, T, d]; the prefix [B, K, P, d] each.

  Heads that share keys, and rows that share a prefix, are one product each.
  """
  # In float32 after each product: not every backend has bfloat16 ones that end there.
  wide = lambda *args: jnp.einsum(*args).astype(jnp.float32)
  scores = [masked(wide('bkgrtd,bkgsd->bkgrts', q, kv.key), mask, cap)]
  if prefix is not None:
    before = wide('bkgrtd,bkpd->bkgrtp', q, prefix.key)
    scores.append(masked(before, prefix_mask, cap))
  top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
  weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  weights = [w.astype(q.dtype) for w in weights]
  out = wide('bkgrts,bkgsd->bkgrtd', weights[0], kv.value)
  if prefix is not None:
    out += wide('bkgrtp,bkpd->bkgrtd', weights[1], prefix.value)
  return (out / total).astype(q.dtype)


def masked(scores: Array, mask: Array, cap: float) -> Array:
  """Scores [B, K, G, R, T, S], capped, very negative where `mask` is false."""
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  return jnp.where(mask[:, None, :, None], scores, -1e30)


def causal(length: int) -> Array:
  """Which of a row's own tokens each token sees: [1, 1, T, T] bool."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def near(positions: BGT, there: BGT, window: Array) -> Array:
  """Which slots, at positions `there`, lie inside the window: [B, G, T, S] bool.

  A token at p sees those after p - window.
  """
  return positions[..., None] - there[..., None, :] < window
