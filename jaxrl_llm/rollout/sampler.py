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

from jaxrl_llm.models import caching
from jaxrl_llm.models.attention import KV
from jaxrl_llm.models.decoder import Decoder, Prefix, head_kernel, prefill, unstack
from jaxrl_llm.ops import logprobs
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.places import Places, padded
from jaxrl_llm.types import Array, InputError, Rollout, bucket

Sample = Callable[..., Rollout]
CHUNK = 16  # Tokens decoded between two looks at which slots are free.
LEAST = 128  # Places for a completion's keys and values; doubled when they are full.


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
  prefix: tuple[KV, ...]  # Of each layer [N, K, 1, P, d]; see caching.kept.
  hidden: Array  # [N, G, D], after the last token.
  age: Array  # [N], tokens decoded.
  tokens: Array  # [N, G, T] int32.
  logp: Array  # [N, G, T]
  kept: Array  # [N, G, T]
  within: Array  # [N, G, T]
  length: Array  # [N, G]
  stopped: Array  # [N, G] bool, by a stop token.
  alive: Array  # [N, G] bool


def make_sampler(
  decoder: Decoder,
  *,
  group: int,
  max_length: int,
  slots: int = 0,
  cut: Callable[[np.ndarray, int], int] | None = None,
  unit: int = 1,
  place=lambda x: x,
  cache=None,
) -> Sample:
  """Returns `sample(params, prompts, prompt_length, prompt_id, options, key, version)`.

  Args:
    decoder: the policy's network.
    group: completions per prompt.
    max_length: room for each completion, in tokens; a row that fills it is truncated.
    slots: prompts decoded at once; 0 is all of them. When all completions of one are
      done its slot goes to the next; when no prompt waits and half of every slot's
      completions are done, what is left is decoded in half the rows.
    cut: a row's tokens and its prompt's id to how many of them it keeps and then ends,
      or 0 (stops.stop_strings). The host asks it every CHUNK tokens.
    unit: prompts are placed in multiples of this.
    place: puts arrays with a leading axis of prompts on the devices.
    cache: the dtype in which keys and values are kept (caching.DTYPES). With fewer
      bytes than the network's, the log-probs are of another distribution than the
      trainer's: of the one that was drawn from.

  `sample` takes host arrays (see `Asked`; draw.options makes the options), a typed key
  and the parameters' version. It returns a `Rollout` of [B, group, max_length]; slots
  past a row's length hold token 0 and log-prob 0. Prompts are compiled in four
  widths at most, for each power of two of slots refilled and of rows left, and for each
  doubling of LEAST that the longest rows need: what they do not need costs nothing.
  """
  shape = dict(group=group, max_length=max_length)
  enter, room, decode = programs(decoder, **shape, cache=cache)

  def sample(params, prompts, prompt_length, prompt_id, options, key, version):
    queue = trimmed(Asked(prompts, prompt_length, prompt_id, options), max_length)
    count = len(prompts)
    size = -(-min(slots or count, count) // unit) * unit
    take = lambda which: place(
      jax.tree.map(lambda x: np.asarray(x)[which % count], queue)
    )
    weights = unstack(decoder, params)
    rows = enter(params, take(np.arange(size)), key)
    kv = room(rows, places(0, max_length))
    at, ahead = Places.first(size, count, group), min(size, count)
    found = blank_rollout(options.temperature, prompt_id, version, group, max_length)
    while at.busy():
      kv = caching.widened(kv, places(at.age(rows), max_length))
      rows, kv = decode(weights, rows, kv, CHUNK)
      rows = shortened(rows, at.sample >= 0, cut) if cut else rows
      if not at.collect(rows, found):
        continue
      free = at.free()[: count - ahead]
      if free.size:
        where, which = padded(free, at.give(free, ahead), unit, size)
        rows = refill(rows, where, enter(params, take(which), key))
        ahead += free.size
      elif ahead == count and (keep := at.narrow()) is not None:
        rows, kv = narrowed(rows, kv, keep)
    return found

  return sample


def trimmed(asked: Asked, room: int) -> Asked:
  """The prompts no wider than the longest needs. Refuses prompts and completions that
  do not fit into their arrays.
  """
  (_, width), length = asked.prompts.shape, asked.length
  if bad := [int(x) for x in length if not 1 <= x <= width]:
    raise InputError(
      f'A prompt of {bad[0]} tokens in an array of {width}; give from 1 to {width}.'
    )
  if (most := int(np.max(asked.options.max_length))) > room:
    raise InputError(
      f'Options.max_length={most} and the sampler has room for {room} tokens: lower '
      'it, or make a sampler with a larger max_length.'
    )
  return asked._replace(prompts=asked.prompts[:, : bucket(np.max(length), width)])


def programs(decoder: Decoder, *, group: int, max_length: int, cache=None):
  """`prefilled`, `blank` and `decoded` for one decoder, compiled when first called."""
  same = dict(decoder=decoder, cache=cache)
  enter = functools.partial(prefilled, **same, group=group, max_length=max_length)
  single = decoder.clone(unrolled=True, remat='none')
  decode = functools.partial(decoded, decoder=single)
  room = jax.jit(functools.partial(blank, **same), static_argnums=1)
  return jax.jit(enter), room, jax.jit(decode, donate_argnums=(1, 2))


def prefilled(
  params, asked: Asked, key, *, decoder: Decoder, cache, group: int, max_length: int
) -> Rows:
  """Rows of prompts that have run, before their first token."""
  n = len(asked.prompts)
  hidden, prefix = prefill(decoder, params, asked.prompts, asked.length)
  layer = lambda i: KV(*(caching.kept(x[i], cache) for x in prefix.kv))
  zero = jnp.zeros((n, group, max_length), jnp.float32)
  none = jnp.zeros((n, group), bool)
  return Rows(
    asked=asked,
    keys=jax.random.key_data(row_keys(key, asked.prompt_id, group)),
    prefix=tuple(layer(i) for i in range(decoder.config.layers)),
    hidden=jnp.broadcast_to(hidden[:, :, 0], (n, group, hidden.shape[-1])),
    age=jnp.zeros(n, jnp.int32),
    tokens=zero.astype(jnp.int32),
    logp=zero,
    kept=zero + 1.0,
    within=zero + jnp.inf,
    length=none.astype(jnp.int32),
    stopped=none,
    alive=~none & (asked.options.max_length > 0)[:, None],
  )


def blank(rows: Rows, width: int, *, decoder: Decoder, cache) -> tuple[KV, ...]:
  """A cache for so many tokens of every row: of each layer [N, K, G, width, d]."""
  c, (n, group, _) = decoder.config, rows.tokens.shape
  shape = (n, c.kv_heads, group, width, c.head_dim)
  zero = lambda: caching.kept(jnp.zeros(shape, decoder.dtype), cache)
  return tuple(KV(zero(), zero()) for _ in range(c.layers))


def places(age: int, most: int) -> int:
  """LEAST, doubled until rows of this age have CHUNK tokens more; at most `most`."""
  times = -(-min(age + CHUNK, most) // LEAST)
  return min(LEAST << (times - 1).bit_length(), most)


def decoded(weights, rows: Rows, cache, steps, *, decoder: Decoder):
  """Up to `steps` tokens more for every row that is alive."""
  going = lambda carry: (carry[0] < steps) & carry[1].alive.any()

  def step(carry):
    count, rows, cache = carry
    said = drawn(weights, rows, decoder.config.logit_cap)
    hidden, cache = seen(weights, rows, said.token, cache, decoder)
    return count + 1, written(rows, said)._replace(hidden=hidden), cache

  return jax.lax.while_loop(going, step, (jnp.int32(0), rows, cache))[1:]


def drawn(weights, rows: Rows, cap: float) -> draw.Drawn:
  """Each row's next token, and what is said of it: [N, G]."""
  group = rows.alive.shape[1]
  how = jax.tree.map(lambda x: jnp.repeat(x, group, 0), rows.asked.options)
  flat = rows.hidden.reshape(-1, rows.hidden.shape[-1])
  logits = logprobs.logits(flat, head_kernel(weights), cap)
  found = draw.draw(logits, how, uniform(rows.keys, rows.age))
  return jax.tree.map(lambda x: x.reshape(rows.alive.shape), found)


def seen(weights, rows: Rows, token: Array, cache, decoder: Decoder):
  """Hidden states [N, G, D] after the new tokens, and the cache with them."""
  n, group, _ = rows.tokens.shape
  spread = lambda x: jnp.broadcast_to(x, (n, group, 1, x.shape[-1]))
  positions = spread((rows.asked.length + rows.age)[:, None, None, None])[..., 0]
  slots = jnp.arange(caching.held(cache))[None]
  own = spread((slots <= rows.age[:, None])[:, None, None])
  width = rows.asked.prompts.shape[1]
  prompt = jnp.arange(width)[None] < rows.asked.length[:, None]
  hidden, cache = decoder.apply(
    {'params': weights},
    token[..., None],
    positions,
    own,
    Prefix(rows.prefix, prompt),
    cache,
    rows.age,
  )
  return hidden[:, :, 0], cache


def written(rows: Rows, said: draw.Drawn) -> Rows:
  """The rows with a token more, and those that it ends no longer alive."""
  how, slots = rows.asked.options, jnp.arange(rows.tokens.shape[-1])[None]
  here = (slots == rows.age[:, None])[:, None] & rows.alive[..., None]
  write = lambda old, new: jnp.where(here, new[..., None], old)
  length = rows.length + rows.alive
  stops = (said.token[..., None] == how.stop_ids[:, None]).any(-1) & rows.alive
  return rows._replace(
    age=rows.age + 1,
    tokens=write(rows.tokens, said.token),
    logp=write(rows.logp, said.logp),
    kept=write(rows.kept, said.kept),
    within=write(rows.within, said.within),
    length=length,
    stopped=rows.stopped | stops,
    alive=rows.alive & ~stops & (length < how.max_length[:, None]),
  )


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


def shortened(rows: Rows, open_: np.ndarray, cut: Callable) -> Rows:
  """Ends those of the rows `open_` [N, G] that `cut` ends."""
  said = (rows.tokens, rows.length, rows.asked.prompt_id)
  tokens, length, ids = jax.device_get(said)
  keep = np.zeros(length.shape, np.int32)
  for at in zip(*np.nonzero(open_)):
    keep[at] = cut(tokens[at][: length[at]], ids[at[0]])
  return shorten(rows, keep) if keep.any() else rows


@functools.partial(jax.jit, donate_argnums=0)
def shorten(rows: Rows, keep: Array) -> Rows:
  """Rows of `keep` [N, G] tokens, which then end; 0 leaves a row as it is."""
  length = jnp.where(keep > 0, keep, rows.length)
  inside = jnp.arange(rows.tokens.shape[-1])[None, None] < length[..., None]
  return rows._replace(
    tokens=jnp.where(inside, rows.tokens, 0),
    logp=jnp.where(inside, rows.logp, 0.0),
    kept=jnp.where(inside, rows.kept, 1.0),
    within=jnp.where(inside, rows.within, jnp.inf),
    length=length,
    stopped=rows.stopped | (keep > 0),
    alive=rows.alive & (keep == 0),
  )


@jax.jit
def narrowed(rows: Rows, cache, keep: Array):
  """The rows `keep` [N, G'] of every slot, in that order."""
  take = jax.vmap(lambda x, kept: x[kept])
  names = ('keys', 'hidden', 'tokens', 'logp', 'kept', 'within', 'length', 'stopped')
  names += ('alive',)
  rows = rows._replace(**{name: take(rows._asdict()[name], keep) for name in names})
  inside = jax.vmap(lambda x, kept: x[:, kept])
  return rows, jax.tree.map(lambda x: inside(x, keep), cache)


def blank_rollout(temperature, prompt_id, version, group: int, length: int) -> Rollout:
  """Arrays of the host, to be filled row by row."""
  rows = (len(prompt_id), group)
  return Rollout(
    tokens=np.zeros((*rows, length), np.int32),
    length=np.zeros(rows, np.int32),
    prompt_id=prompt_id,
    behavior_logp=np.zeros((*rows, length), np.float32),
    temperature=np.repeat(np.asarray(temperature)[:, None], group, 1),
    kept_mass=np.ones((*rows, length), np.float32),
    stop_reason=np.zeros(rows, np.int32),
    version=version,
    keep_within=np.full((*rows, length), np.inf, np.float32),
  )
