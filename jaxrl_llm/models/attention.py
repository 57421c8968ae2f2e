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
  q,
  kv: KV,
  mask,
  prefix: KV | None,
  prefix_mask,
  *,
  cap: float = 0.0,
  causal: bool,
  operands=None,
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
    operands: the dtype of what enters the products of long rows; None: q's.

  Returns:
    [B, G, T, H, d].
  """
  b, g, t, h, d = q.shape
  q = q.reshape(b, g, t, kv.key.shape[1], -1, d).transpose(0, 3, 1, 4, 2, 5)
  parts = [(kv, mask)]
  if prefix is not None:
    parts.append((jax.tree.map(lambda x: x[:, :, 0], prefix), prefix_mask))
  if causal and t > BLOCK:
    enter = lambda x: x.astype(operands or x.dtype)
    parts = [(jax.tree.map(enter, kv), mask) for kv, mask in parts]
    out = blocked(enter(q), parts, cap).astype(q.dtype)
  else:
    out, _ = mixed(q, parts, cap)
  return out.transpose(0, 2, 4, 1, 3, 5).reshape(b, g, t, h, d)


def mixed(q, parts, cap: float) -> tuple[Array, Array]:
  """`attend` heads first, and log(sum(exp(score))) [B, K, G, R, T, 1] in float32.

  Heads that share keys, and rows that share a prefix, are one product each.

  Args:
    q: [B, K, G, R, T, d], of R = H / K heads to a key.
    parts: keys and values, [B, K, G, S, d] each or [B, K, S, d] for all rows of a
      group, and which of them a query sees [B, G, T, S] bool.
  """
  found = [masked(score(q, kv.key), mask, cap) for kv, mask in parts]
  top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in found])
  weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in found]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  out = sum(read(w.astype(q.dtype), kv.value) for w, (kv, _) in zip(weights, parts))
  return (out / total).astype(q.dtype), top + jnp.log(total)


# ---- Long causal rows, a block of queries at a time ----------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def blocked(q, parts, cap: float) -> Array:
  """`mixed`, whose gradient makes the scores again: FlashAttention,
  https://arxiv.org/abs/2205.14135, without its blocks of keys.

  The first of `parts` is causal: a block leaves out its slots after the last query.
  """
  return blocked_forward(q, parts, cap)[0]


def blocked_forward(q, parts, cap):
  rows = [mixed(q[..., a:b, :], cut(parts, a, b), cap) for a, b in blocks(q)]
  out, log_sums = zip(*rows)
  out = jnp.concatenate(out, 4)
  return out, (q, parts, out, log_sums)


def blocked_backward(cap, kept, slope):
  """With p = exp(score - log_sum) and dp = slope . value: dscore = p (dp - sum(p dp)),
  where the sum over all slots is slope . out.
  """
  q, parts, out, log_sums = kept
  queries, keys = [], [jax.tree.map(zeros, kv) for kv, _ in parts]
  for (a, b), log_sum in zip(blocks(q), log_sums):
    piece, up, said = (x[..., a:b, :] for x in (q, slope, out))
    mean = (up.astype(jnp.float32) * said).sum(-1, keepdims=True)
    found = 0.0
    for i, (kv, mask) in enumerate(cut(parts, a, b)):
      raw = score(piece, kv.key)
      p = jnp.exp(masked(raw, mask, cap) - log_sum)
      d = p * (score(up, kv.value) - mean)
      if cap:
        d *= 1 - jnp.square(jnp.tanh(raw / cap))
      p, d = p.astype(q.dtype), d.astype(q.dtype)
      found += read(d, kv.key)
      keys[i] = jax.tree.map(added, keys[i], KV(write(d, piece, kv), write(p, up, kv)))
    queries.append(found.astype(q.dtype))
  keys = [jax.tree.map(lambda x: x.astype(q.dtype), kv) for kv in keys]
  return jnp.concatenate(queries, 4), [(kv, None) for kv in keys]


blocked.defvjp(blocked_forward, blocked_backward)


def blocks(q) -> list[tuple[int, int]]:
  """Where each block of queries begins and ends."""
  t = q.shape[4]
  size = max(BLOCK, -(-t // BLOCKS))
  return [(a, min(a + size, t)) for a in range(0, t, size)]


def cut(parts, a: int, b: int):
  """What the queries a to b see: of the first part what stands before b."""
  rows = lambda mask: mask if mask.shape[2] == 1 else mask[:, :, a:b]
  (kv, mask), *rest = parts
  own = jax.tree.map(lambda x: x[:, :, :, :b], kv), rows(mask)[..., :b]
  return [own, *((kv, rows(mask)) for kv, mask in rest)]


def zeros(x: Array) -> Array:
  return jnp.zeros(x.shape, jnp.float32)


def added(total: Array, x: Array) -> Array:
  """The total with x added to its first slots, [..., S, d]."""
  return total.at[..., : x.shape[-2], :].add(x)


# ---- Products, in float32 ------------------------------------------------------------


def score(q, key) -> Array:
  """q . key: [B, K, G, R, T, S]."""
  return summed(f'bkgrtd,{axes(key)}sd->bkgrts', q, key)


def read(weight, value) -> Array:
  """Values by their weights: [B, K, G, R, T, d]."""
  return summed(f'bkgrts,{axes(value)}sd->bkgrtd', weight, value)


def write(weight, x, kv: KV) -> Array:
  """The way back of `read`, to the slots of `kv`."""
  return summed(f'bkgrts,bkgrtd->{axes(kv.key)}sd', weight, x)


def summed(spec: str, x, y) -> Array:
  # Before jax 0.9 a CPU has no batches of such products of bfloat16.
  known = jnp.float32 if jax.__version_info__ >= (0, 9) else None
  return jnp.einsum(spec, x, y, preferred_element_type=known).astype(jnp.float32)


def axes(key) -> str:
  return 'bkg' if key.ndim == 5 else 'bk'


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
