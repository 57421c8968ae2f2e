"""Log-probabilities and entropy from hidden states, without a [B, G, T, V] array."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import blocks, divergences
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
  block: int = blocks.BLOCK,
  live: Array | None = None,
  within: BGT | None = None,
) -> tuple[BGT, BGT]:
  """The log-probability of each token and the entropy it was drawn from, in nats.

  logits = cap(kernel @ hidden) / temperature;  logp = log softmax(logits)[token]

  Args:
    hidden: [B, G, T, D], the state before each token; kernel: [V, D].
    tokens: [B, G, T] int32; temperature: [B, G] or [B, G, T].
    cap: logits become cap * tanh(logits / cap); 0 leaves them.
    chunk: as in `chunks`; block: words, as in blocks.mapped. Forward and backward hold
      [chunk, block] at a time.
    live: [B, G, T] bool, which tokens are wanted; a chunk without one is not computed,
      and its numbers mean nothing. None: all.
    within: [B, G, T] nats, the distribution is cut to the token and the words whose
      - log p is at most so much, p of the whole one; a word that leaves it has no
      gradient. One more forward pass finds the whole one's sum. None: whole.

  Returns:
    logp, entropy: [B, G, T] float32.
  """
  how = dict(cap=cap, chunk=chunk, block=block, live=live)
  warmth = warmths(temperature, tokens.shape)
  least = None
  if within is not None:
    fixed = jax.lax.stop_gradient((hidden, kernel))
    (whole,) = in_blocks(sum_stats, *fixed, (warmth,), **how)
    least = jax.nn.logsumexp(whole, 0) - within
  rest = tokens, least, warmth
  taken, norm, mean = in_blocks(taken_stats, hidden, kernel, rest, **how)
  total = jax.nn.logsumexp(norm, 0)
  mean = jnp.sum(jnp.exp(norm - total[None]) * mean, 0)
  return taken.sum(0) - total, total - mean


def token_collision(
  hidden: Array,
  kernel: Array,
  temperature: Array,
  *,
  cap: float = 0.0,
  chunk: int = CHUNK,
  block: int = blocks.BLOCK,
) -> BGT:
  """log sum_v p(v)^2 of each token's distribution; the arguments are token_stats'."""
  rest = (warmths(temperature, hidden.shape[:3]),)
  how = dict(cap=cap, chunk=chunk, block=block)
  found = in_blocks(collision_stats, hidden, kernel, rest, **how)
  norm, twice = (jax.nn.logsumexp(x, 0) for x in found)
  return twice - 2 * norm


def in_blocks(stats, hidden, kernel, rest, *, cap, chunk, block, live=None):
  """What `stats` says of each token in each block of words: a tuple of
  [blocks, B, G, T]. `rest` are [B, G, T], the temperatures last; else as token_stats.
  """
  read = functools.partial(per_block, stats, len(kernel), cap)
  cut, back = chunks(hidden.shape[:3], chunk)
  live = None if live is None else cut(live).any((1, 2))
  found = blocks.mapped(read, live, cut(hidden), cut(rest), kernel, block)
  return tuple(jax.vmap(back)(x) for x in found)


def per_block(stats, vocab: int, cap: float, hidden, rest, words, kernel):
  """What `stats` says of a block's logits at their temperature, a chunk of tokens
  [B, K, ...] at once. `rest` ends with the temperatures.
  """
  shape = hidden.shape[:2]
  hidden, *rest, warmth = flat((hidden, *rest))
  found = logits(hidden, kernel, cap) / warmth[:, None]
  found = stats(jnp.where(words[None] < vocab, found, -1e30), words, *rest)
  return tuple(x.reshape(shape) for x in found)


def taken_stats(logits: Array, words: Array, tokens: Array, least: Array | None):
  """Of a block [N, W] each token's logit, or 0 if it is elsewhere; logsumexp; mean.

  The token itself is there whatever `least` [N] leaves.
  """
  here = words[None] == tokens[:, None]
  taken = jnp.sum(jnp.where(here, logits, 0.0), -1)
  if least is not None:
    logits = jnp.where(here | (logits >= least[:, None]), logits, -1e30)
  norm = jax.nn.logsumexp(logits, -1)
  return taken, norm, jnp.sum(jnp.exp(logits - norm[:, None]) * logits, -1)


def sum_stats(logits: Array, words: Array):
  """Of a block [N, W] the logsumexp of the logits."""
  del words
  return (jax.nn.logsumexp(logits, -1),)


def collision_stats(logits: Array, words: Array):
  """Of a block [N, W] the logsumexp of the logits, and of their doubles."""
  del words
  return jax.nn.logsumexp(logits, -1), jax.nn.logsumexp(2 * logits, -1)


def warmths(temperature: Array, shape) -> BGT:
  """Temperatures [B, G] or [B, G, T] as [B, G, T]."""
  return jnp.broadcast_to(temperature.reshape(*shape[:2], -1), shape)


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


def token_gap(
  hidden: Array, kernel: Array, tokens: BGT, *, cap=0.0, chunk: int = CHUNK
) -> BGT:
  """By how many nats each token is less likely than the likeliest in its place.

  Before any temperature; the arguments are token_stats'.
  """

  def gap(x):
    z, token = logits(x[0], kernel, cap), x[1]
    return (z.max(-1) - jnp.take_along_axis(z, token[:, None], -1)[:, 0],)

  return chunked(gap, (hidden, tokens), chunk)[0]


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
  warmth = warmths(temperature, mine.shape[:3])

  def apart(x):
    mine, other, warmth = x
    say = lambda *of: jax.nn.log_softmax(logits(*of) / warmth[:, None])
    p, q = say(mine, kernel, caps[0]), say(other, other_kernel, caps[1])
    return (divergences.jsd(p, q, beta),)

  return chunked(apart, (mine, other, warmth), chunk)[0]


def chunked(fn, rows, chunk: int) -> tuple[BGT, ...]:
  """`fn`, of arrays [N, ...] to a tuple of [N], over the tokens of [B, G, T, ...].

  The backward pass computes a chunk again.
  """
  cut, back = chunks(jax.tree.leaves(rows)[0].shape[:3], chunk)

  @jax.checkpoint
  def read(x):
    shape = jax.tree.leaves(x)[0].shape[:2]
    return tuple(y.reshape(shape) for y in fn(flat(x)))

  return tuple(map(back, jax.lax.map(read, cut(rows))))


def chunks(shape, chunk: int) -> tuple[Callable, Callable]:
  """Of trees of [B, G, T, ...] to [C, B, K, ...], and of [C, B, K] back to [B, G, T].

  A chunk has `chunk` tokens, K from every prompt so that each device keeps its share;
  at least one of each. Padding repeats the first token: its numbers are finite and are
  dropped on the way back.
  """
  b, g, t = shape
  width = min(max(chunk // b, 1), g * t)
  pad = -(g * t) % width

  def one(x):
    x = x.reshape(b, g * t, *x.shape[3:])
    x = jnp.concatenate([x, jnp.repeat(x[:, :1], pad, 1)], 1) if pad else x
    return jnp.moveaxis(x.reshape(b, -1, width, *x.shape[2:]), 1, 0)

  back = lambda x: jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, : g * t].reshape(b, g, t)
  return functools.partial(jax.tree.map, one), back


def flat(tree):
  """[B, K, ...] as [N, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def logits(hidden: Array, kernel: Array, cap: float = 0.0) -> Array:
  """[N, D] and [V, D] to [N, V], float32 at least; `cap` as in `token_stats`."""
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  kernel = kernel.astype(hidden.dtype)
  found = jnp.einsum('nd,vd->nv', hidden, kernel, preferred_element_type=wide)
  return cap * jnp.tanh(found / cap) if cap else found
