"""A Llama-family decoder in Linen: one call serves training, prefill and decoding.

Prompts run once per group; completions attend to their group's prompt through
`prefix` and to themselves, so that a completion scored here and one sampled with the
cache see the same numbers (rollout/sampler.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.types import BGT, Array

REMAT = {
  'none': None,  # Keep every activation.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,  # Keep each block's input only.
}


class KV(NamedTuple):
  """Keys (rotated) and values of every layer: [L, B, G, S, kv_heads, head_dim]."""

  key: Array
  value: Array


class Prefix(NamedTuple):
  """A group's prompt, computed once: KV with G = 1, and which slots hold tokens."""

  kv: KV
  mask: Array  # [B, P] bool.


class Decoder(nn.Module):
  """Tokens to hidden states after the final norm; heads read those.

  `scalar` gives the tree a vector `scalar [D]` in place of a language-model head: a
  critic or a reward model. `spread` keeps activations split over prompts
  (sharding.constrain): without it the partitioner follows the split of the weights and
  gathers the batch on every device.
  """

  config: DecoderConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  scalar: bool = False
  spread: Callable[[Array], Array] = lambda x: x

  @nn.compact
  def __call__(
    self,
    tokens: BGT,
    positions: BGT,
    mask: Array,
    prefix: Prefix | None = None,
    cache: KV | None = None,
    index: Array | None = None,
  ) -> tuple[Array, KV]:
    """Returns hidden states [B, G, T, D] and the keys and values of these tokens.

    Args:
      tokens: [B, G, T] int32; positions: [B, G, T] int32, from 0 at the prompt's start.
      mask: [B, G, T, S] bool, which of the S own slots a token sees (S = T without
        a cache). A row that sees nothing at all gets finite, meaningless numbers.
      prefix: the prompt's keys and values, seen by every token of the group.
      cache: own slots [L, B, G, S, ...], written at `index` (scalar) and returned.
    """
    c = self.config
    normal = nn.initializers.normal(0.02)
    embed = self.param('embed', normal, (c.vocab, c.width))
    if self.scalar:
      self.param('scalar', nn.initializers.zeros, (c.width,))
    elif not c.tied:
      self.param('head', normal, (c.width, c.vocab))
    x = self.spread(embed.astype(self.dtype)[tokens])
    block = Block
    if self.remat != 'none':
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, 0, nn.broadcast),
      length=c.layers,
    )(c, self.dtype, self.spread, name='layers')
    prefix_kv, prefix_mask = (None, None) if prefix is None else prefix
    x, kv = layers(x, positions, mask, prefix_mask, prefix_kv, cache, index)
    scale = self.param('final_norm', nn.initializers.ones, (c.width,))
    return rms_norm(x, scale, c.norm_eps), kv


class Block(nn.Module):
  """Attention and SwiGLU, each behind an RMSNorm, each added to the stream."""

  config: DecoderConfig
  dtype: jnp.dtype
  spread: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x, positions, mask, prefix_mask, prefix, cache, index):
    c = self.config
    normal = nn.initializers.normal(0.02)

    def dense(name, x, width):
      kernel = self.param(name, normal, (x.shape[-1], width))
      return jnp.einsum('bgti,io->bgto', x, kernel.astype(self.dtype))

    def norm(name, x):
      scale = self.param(name, nn.initializers.ones, (c.width,))
      return rms_norm(x, scale, c.norm_eps)

    heads = lambda x: x.reshape(*x.shape[:3], -1, c.head_dim)
    h = norm('attn_norm', x)
    q = rope(heads(dense('q', h, c.heads * c.head_dim)), positions, c.rope_base)
    k = rope(heads(dense('k', h, c.kv_heads * c.head_dim)), positions, c.rope_base)
    kv = KV(k, heads(dense('v', h, c.kv_heads * c.head_dim)))
    if cache is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, 2)
      kv = jax.tree.map(write, cache, kv)
    out = attend(q, kv, mask, prefix, prefix_mask)
    x = self.spread(x + dense('o', out.reshape(*out.shape[:3], -1), c.width))
    h = norm('mlp_norm', x)
    gate = nn.silu(dense('gate', h, c.mlp_width))
    x += dense('down', gate * dense('up', h, c.mlp_width), c.width)
    return self.spread(x), kv


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
  """x / rms(x) * scale over the last axis, in float32: [B, G, T, D] to the same."""
  wide = x.astype(jnp.float32)
  rms = jnp.sqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
  return (wide / rms * scale[None, None, None]).astype(x.dtype)


def rope(x: Array, positions: BGT, base: float) -> Array:
  """Rotary position embedding, half-split: [B, G, T, H, d] to the same."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None, None] * frequency[None, None, None, None]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(q, kv: KV, mask, prefix: KV | None, prefix_mask) -> Array:
  """Softmax attention over a group's shared prefix and a row's own slots.

  q [B, G, T, H, d] to [B, G, T, H, d]; the softmax is in float32. The prefix is never
  copied per row: its scores are a product of its own.
  """
  b, g, t, h, d = q.shape
  q = q.reshape(b, g, t, kv.key.shape[-2], -1, d) * d**-0.5
  scores = masked(jnp.einsum('bgtkrd,bgskd->bgkrts', q, kv.key), mask[:, :, None, None])
  if prefix is None:
    weight = jax.nn.softmax(scores, -1).astype(q.dtype)
    out = jnp.einsum('bgkrts,bgskd->bgtkrd', weight, kv.value)
    return out.reshape(b, g, t, h, d)
  key, value = prefix.key[:, 0], prefix.value[:, 0]  # [B, P, K, d]
  before = jnp.einsum('bgtkrd,bpkd->bgkrtp', q, key)
  before = masked(before, prefix_mask[:, None, None, None, None])
  split = key.shape[1]
  weight = jax.nn.softmax(jnp.concatenate([before, scores], -1), -1).astype(q.dtype)
  out = jnp.einsum('bgkrtp,bpkd->bgtkrd', weight[..., :split], value)
  out += jnp.einsum('bgkrts,bgskd->bgtkrd', weight[..., split:], kv.value)
  return out.reshape(b, g, t, h, d)


def masked(scores: Array, mask: Array) -> Array:
  """Scores in float32, with a large negative number where `mask` is false."""
  return jnp.where(mask, scores.astype(jnp.float32), -1e30)


def causal(length: int) -> Array:
  """Which of a row's own tokens each token sees: [1, 1, T, T] bool."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def head_kernel(params) -> Array:
  """The language-model head as [V, D]; the embedding where it is tied."""
  return params['head'].T if 'head' in params else params['embed']


def prefill(decoder: Decoder, params, prompts: Array, prompt_length: Array):
  """Runs prompts once per group.

  Args:
    prompts: [B, P] int32, right-padded; prompt_length: [B] int32.

  Returns:
    The hidden state of each prompt's last token [B, 1, 1, D], and its `Prefix`.
  """
  slot = jnp.arange(prompts.shape[1])
  positions = jnp.broadcast_to(slot[None], prompts.shape)[:, None]
  hidden, kv = decoder.apply(
    {'params': params}, prompts[:, None], positions, causal(prompts.shape[1])
  )
  last = (prompt_length - 1)[:, None, None, None]
  last = jnp.take_along_axis(hidden, last, 2)
  return last, Prefix(kv, slot[None] < prompt_length[:, None])


def extend(decoder: Decoder, params, batch_length: Array, completions: BGT, prefix):
  """Hidden states [B, G, T, D] at every token of completions after their prompts."""
  t = completions.shape[-1]
  positions = batch_length[:, None, None] + jnp.arange(t)[None, None]
  positions = jnp.broadcast_to(positions, completions.shape)
  hidden, _ = decoder.apply(
    {'params': params}, completions, positions, causal(t), prefix
  )
  return hidden
