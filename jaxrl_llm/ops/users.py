"""A user as soft tokens before the prompt (p_rlhf). User 0 is anybody.

  each alone: e_0 + o_u;  clusters: softmax(w_u) V

Who is not among the users is anybody too.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array, Params


def init(key: Array, width: int, users: int, tokens: int, clusters: int) -> Params:
  """All users alike; `clusters` 0 is each alone. 0.02 is the embedding's own size."""
  draw = lambda *shape: 0.02 * jax.random.normal(key, (*shape, tokens, width))
  if not clusters:
    return {'anybody': draw(), 'offset': jnp.zeros((users, tokens, width))}
  return {'centre': draw(clusters), 'belongs': jnp.zeros((users + 1, clusters))}


def soft(own: Params, user: Array) -> Array:
  """Embeddings [B, S, D] of users [B], numbers from 0."""
  if 'centre' in own:
    share = jax.nn.softmax(own['belongs'])
    return jnp.einsum('bk,ksd->bsd', share[among(user, len(share) - 1)], own['centre'])
  user = among(user, len(own['offset']))
  offset = own['offset'][jnp.maximum(user - 1, 0)]
  return own['anybody'][None] + jnp.where(user[:, None, None] > 0, offset, 0.0)


def among(user: Array, count: int) -> Array:
  """Numbers up to `count`, and 0 for any other."""
  user = user.astype(jnp.int32)
  return jnp.where((user > 0) & (user <= count), user, 0)
