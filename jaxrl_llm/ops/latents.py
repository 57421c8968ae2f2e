"""What is known of a user, as a normal distribution of a hidden vector (vpl)."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import mlp
from jaxrl_llm.types import Array, InputError, Params, State

bend = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)


def init(key: Array, width: int, hidden: int, latent: int) -> Params:
  """The networks. `infer` is zero at first: of whomever, mu is 0 and sigma 1."""
  keys = jax.random.split(key, 4)
  turn = jax.random.normal(keys[3], (3, hidden, hidden)) / jnp.sqrt(hidden)
  return {
    'pair': mlp.init(keys[0], (2 * width, hidden, hidden)),
    'attend': {name: turn[i] for i, name in enumerate('qkv')},
    'infer': mlp.init(keys[1], (hidden, 2 * latent), last=0.0),
    'score': mlp.init(keys[2], (width + latent, hidden, hidden, 1)),
  }


def known(embedding: Array) -> Array:
  """The pairs behind the first one: [B, 2 + 2 K, D] to [B, K, 2 D]."""
  b, g, d = embedding.shape
  if g % 2:
    raise InputError(
      f'vpl: a group is one pair and pairs that are known, not {g} completions. Set '
      "config.data.kind='user_pairs'."
    )
  return embedding[:, 2:].reshape(b, g // 2 - 1, 2 * d)


def posterior(own: Params, pairs: Array) -> tuple[Array, Array]:
  """mu and log sigma^2, [B, latent] each, of pairs [B, K, 2 D] in any order."""
  h = mlp.apply(own['pair'], pairs, bend)
  q, k, v = (h @ own['attend'][name] for name in 'qkv')
  share = jax.nn.softmax(q @ k.transpose(0, 2, 1) / jnp.sqrt(h.shape[-1]))
  count = max(pairs.shape[1], 1)
  found = mlp.apply(own['infer'], (h + share @ v).sum(1) / count, bend)
  found = found if pairs.shape[1] else jnp.zeros_like(found)
  mu, log_var = jnp.split(found, 2, -1)
  return mu, jnp.clip(log_var, -1.0, 1.0)


def scored(own: Params, embedding: Array, z: Array) -> Array:
  """Scores [B, G] of completions [B, G, D] to users [B, latent]."""
  z = jnp.broadcast_to(z[:, None], (*embedding.shape[:2], z.shape[-1]))
  return mlp.apply(own['score'], jnp.concatenate([embedding, z], -1), bend)[..., 0]


def scaled(z: Array) -> Array:
  """z at the norm that a draw of N(0, 1) has about."""
  size = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(z), -1, keepdims=True), 1e-12))
  return z / size * jnp.sqrt(z.shape[-1])


def kl_normal(mu: Array, log_var: Array) -> Array:
  """KL(N(mu, sigma^2) || N(0, 1)): -1/2 sum(1 + log sigma^2 - mu^2 - sigma^2)."""
  return -0.5 * jnp.sum(1 + log_var - jnp.square(mu) - jnp.exp(log_var), -1)


def noise(state: State, example: Array, latent: int) -> Array:
  """N(0, 1) of (root key, step, example): [B, latent]."""
  root = jax.random.fold_in(state.key, state.step)
  draw = lambda i: jax.random.normal(jax.random.fold_in(root, i), (latent,))
  return jax.vmap(draw)(example)
