"""Prompts to completions: prefill once per group, cached decoding, early exit.

A draw depends on (key, prompt id, sample id, position) alone: not on the order of the
prompts, their batch or its padding.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrl_llm.models.attention import KV
from jaxrl_llm.models.decoder import Decoder, head_kernel, prefill
from jaxrl_llm.ops import logprobs
from jaxrl_llm.types import BG, Array, Rollout

Sample = Callable[..., Rollout]


def make_sampler(
  decoder: Decoder, *, group: int, max_length: int, stop_ids: Sequence[int]
) -> Sample:
  """Returns a jitted `sample(params, prompts, ...) -> Rollout`.

  Args:
    decoder: the policy's network.
    group: completions per prompt.
    max_length: room for each completion, in tokens; a row that fills it is truncated.
    stop_ids: tokens that end a completion and belong to it.

  The returned function is jitted and takes prompts [B, P] int32 (right-padded),
  prompt_length [B], prompt_id [B], temperature [B] (0 is greedy, whose log-probs are
  those of temperature 1), a typed key and the parameters' version. It returns a
  `Rollout` of [B, group, max_length]; slots past a row's length hold token 0 and
  log-prob 0.
  """
  stops = jnp.asarray(stop_ids, jnp.int32)

  @jax.jit
  def sample(params, prompts, prompt_length, prompt_id, temperature, key, version):
    b = prompts.shape[0]
    warmth = jnp.broadcast_to(temperature[:, None], (b, group))
    keys = row_keys(key, prompt_id, group)
    kernel, cap = head_kernel(params), decoder.config.logit_cap
    last, prefix = prefill(decoder, params, prompts, prompt_length)
    last = jnp.broadcast_to(last, (b, group, 1, last.shape[-1]))
    slots = jnp.arange(max_length)

    def decode(carry):
      t, hidden, cache, tokens, logp, length, alive = carry
      token, token_logp = draw(hidden[:, :, 0], kernel, warmth, keys, t, cap)
      tokens = tokens.at[:, :, t].set(jnp.where(alive, token, 0))
      logp = logp.at[:, :, t].set(jnp.where(alive, token_logp, 0.0))
      length += alive
      alive &= (token[..., None] != stops[None, None]).all(-1)
      positions = jnp.broadcast_to((prompt_length + t)[:, None, None], (b, group, 1))
      seen = jnp.broadcast_to(slots[None, None, None] <= t, (b, group, 1, max_length))
      hidden, cache = decoder.apply(
        {'params': params}, token[..., None], positions, seen, prefix, cache, t
      )
      return t + 1, hidden, cache, tokens, logp, length, alive

    carry = blank_carry(decoder, last, b, group, max_length)
    going = lambda carry: (carry[0] < max_length) & carry[-1].any()
    *_, tokens, logp, length, alive = jax.lax.while_loop(going, decode, carry)
    return Rollout(
      tokens=tokens,
      length=length,
      prompt_id=prompt_id,
      behavior_logp=logp,
      temperature=warmth,
      kept_mass=jnp.ones_like(logp),
      stop_reason=(~alive).astype(jnp.int32),
      version=version,
    )

  return sample


def row_keys(key: Array, prompt_id: Array, group: int) -> Array:
  """One key per row, from its prompt's id and its place in the group: [B, G]."""
  fold = jax.random.fold_in
  prompt_keys = jax.vmap(lambda i: fold(key, i))(prompt_id)
  return jax.vmap(lambda k: jax.vmap(lambda g: fold(k, g))(jnp.arange(group)))(
    prompt_keys
  )


def blank_carry(decoder: Decoder, hidden: Array, b: int, group: int, length: int):
  """Before the first token: (t, hidden, cache, tokens, logp, length, alive).

  The cache has room for `length` tokens of every row: [L, B, K, G, length, d].
  """
  c = decoder.config
  shape = (c.layers, b, c.kv_heads, group, length, c.head_dim)
  cache = KV(jnp.zeros(shape, decoder.dtype), jnp.zeros(shape, decoder.dtype))
  tokens = jnp.zeros((b, group, length), jnp.int32)
  alive = jnp.ones((b, group), bool)
  none = jnp.zeros((b, group), jnp.int32)
  return jnp.int32(0), hidden, cache, tokens, tokens.astype(jnp.float32), none, alive


def draw(hidden: Array, kernel: Array, temperature: BG, keys: Array, t: Array, cap):
  """Draws one token per row, by adding Gumbel noise: (token, its log-prob), [B, G].

  hidden: [B, G, D]; keys: [B, G]. A row of temperature 0 takes the likeliest token.
  """
  b, g, _ = hidden.shape
  rows = hidden.reshape(b * g, -1)
  greedy = (temperature == 0).reshape(-1)
  warmth = jnp.where(greedy, 1.0, temperature.reshape(-1))
  logits = logprobs.logits(rows, kernel, cap)
  scaled = logits / warmth[:, None]
  noise = jax.vmap(
    lambda k: jax.random.gumbel(jax.random.fold_in(k, t), logits.shape[1:])
  )(keys.reshape(-1))
  noise = jnp.where(greedy[:, None], 0.0, noise)
  token = jnp.argmax(scaled + noise, -1).astype(jnp.int32)
  logp, _ = logprobs.logits_stats(logits, token, warmth)
  return token.reshape(b, g), logp.reshape(b, g)
