"""A mixture of experts without a capacity: no token is dropped, none is padded."""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def route(logits: Array, *, k: int, normalise: bool) -> tuple[Array, Array]:
  """The k likeliest experts of each token: weights and indices, [N, E] to [N, k] each.

  weight = softmax(logits) in float32, over its sum over the chosen if `normalise`.
  """
  probs = jax.nn.softmax(logits.astype(jnp.float32), -1)
  weight, chosen = jax.lax.top_k(probs, k)
  if normalise:
    weight /= weight.sum(-1, keepdims=True)
  return weight.astype(logits.dtype), chosen


def mix(x: Array, weight: Array, chosen: Array, gate, up, down, act) -> Array:
  """sum over chosen e of weight_e down_e(act(gate_e x) * up_e x): [N, D] to the same.

  Tokens are sorted by expert, so that each expert is one product over its own rows.

  Args:
    weight, chosen: [N, k]; gate, up: [E, D, F]; down: [E, F, D].
  """
  flat = chosen.reshape(-1)
  order = jnp.argsort(flat)
  sizes = jnp.bincount(flat, length=gate.shape[0])
  rows = x[order // chosen.shape[1]]
  product = lambda x, kernel: jax.lax.ragged_dot(x, kernel, sizes)
  out = product(act(product(rows, gate)) * product(rows, up), down)
  # Gathered back, not scattered: the order of the sum is fixed.
  out = out[jnp.argsort(order)].reshape(*chosen.shape, -1)
  return jnp.sum(out * weight[..., None], 1)
