"""One token per row from its logits: by temperature, top-k, top-p and min-p."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Array, InputError

WIDTH = 256  # Tokens of a block of the vocabulary.
NONE = -1  # A stop id that no token has.


class Options(NamedTuple):
  """How each of N prompts is sampled. Arrays, so that no value compiles anything."""

  temperature: Array  # [N] float32; 0 is greedy, whose log-probs are those of 1.
  top_k: Array  # [N] int32, the likeliest so many; 0 is all.
  top_p: Array  # [N] float32, the fewest likeliest with this mass; 1 is all.
  min_p: Array  # [N] float32, at least this share of the likeliest; 0 is all.
  max_length: Array  # [N] int32 tokens.
  stop_ids: Array  # [N, K] int32, tokens that end a completion; NONE fills up.


def options(
  n: int, *, max_length, stop_ids=(), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
) -> Options:
  """`Options` of n prompts: a value for all or one each; `stop_ids` are for all."""
  wide = lambda x, dtype: np.broadcast_to(np.asarray(x, dtype), (n,)).copy()
  stops = np.asarray([*stop_ids] or [NONE], np.int32)
  return Options(
    wide(temperature, np.float32),
    wide(top_k, np.int32),
    wide(top_p, np.float32),
    wide(min_p, np.float32),
    wide(max_length, np.int32),
    np.broadcast_to(stops, (n, len(stops))).copy(),
  )


def truncation(source) -> dict:
  """Those of top_k, top_p and min_p that a mapping has."""
  return {k: source[k] for k in ('top_k', 'top_p', 'min_p') if k in source}


def check(where: str, *, top_k=0, top_p=1.0, min_p=0.0) -> None:
  """Refuses what no distribution can be cut to."""
  whole = isinstance(top_k, int) and top_k >= 0
  if not (whole and 0 < top_p <= 1 and 0 <= min_p <= 1):
    raise InputError(
      f'{where}top_k={top_k!r}, top_p={top_p!r}, min_p={min_p!r}; give an integer '
      'top_k from 0, top_p above 0 and at most 1, min_p from 0 to 1.'
    )


def cuts(source) -> bool:
  """Whether a mapping's top_k, top_p and min_p cut the distribution."""
  return bool(truncates(options(1, max_length=1, **truncation(source))).any())


def truncates(how: Options) -> Array:
  """Which prompts are not sampled from the whole distribution: [N] bool."""
  return (how.top_k > 0) | (how.top_p < 1) | (how.min_p > 0)


class Drawn(NamedTuple):
  """A token for each of N rows, and of which distribution it is a draw."""

  token: Array  # [N] int32
  logp: Array  # [N], under the distribution drawn from.
  kept: Array  # [N], that distribution's share of the whole one.
  within: Array  # [N] nats; see types.Rollout.keep_within.


def draw(logits: Array, how: Options, uniform: Array) -> Drawn:
  """Draws from softmax(logits / temperature), cut to what `how` keeps.

  Args:
    logits: [N, V] float32.
    how: of each row.
    uniform: [N, 2] in [0, 1).

  The log-prob under the whole distribution is logp + log(kept).
  """
  greedy = how.temperature == 0
  logits /= jnp.where(greedy, 1.0, how.temperature)[:, None]
  top = logits.max(-1)
  weight = jnp.exp(logits - top[:, None])  # The likeliest has 1.
  total = weight.sum(-1)
  truncated = truncates(how) & ~greedy
  none = jnp.full_like(total, -jnp.inf)
  whole = lambda weight: (weight, none)
  cut = functools.partial(parted, how=how)
  kept, edge = jax.lax.cond(truncated.any(), cut, whole, weight)
  mass = jnp.where(truncated, kept.sum(-1), total)
  likeliest = jax.lax.cond(
    greedy.any(),
    lambda x: x.argmax(-1).astype(jnp.int32),
    lambda x: jnp.zeros(len(x), jnp.int32),
    logits,
  )
  token = jnp.where(greedy, likeliest, pick(kept, uniform))
  taken = jnp.take_along_axis(logits, token[:, None], -1)[:, 0]
  within = jnp.where(truncated, jnp.log(total) - edge, jnp.inf)
  token = token.astype(jnp.int32)
  return Drawn(token, taken - top - jnp.log(mass), mass / total, within)


def parted(weight: Array, how: Options) -> tuple[Array, Array]:
  """The weights that are kept [N, V], and the logarithm of one between the least of
  them and the largest of the others [N]; -inf where there is no other.

  Halfway, so that whoever computes the logits again finds the same parts.
  """
  keep = weight >= threshold(weight, how)[:, None]
  least = jnp.where(keep, weight, 1.0).min(-1)
  most = jnp.where(keep, 0.0, weight).max(-1)
  return jnp.where(keep, weight, 0.0), (jnp.log(least) + jnp.log(most)) / 2


def threshold(weight: Array, how: Options) -> Array:
  """The least weight kept: [N, V], the likeliest of each row 1, to [N].

  Top-k, then top-p of what that leaves, then min-p; equal weights are kept together.
  """
  one = jnp.ones_like(weight)
  at_least = largest(weight, one, how.top_k.astype(jnp.float32))
  at_least = jnp.where(how.top_k > 0, at_least, 0.0)
  left = jnp.where(weight < at_least[:, None], 0.0, weight)
  enough = largest(left, left, how.top_p * left.sum(-1))
  enough = jnp.where(how.top_p < 1, enough, 0.0)
  return jnp.maximum(jnp.maximum(at_least, enough), how.min_p)


def largest(weight: Array, counts: Array, goal: Array) -> Array:
  """The largest t with sum(counts[weight >= t]) >= goal, or 0; weights lie in [0, 1].

  Floats above 0 are ordered as their bits are, so t is found bit by bit in 30 sums,
  where sorting the vocabulary would cost far more.
  """

  def bit(i, found):
    tried = found | (1 << (29 - i))
    value = jax.lax.bitcast_convert_type(tried, jnp.float32)
    reached = jnp.where(weight >= value[:, None], counts, 0.0).sum(-1) >= goal
    return jnp.where(reached & (value <= 1.0), tried, found)

  found = jax.lax.fori_loop(0, 30, bit, jnp.zeros(len(goal), jnp.int32))
  return jax.lax.bitcast_convert_type(found, jnp.float32)


def pick(weight: Array, uniform: Array) -> Array:
  """Draws an index of each row with probability proportional to its weight.

  First a block of the row, then a place in it: each of the two sees few numbers, and
  rounding spares even the rarest.
  """
  n, v = weight.shape
  blocks = jnp.pad(weight, ((0, 0), (0, -v % WIDTH))).reshape(n, -1, WIDTH)
  block = invert(blocks.sum(-1), uniform[:, 0])
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return block * WIDTH + invert(inside, uniform[:, 1])


def invert(weight: Array, uniform: Array) -> Array:
  """The first index at which the running sum exceeds `uniform` of the whole: [N, M]
  and [N] to [N]. One without weight is never taken.
  """
  sums = jnp.cumsum(weight, -1)
  whole = sums[:, -1]
  goal = jnp.minimum(uniform * whole, jnp.nextafter(whole, 0.0))
  return (sums <= goal[:, None]).sum(-1)
