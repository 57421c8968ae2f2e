"""Softmax attention over a shared prefix and a row's own slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BGT, Array


class KV(NamedTuple):
  """Keys (rotated) and values of every layer: [L, B, G, S, kv_heads, head_dim]."""

  key: Array
  value: Array


def attend(
  q, kv: KV, mask, prefix: KV | None, prefix_mask, *, cap: float = 0.0
) -> Array:
  """Softmax attention over a group's shared prefix and a row's own slots.

  The softmax is in float32. The prefix is never copied per row: its scores are a
  product of its own.

  Args:
    q: [B, G, T, H, d], scaled. kv: [B, G, S, K, d] each; mask: [B, G, T, S] bool.
    prefix: [B, 1, P, K, d] each; prefix_mask: [B, G, T, P] bool. Axes of 1 broadcast.
    cap: scores become cap * tanh(scores / cap); 0 leaves them.

  Returns:
    [B, G, T, H, d].
  """
  b, g, t, h, d = q.shape
  q = q.reshape(b, g, t, kv.key.shape[-2], -1, d)
  scores = jnp.einsum('bgtkrd,bgskd->bgkrts', q, kv.key)
  scores = masked(scores, mask[:, :, None, None], cap)
  if prefix is None:
    weight = jax.nn.softmax(scores, -1).astype(q.dtype)
    out = jnp.einsum('bgkrts,bgskd->bgtkrd', weight, kv.value)
    return out.reshape(b, g, t, h, d)
  key, value = prefix.key[:, 0], prefix.value[:, 0]  # [B, P, K, d]
  before = jnp.einsum('bgtkrd,bpkd->bgkrtp', q, key)
  before = masked(before, prefix_mask[:, :, None, None], cap)
  split = key.shape[1]
  weight = jax.nn.softmax(jnp.concatenate([before, scores], -1), -1).astype(q.dtype)
  out = jnp.einsum('bgkrtp,bpkd->bgtkrd', weight[..., :split], value)
  out += jnp.einsum('bgkrts,bgskd->bgtkrd', weight[..., split:], kv.value)
  return out.reshape(b, g, t, h, d)


def masked(scores: Array, mask: Array, cap: float) -> Array:
  """Scores in float32, capped, with a large negative number where `mask` is false."""
  scores = scores.astype(jnp.float32)
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  return jnp.where(mask, scores, -1e30)


def near(positions: BGT, there: BGT, window: Array) -> Array:
  """Which slots, at positions `there`, lie inside the window: [B, G, T, S] bool.

  A token at p sees those after p - window.
  """
  return positions[..., None] - there[..., None, :] < window
