"""Prompts to completions: each prompt once, cached decoding, slots that are refilled.

A draw depends on (key, prompt id, sample id, position) alone: not on the order of the
prompts, their batch, its padding, or the slot that they get.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models.attention import KV
from jaxrl_llm.models.decoder import Decoder, Prefix, head_kernel, prefill, unstack
from jaxrl_llm.ops import logprobs
from jaxrl_llm.rollout import draw
from jaxrl_llm.types import Array, Rollout, bucket

Sample = Callable[..., Rollout]
CHUNK = 16  # Tokens decoded between two looks at which slots are free.


class Asked(NamedTuple):
  """N prompts and how to sample them."""

  prompts: Array  # [N, P] int32, right-padded.
  length: Array  # [N]
  prompt_id: Array  # [N]; also the seed.
  options: draw.Options


class Rows(NamedTuple):
  """What N slots hold: a prompt each, and its G completions so far."""

  asked: Asked
  keys: Array  # [N, G, 2] uint32.
  prefix: tuple[KV, ...]  # Of each layer [N, K, 1, P, d].
  hidden: Array  # [N, G, D], after the last token.
  age: Array  # [N], tokens decoded.
  tokens: Array  # [N, G, T] int32.
  logp: Array  # [N, G, T]
  kept: Array  # [N, G, T]
  length: Array  # [N, G]
  stopped: Array  # [N, G] bool, by a stop token.
  alive: Array  # [N, G] bool


def make_sampler(
  decoder: Decoder,
  *,
  group: int,
  max_length: int,
  slots: int = 0,
  unit: int = 1,
  place=lambda x: x,
) -> Sample:
  """Returns `sample(params, prompts, prompt_length, prompt_id, options, key, version)`.

  Args:
    decoder: the policy's network.
    group: completions per prompt.
    max_length: room for each completion, in tokens; a row that fills it is truncated.
    slots: prompts decoded at once; 0 is all of them. When all completions of one are
      done its slot goes to the next.
    unit: prompts are placed in multiples of this.
    place: puts arrays with a leading axis of prompts on the devices.

  `sample` takes host arrays (see `Asked`; draw.options makes the options), a typed key
  and the parameters' version. It returns a `Rollout` of [B, group, max_length]; slots
  past a row's length hold token 0 and log-prob 0. Prompts are compiled in four
  widths at most, and once for every power of two of slots that are refilled together.
  """
  enter, decode, blank = make_steps(decoder, group=group, max_length=max_length)

  def sample(params, prompts, prompt_length, prompt_id, options, key, version):
    width = bucket(np.max(prompt_length), prompts.shape[1])
    queue = Asked(prompts[:, :width], prompt_length, prompt_id, options)
    count = len(prompts)
    size = min(slots or count, -(-count // unit) * unit)
    take = lambda which: place(
      jax.tree.map(lambda x: np.asarray(x)[which % count], queue)
    )
    weights = unstack(params, decoder.dtype)
    rows = enter(params, take(np.arange(size)), key)
    cache = blank(rows)
    if size == count:
      rows, _ = decode(weights, rows, cache, max_length)
      return to_rollout(rows, prompt_id, version)
    owner, ahead, done = np.arange(size), min(size, count), {}
    owner[count:] = -1
    while (owner >= 0).any():
      rows, cache = decode(weights, rows, cache, CHUNK)
      free = np.flatnonzero(~np.asarray(rows.alive).any(1) & (owner >= 0))
      if not free.size:
        continue
      found = jax.device_get(to_rollout(rows, owner, None))
      done |= {owner[s]: jax.tree.map(lambda x: x[s], found) for s in free}
      owner[free] = -1
      free = free[: count - ahead]
      if free.size:
        owner[free] = np.arange(ahead, ahead + free.size)
        where, which = padded(free, owner[free], unit, size)
        rows = refill(rows, where, enter(params, take(which), key))
        ahead += free.size
    found = jax.tree.map(lambda *x: np.stack(x), *(done[i] for i in range(count)))
    return found.replace(prompt_id=prompt_id, version=version)

  return sample


def make_steps(decoder: Decoder, *, group: int, max_length: int):
  """A sampler's programs: prompts into rows, some tokens for every row, a cache."""
  single = decoder.clone(unrolled=True, remat='none')
  cap, slots = decoder.config.logit_cap, jnp.arange(max_length)[None]

  @jax.jit
  def enter(params, asked: Asked, key) -> Rows:
    n = len(asked.prompts)
    hidden, prefix = prefill(decoder, params, asked.prompts, asked.length)
    zero = jnp.zeros((n, group, max_length), jnp.float32)
    dead = jnp.zeros((n, group), bool)
    return Rows(
      asked=asked,
      keys=jax.random.key_data(row_keys(key, asked.prompt_id, group)),
      prefix=tuple(
        jax.tree.map(lambda x: x[i], prefix.kv) for i in range(decoder.config.layers)
      ),
      hidden=jnp.broadcast_to(hidden[:, :, 0], (n, group, hidden.shape[-1])),
      age=jnp.zeros(n, jnp.int32),
      tokens=zero.astype(jnp.int32),
      logp=zero,
      kept=zero + 1.0,
      length=dead.astype(jnp.int32),
      stopped=dead,
      alive=~dead & (asked.options.max_length > 0)[:, None],
    )

  def one(weights, rows: Rows, cache):
    n, how, age = len(rows.age), rows.asked.options, rows.age
    each = jax.tree.map(lambda x: jnp.repeat(x, group, 0), how)
    logits = logprobs.logits(
      rows.hidden.reshape(n * group, -1), head_kernel(weights), cap
    )
    drawn = draw.draw(logits, each, uniform(rows.keys, age))
    token, logp, kept = (x.reshape(n, group) for x in drawn)
    here = (slots == age[:, None])[:, None] & rows.alive[..., None]
    write = lambda old, new: jnp.where(here, new[..., None], old)
    length = rows.length + rows.alive
    stops = (token[..., None] == how.stop_ids[:, None]).any(-1) & rows.alive
    positions = jnp.broadcast_to(
      (rows.asked.length + age)[:, None, None], (n, group, 1)
    )
    seen = jnp.broadcast_to(
      (slots <= age[:, None])[:, None, None], (n, group, 1, max_length)
    )
    there = jnp.arange(rows.asked.prompts.shape[1])[None] < rows.asked.length[:, None]
    hidden, cache = single.apply(
      {'params': weights},
      token[..., None],
      positions,
      seen,
      Prefix(rows.prefix, there),
      cache,
      age,
    )
    rows = rows._replace(
      hidden=hidden[:, :, 0],
      age=age + 1,
      tokens=write(rows.tokens, token),
      logp=write(rows.logp, logp),
      kept=write(rows.kept, kept),
      length=length,
      stopped=rows.stopped | stops,
      alive=rows.alive & ~stops & (length < how.max_length[:, None]),
    )
    return rows, cache

  @functools.partial(jax.jit, donate_argnums=(1, 2))
  def decode(weights, rows: Rows, cache, steps):
    going = lambda carry: (carry[0] < steps) & carry[1].alive.any()
    step = lambda carry: (carry[0] + 1, *one(weights, *carry[1:]))
    return jax.lax.while_loop(going, step, (jnp.int32(0), rows, cache))[1:]

  @jax.jit
  def blank(rows: Rows) -> tuple[KV, ...]:
    """Room for every row's tokens: of each layer [N, K, G, T, d]."""
    c = decoder.config
    shape = (len(rows.age), c.kv_heads, group, max_length, c.head_dim)
    zero = lambda: jnp.zeros(shape, decoder.dtype)
    return tuple(KV(zero(), zero()) for _ in range(c.layers))

  return enter, decode, blank


def row_keys(key: Array, prompt_id: Array, group: int) -> Array:
  """One key per row, from its prompt's id and its place in the group: [N, G]."""
  fold = jax.random.fold_in
  prompt_keys = jax.vmap(lambda i: fold(key, i))(prompt_id)
  return jax.vmap(lambda k: jax.vmap(lambda g: fold(k, g))(jnp.arange(group)))(
    prompt_keys
  )


def uniform(keys: Array, age: Array) -> Array:
  """Two numbers in [0, 1) for every row: keys [N, G, 2] and age [N] to [N * G, 2]."""
  times = jnp.repeat(age, keys.shape[1])
  rows = jax.random.wrap_key_data(keys.reshape(-1, keys.shape[-1]))
  return jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t), (2,)))(
    rows, times
  )


@functools.partial(jax.jit, donate_argnums=0)
def refill(rows: Rows, where: Array, fresh: Rows) -> Rows:
  """`fresh` in the slots `where` [n]; a slot past the last one is none."""
  return jax.tree.map(lambda x, y: x.at[where].set(y, mode='drop'), rows, fresh)


def padded(free, which, unit: int, size: int):
  """Slots and prompts filled up to a power of two of units, so that few compile."""
  count = unit * 2 ** int(np.ceil(np.log2(-(-len(free) // unit))))
  fill = lambda x, value: np.append(x, np.full(count - len(x), value, x.dtype))
  return fill(free, size), fill(which, which[0])


def to_rollout(rows: Rows, prompt_id, version) -> Rollout:
  n, group = rows.alive.shape
  warmth = jnp.broadcast_to(rows.asked.options.temperature[:, None], (n, group))
  return Rollout(
    tokens=rows.tokens,
    length=rows.length,
    prompt_id=prompt_id,
    behavior_logp=rows.logp,
    temperature=warmth,
    kept_mass=rows.kept,
    stop_reason=rows.stopped.astype(jnp.int32),
    version=version,
  )
