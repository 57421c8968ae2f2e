"""Log-probabilities and entropy from hidden states, without a [B, G, T, V] array."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BGT, Array

CHUNK = 256  # Tokens whose logits exist at once.


def token_stats(
  hidden: Array, kernel: Array, tokens: BGT, temperature: Array, *, chunk: int = CHUNK
) -> tuple[BGT, BGT]:
  """The log-probability of each token and the entropy it was drawn from, in nats.

  logits = kernel @ hidden / temperature;  logp = log softmax(logits)[token]

  Args:
    hidden: [B, G, T, D], the state before each token; kernel: [V, D].
    tokens: [B, G, T] int32; temperature: [B, G].
    chunk: tokens per piece. Forward and backward hold [chunk, V] at a time.

  Returns:
    logp, entropy: [B, G, T] float32.
  """
  shape = tokens.shape
  warmth = jnp.broadcast_to(temperature[..., None], shape)
  flat = (hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1), warmth.reshape(-1))
  n = flat[1].shape[0]
  chunk = min(chunk, n)
  pad = -n % chunk

  def pieces(x):
    # Padding repeats the first row: its numbers are finite and are dropped below.
    x = jnp.concatenate([x, jnp.repeat(x[:1], pad, 0)]) if pad else x
    return x.reshape(-1, chunk, *x.shape[1:])

  @jax.checkpoint
  def piece(x):
    return logits_stats(logits(x[0], kernel), x[1], x[2])

  logp, entropy = jax.lax.map(piece, jax.tree.map(pieces, flat))
  back = lambda x: x.reshape(-1)[:n].reshape(shape)
  return back(logp), back(entropy)


def logits(hidden: Array, kernel: Array) -> Array:
  """[N, D] and [V, D] to [N, V] float32."""
  kernel = kernel.astype(hidden.dtype)
  return jnp.einsum('nd,vd->nv', hidden, kernel, preferred_element_type=jnp.float32)


def logits_stats(logits: Array, tokens: Array, temperature: Array):
  """[N, V], [N], [N] to (logp [N], entropy [N]), both at `temperature`."""
  logits = logits / temperature[:, None]
  norm = jax.nn.logsumexp(logits, -1)
  taken = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0]
  mean = jnp.sum(jnp.exp(logits - norm[:, None]) * logits, -1)
  return taken - norm, norm - mean
