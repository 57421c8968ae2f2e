"""Log-probabilities and entropy from hidden states, without a [B, G, T, V] array."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BGT, Array

CHUNK = 256  # Tokens whose logits exist at once.


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
    chunk: tokens per piece, taken from every prompt so that each device keeps its
      share; at least one of each. Forward and backward hold [chunk, V] at a time.

  Returns:
    logp, entropy: [B, G, T] float32.
  """
  b, g, t = tokens.shape
  warmth = jnp.broadcast_to(temperature.reshape(b, g, -1), tokens.shape)
  rows = (hidden.reshape(b, g * t, -1), tokens.reshape(b, -1), warmth.reshape(b, -1))
  width = min(max(chunk // b, 1), g * t)
  pad = -(g * t) % width

  def pieces(x):
    # Padding repeats the first slot: its numbers are finite and are dropped below.
    x = jnp.concatenate([x, jnp.repeat(x[:, :1], pad, 1)], 1) if pad else x
    return jnp.moveaxis(x.reshape(b, -1, width, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def piece(x):
    hidden, tokens, warmth = (y.reshape(b * width, *y.shape[2:]) for y in x)
    stats = logits_stats(logits(hidden, kernel, cap), tokens, warmth)
    return tuple(y.reshape(b, width) for y in stats)

  logp, entropy = jax.lax.map(piece, jax.tree.map(pieces, rows))
  back = lambda x: jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, : g * t].reshape(b, g, t)
  return back(logp), back(entropy)


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
