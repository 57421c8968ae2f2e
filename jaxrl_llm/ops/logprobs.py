"""Log-probabilities and entropy from hidden states, without a [B, G, T, V] array."""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import divergences
from jaxrl_llm.types import BGT, Array

CHUNK = 256  # Tokens whose logits exist at once.
FLOOR = -50.0  # RLBFF's, of a logit below the largest.


def token_stats(
  hidden: Array,
  kernel: Array,
  tokens: BGT,
  temperature: Array,
  *,
  cap: float = 0.0,
  chunk: int = CHUNK,
) -> tuple[BGT, BGT]:
  """The log-probability of each token and the entropy it was drawn from, in nats.

  logits = cap(kernel @ hidden) / temperature;  logp = log softmax(logits)[token]

  Args:
    hidden: [B, G, T, D], the state before each token; kernel: [V, D].
    tokens: [B, G, T] int32; temperature: [B, G] or [B, G, T].
    cap: logits become cap * tanh(logits / cap); 0 leaves them.
    chunk: as in `chunked`. Forward and backward hold [chunk, V] at a time.

  Returns:
    logp, entropy: [B, G, T] float32.
  """
  warmth = jnp.broadcast_to(temperature.reshape(*tokens.shape[:2], -1), tokens.shape)

  def stats(x):
    hidden, tokens, warmth = x
    return logits_stats(logits(hidden, kernel, cap), tokens, warmth)

  return chunked(stats, (hidden, tokens, warmth), chunk)


def token_collision(
  hidden: Array, kernel: Array, temperature: Array, *, cap=0.0, chunk: int = CHUNK
) -> BGT:
  """log sum_v p(v)^2 of each token's distribution; the arguments are token_stats'."""
  shape = hidden.shape[:3]
  warmth = jnp.broadcast_to(temperature.reshape(*shape[:2], -1), shape)

  def stats(x):
    hidden, warmth = x
    logp = jax.nn.log_softmax(logits(hidden, kernel, cap) / warmth[:, None])
    return (jax.nn.logsumexp(2 * logp, -1),)

  return chunked(stats, (hidden, warmth), chunk)[0]


def likeliest(hidden: Array, kernel: Array, *, cap=0.0, chunk: int = CHUNK) -> BGT:
  """The token that each distribution makes most of; the arguments are token_stats'."""
  best = lambda x: (logits(x, kernel, cap).argmax(-1),)
  return chunked(best, hidden, chunk)[0]


def token_odds(
  hidden: Array, kernel: Array, pair: Array, *, cap=0.0, chunk: int = CHUNK
) -> BGT:
  """max(z_0 - max z, FLOOR) - max(z_1 - max z, FLOOR) of a pair of tokens [2] int32.

  z are the logits before any temperature: above the floor it is log p_0 - log p_1.
  """

  def odds(x):
    z = logits(x[0], kernel, cap)
    held = jnp.maximum(z - z.max(-1, keepdims=True), FLOOR)[:, pair]
    return (held[:, 0] - held[:, 1],)

  return chunked(odds, (hidden,), chunk)[0]


def token_divergence(
  sides: tuple, temperature: Array, beta: Array, *, caps=(0.0, 0.0), chunk: int = CHUNK
) -> BGT:
  """divergences.jsd of two networks' distributions of each token.

  Args:
    sides: (hidden, kernel) of the policy and of the teacher, as in `token_stats`; the
      vocabulary is one.
    temperature: as in `token_stats`, of both.
    beta: a number, the teacher's share.
    caps: as `cap` in `token_stats`, of each.
  """
  (mine, kernel), (other, other_kernel) = sides
  shape = mine.shape[:3]
  warmth = jnp.broadcast_to(temperature.reshape(*shape[:2], -1), shape)

  def apart(x):
    mine, other, warmth = x
    say = lambda *of: jax.nn.log_softmax(logits(*of) / warmth[:, None])
    p, q = say(mine, kernel, caps[0]), say(other, other_kernel, caps[1])
    return (divergences.jsd(p, q, beta),)

  return chunked(apart, (mine, other, warmth), chunk)[0]


def chunked(fn, rows, chunk: int) -> tuple[BGT, ...]:
  """`fn`, of arrays [N, ...] to a tuple of [N], over the tokens of [B, G, T, ...].

  A piece has `chunk` tokens, taken from every prompt so that each device keeps its
  share; at least one of each. The backward pass computes a piece again.
  """
  b, g, t = jax.tree.leaves(rows)[0].shape[:3]
  width = min(max(chunk // b, 1), g * t)
  pad = -(g * t) % width

  def pieces(x):
    # Padding repeats the first slot: its numbers are finite and are dropped below.
    x = x.reshape(b, g * t, *x.shape[3:])
    x = jnp.concatenate([x, jnp.repeat(x[:, :1], pad, 1)], 1) if pad else x
    return jnp.moveaxis(x.reshape(b, -1, width, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def piece(x):
    flat = jax.tree.map(lambda y: y.reshape(b * width, *y.shape[2:]), x)
    return tuple(y.reshape(b, width) for y in fn(flat))

  found = jax.lax.map(piece, jax.tree.map(pieces, rows))
  back = lambda x: jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, : g * t].reshape(b, g, t)
  return tuple(map(back, found))


def logits(hidden: Array, kernel: Array, cap: float = 0.0) -> Array:
  """[N, D] and [V, D] to [N, V] float32; `cap` as in `token_stats`."""
  kernel = kernel.astype(hidden.dtype)
  found = jnp.einsum('nd,vd->nv', hidden, kernel, preferred_element_type=jnp.float32)
  return cap * jnp.tanh(found / cap) if cap else found


def logits_stats(logits: Array, tokens: Array, temperature: Array):
  """[N, V], [N], [N] to (logp [N], entropy [N]), both at `temperature`."""
  logits = logits / temperature[:, None]
  norm = jax.nn.logsumexp(logits, -1)
  taken = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0]
  mean = jnp.sum(jnp.exp(logits - norm[:, None]) * logits, -1)
  return taken - norm, norm - mean
