"""A decoder-only transformer in Linen: one call serves training, prefill and decoding.

Prompts run once per group; completions attend to their group's prompt through
`prefix` and to themselves, so that a completion scored here and one sampled with the
cache see the same numbers (rollout/sampler.py). Which family a decoder is of is told by
the options of its config alone (families.py).
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.models import attention, caching, experts, ragged, rope
from jaxrl_llm.models.attention import KV, causal
from jaxrl_llm.models.config import DecoderConfig, Lora
from jaxrl_llm.models.products import adapted, flat, product
from jaxrl_llm.types import BGT, Array

# config.model.dtype: of activations, and of what enters a product with a matrix.
DTYPES = {
  'float32': dict(dtype=jnp.float32),
  'mixed': dict(dtype=jnp.float32, operands=jnp.bfloat16),
  'bfloat16': dict(dtype=jnp.bfloat16),
}
REMAT = {
  'none': None,  # Keep every activation.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,  # Keep each block's input only.
}
ACTIVATIONS = {
  'silu': nn.silu,
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}
MANY = 128  # Tokens for which it pays to copy a matrix.
ALL = 1 << 30  # A window that leaves nothing out.
NORMAL, ZEROS = nn.initializers.normal(0.02), nn.initializers.zeros


class Prefix(NamedTuple):
  """A group's prompt, computed once: KV with G = 1, and which slots hold tokens."""

  kv: KV
  mask: Array  # [B, P] bool.


class PerLayer(NamedTuple):
  """What differs from layer to layer and is not learned."""

  turn: Array  # [L] int32, its kind of rotation.
  window: Array  # [L] int32


class Decoder(nn.Module):
  """Tokens to hidden states after the final norm; heads read those.

  `scores` above 0 gives the tree a matrix `scores [D, scores]` in place of a
  language-model head: a critic or a reward model. `spread` keeps activations split
  over prompts (sharding.constrain): without it the partitioner follows the split of
  the weights and gathers the batch on every device; so it would where tokens are looked
  up, but for `whole` (sharding.whole_rows). `lora` adds adapters to the tree.
  `unrolled` takes parameters, prefix and cache layer by layer (`unstack`) and gives
  keys and values so: a loop over layers would copy each layer's weights and cache.
  `operands` is the dtype of what enters a product with a layer's matrix (products.py)
  and the attention of long rows, where it is not `dtype`, that of the activations;
  head, experts and sampling's attention keep `dtype`.
  """

  config: DecoderConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  scores: int = 0
  spread: Callable[[Array], Array] = lambda x: x
  whole: Callable[[Array], Array] = lambda x: x
  lora: Lora | None = None
  unrolled: bool = False
  operands: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    positions: BGT,
    mask: Array | None,
    prefix: Prefix | None = None,
    cache: KV | None = None,
    index: Array | None = None,
    rows: ragged.Ragged | None = None,
  ) -> tuple[Array, KV]:
    """Returns hidden states [B, G, T, D] and the keys and values of these tokens.

    Args:
      tokens: [B, G, T] int32, or embeddings [B, G, T, D] in their place.
      positions: [B, G, T] int32, from 0 at the prompt's start, consecutive.
      mask: [B, G, T, S] bool, which of the S own slots a token sees (S = T without
        a cache). A row that sees nothing at all gets finite, meaningless numbers.
      prefix: the prompt's keys and values, seen by every token of the group.
      cache: own slots [L, B, K, G, S, d], written at `index` [B] and returned; it and
        the prefix may be kept in fewer bytes (caching.py).
      rows: where the tokens [R, 1, S] are whole groups without padding, the rows that
        attention sees; mask, prefix and cache are None.
    """
    c = self.config
    embed = self.param('embed', NORMAL, (c.vocab, c.width))
    if self.scores:
      self.param('scores', ZEROS, (c.width, self.scores))
    elif not c.tied:
      self.param('head', NORMAL, (c.width, c.vocab))
    x = tokens
    if tokens.ndim < 4:
      words = embed.astype(self.dtype)
      # A decoded token is one row: it would not pay to gather the words for it.
      x = (self.whole(words) if cache is None else words)[tokens]
    x = x.astype(self.dtype) * jnp.asarray(c.embed_scale, self.dtype)
    if c.rope is None:
      table = self.param('position', NORMAL, (c.max_positions, c.width))
      x += table.astype(self.dtype)[positions]
    prefix_kv, prefix_mask = (None, None) if prefix is None else prefix
    windows = jnp.array([w or ALL for w in c.windows or (0,) * c.layers], jnp.int32)
    kinds, frequency, gain = map(jnp.asarray, rope.table(c))
    turns, per_layer = rope.angles(positions, frequency, gain), PerLayer(kinds, windows)
    same, x = (turns, positions, mask, prefix_mask, rows), self.spread(x)
    if self.unrolled:
      x, kv = self.one_by_one(x, per_layer, same, prefix_kv, cache, index)
    else:
      x, kv = self.scanned()(x, per_layer, *same, prefix_kv, cache, index)
    return norm(self, c, 'final_norm', x), kv

  def scanned(self):
    """All layers as a loop over their stacked parameters."""
    block = Block
    if self.remat != 'none':
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    return nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, *(nn.broadcast,) * 5, 0, 0, nn.broadcast),
      length=self.config.layers,
    )(**self.given(), name='layers')

  def given(self) -> dict:
    """What every block is given."""
    return dict(
      config=self.config,
      dtype=self.dtype,
      spread=self.spread,
      lora=self.lora,
      operands=self.operands or self.dtype,
    )

  def one_by_one(self, x, per_layer, same, prefix, cache, index):
    """All layers in turn, each with parameters of its own."""
    found = []
    for i in range(self.config.layers):
      block = Block(**self.given(), name=f'layer_{i}')
      here = jax.tree.map(lambda y: y[i], per_layer)
      x, kv = block(x, here, *same, prefix[i], cache[i], index)
      found.append(kv)
    return x, tuple(found)


class Block(nn.Module):
  """Attention and an MLP, each between norms, each added to the stream."""

  config: DecoderConfig
  dtype: jnp.dtype
  spread: Callable[[Array], Array]
  lora: Lora | None
  operands: jnp.dtype

  @nn.compact
  def __call__(
    self, x, per_layer, turns, positions, mask, prefix_mask, rows, prefix, cache, index
  ):
    c = self.config
    q, k, v = self.project(self.norm('attn_norm', x))
    turn = jax.tree.map(lambda y: y[per_layer.turn], turns)
    q, k = rope.rotate(q, turn), rope.rotate(k, turn)
    q *= c.query_scale or c.head_dim**-0.5
    see = functools.partial(self.attend, window=per_layer.window)
    if rows is None:
      out, kv = see(q, k, v, positions, mask, prefix, prefix_mask, cache, index)
    else:
      out, kv = ragged.attend(see, q, k, v, rows), None
    out = self.dense('o', out.reshape(*out.shape[:3], -1), c.width)
    x = self.spread(x + self.norm('attn_post_norm', out))
    out = self.mlp(self.norm('mlp_norm', x))
    return self.spread(x + self.norm('mlp_post_norm', out)), kv

  def attend(
    self,
    q,
    k,
    v,
    positions,
    mask,
    prefix=None,
    prefix_mask=None,
    cache=None,
    index=None,
    *,
    window,
  ):
    """What rows of tokens [B, G, T, heads, d] read, and the keys and values there."""
    heads_first = lambda y: y.transpose(0, 3, 1, 2, 4)
    kv, there = KV(heads_first(k), heads_first(v)), positions
    if cache is not None:
      kv = caching.written(cache, kv, index)
      there = positions[..., :1] - index[:, None, None]
      there += jnp.arange(mask.shape[-1])[None, None]
    if prefix is not None:
      prefix_mask = prefix_mask[:, None, None]
    if any(self.config.windows):
      mask &= attention.near(positions, there, window)
      if prefix is not None:
        slots = jnp.arange(prefix_mask.shape[-1])[None, None]
        prefix_mask = prefix_mask & attention.near(positions, slots, window)
    cap, plain = self.config.attention_cap, cache is None
    seen, before = (caching.read(x, q.dtype) for x in (kv, prefix))
    how = dict(cap=cap, causal=plain, operands=self.operands)
    out = attention.attend(q, seen, mask, before, prefix_mask, **how)
    return out, kv

  def project(self, h):
    """Queries, keys and values: [B, G, T, heads, head_dim] each."""
    c, lead = self.config, h.shape[:3]
    heads = lambda x: x.reshape(*lead, -1, c.head_dim)
    h = flat(h)
    q, k = (
      self.dense(name, h, n * c.head_dim)
      for name, n in (('q', c.heads), ('k', c.kv_heads))
    )
    if c.qk_norm_wide:
      q, k = heads(self.norm('q_norm', q)), heads(self.norm('k_norm', k))
    else:
      q, k = self.norm('q_norm', heads(q)), self.norm('k_norm', heads(k))
    return q, k, heads(self.dense('v', h, c.kv_heads * c.head_dim))

  def mlp(self, h):
    """down(act(gate(h)) * up(h)), down(act(up(h))) without a gate, or experts."""
    c, shape, h = self.config, h.shape, flat(h)
    act = ACTIVATIONS[c.activation]
    if c.experts:
      return self.experts(h, act).reshape(shape)
    wide = [self.dense(name, h, c.mlp_width) for name in ('gate', 'up')[not c.gated :]]
    # Computed again backward: to keep what lies inside costs more than that.
    mixed = lambda first, *up: math.prod(up, start=act(first))
    inner = jax.checkpoint(mixed, prevent_cse=False)(*wide)
    return self.dense('down', inner, c.width).reshape(shape)

  def experts(self, h, act):
    c = self.config
    e, d, f = c.experts, c.width, c.mlp_width
    shapes = {'gate': (e, d, f), 'up': (e, d, f), 'down': (e, f, d)}
    kernels = [
      self.param(name, NORMAL, shape).astype(self.dtype)
      for name, shape in shapes.items()
    ]
    weight, chosen = experts.route(
      self.dense('router', h, e),
      k=c.experts_per_token,
      normalise=c.normalise_experts,
    )
    return experts.mix(h, weight, chosen, *kernels, act)

  def dense(self, name, x, width):
    kernel = self.param(name, NORMAL, (x.shape[-1], width))
    if self.lora and re.fullmatch(self.lora.targets, name):
      y = self.with_adapter(name, x, kernel, width)
    else:
      y = product(x, kernel, self.operands)
    if name in self.config.biases:
      bias = self.param(f'{name}_bias', ZEROS, (width,))
      y += bias.astype(self.dtype)[(None,) * (y.ndim - 1)]
    return y

  def with_adapter(self, name, x, kernel, width):
    """x W + (alpha / rank) x a b, the latter of no effect at the start."""
    spread = x.shape[-1] ** -0.5
    uniform = lambda key, shape: jax.random.uniform(
      key, shape, minval=-spread, maxval=spread
    )
    a = self.param(f'{name}_lora_a', uniform, (x.shape[-1], self.lora.rank))
    b = self.param(f'{name}_lora_b', ZEROS, (self.lora.rank, width))
    low = self.lora.alpha / self.lora.rank * product(x, a, self.operands)
    # Where a CPU multiplies fast, to write a wide result costs more than to copy W; not
    # for few tokens. Other dtypes are those of pods, which keep W split.
    if self.operands != self.dtype and len(flat(x)) > MANY:
      y = adapted(flat(x), flat(low), kernel, b, self.operands)
      return y.reshape(*x.shape[:-1], -1)
    return product(x, kernel, self.operands) + product(low, b, self.operands)

  def norm(self, name, x):
    return norm(self, self.config, name, x) if name in self.config.norms else x


def norm(module: nn.Module, c: DecoderConfig, name: str, x: Array) -> Array:
  """x over its size (RMSNorm), or less its mean over its deviation (LayerNorm), times
  a learned scale, over the last axis, in float32.
  """
  wide = x.astype(jnp.float32)
  lead = (None,) * (x.ndim - 1)
  start = nn.initializers.constant(1.0 - c.norm_offset)
  scale = module.param(name, start, (x.shape[-1],)) + c.norm_offset
  if c.norm == 'layer':
    wide -= wide.mean(-1, keepdims=True)
  # Not jnp.square, whose gradient keeps 2 * wide beside it.
  y = wide / jnp.sqrt(jnp.mean(wide * wide, -1, keepdims=True) + c.norm_eps)
  y *= scale[lead]
  if c.norm == 'layer':
    y += module.param(f'{name}_bias', ZEROS, (x.shape[-1],))[lead]
  return y.astype(x.dtype)


def head_kernel(params) -> Array:
  """The language-model head as [V, D]; the embedding where it is tied."""
  return params['head'].T if 'head' in params else params['embed']


@functools.partial(jax.jit, static_argnums=0)
def unstack(decoder: Decoder, params):
  """A working copy for an `unrolled` decoder: a tree per layer, matrices as it takes
  them.
  """
  cast = lambda x, dtype: x.astype(dtype) if x.ndim > 1 else x
  rest = {k: cast(x, decoder.dtype) for k, x in params.items() if k != 'layers'}
  count, kind = len(jax.tree.leaves(params['layers'])[0]), taken_as(decoder)
  layer = lambda i: jax.tree.map(lambda x: cast(x[i], kind), params['layers'])
  return rest | {f'layer_{i}': layer(i) for i in range(count)}


def as_operands(decoder: Decoder, params):
  """Parameters that nobody trains, the layers' matrices rounded once and not at every
  product, for a copy of half their bytes during the step.
  """
  if decoder.operands is None or 'layers' not in params:
    return params
  cast = lambda x: x.astype(taken_as(decoder)) if x.ndim > 2 else x
  return params | {'layers': jax.tree.map(cast, params['layers'])}


def taken_as(decoder: Decoder):
  """The dtype of the layers' matrices; experts are not rounded."""
  own = decoder.config.experts or decoder.operands is None
  return decoder.dtype if own else decoder.operands


def prefill(decoder: Decoder, params, prompts: Array, prompt_length: Array):
  """Runs prompts once per group.

  Args:
    prompts: [B, P] int32 or [B, P, D], right-padded; prompt_length: [B] int32.

  Returns:
    The hidden state of each prompt's last token [B, 1, 1, D], and its `Prefix`.
  """
  slot = jnp.arange(prompts.shape[1])
  positions = jnp.broadcast_to(slot[None], prompts.shape[:2])[:, None]
  hidden, kv = decoder.apply(
    {'params': params}, prompts[:, None], positions, causal(prompts.shape[1])
  )
  last = (prompt_length - 1)[:, None, None, None]
  last = jnp.take_along_axis(hidden, last, 2)
  return last, Prefix(kv, slot[None] < prompt_length[:, None])


def extend(decoder: Decoder, params, batch_length: Array, completions: Array, prefix):
  """Hidden states [B, G, T, D] at every token of completions after their prompts.

  Completions are [B, G, T] int32, or embeddings [B, G, T, D].
  """
  t = completions.shape[2]
  positions = batch_length[:, None, None] + jnp.arange(t)[None, None]
  positions = jnp.broadcast_to(positions, completions.shape[:3])
  hidden, _ = decoder.apply(
    {'params': params}, completions, positions, causal(t), prefix
  )
  return hidden
