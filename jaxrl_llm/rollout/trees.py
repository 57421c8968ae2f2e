"""LATR, look-ahead tree rollouts (2025), https://arxiv.org/abs/2510.24302.

A prompt's first branch takes the likeliest token at every step. Where another of the
likeliest, v, has p_v > absolute and p_1 - p_v < relative, it begins another branch,
until there are as many as asked for. A branch that still says what its parent says, so
many tokens after its birth, is pruned, with what grew on it. A full tree grows no
further, and is not pruned: its branches go on by ordinary sampling, as do all at
`until`. Places that are left are filled with ordinary samples.

What is forced is not sampled: the rows are not draws of the policy. Their log-probs are
the policy's own all the same, as a trainer would compute them, and nobody corrects for
the difference, as in the paper. Comparing tokens, and the measures below, are ours.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models.decoder import Decoder, head_kernel, unstack
from jaxrl_llm.ops import logprobs
from jaxrl_llm.rollout import draw, sampler
from jaxrl_llm.rollout.sampler import Asked, Rows, Sample
from jaxrl_llm.types import Array, Rollout

SALT = 31  # Sets the key of ordinary samples apart from that of the tree.


class Growth(NamedTuple):
  """When a tree branches, and what is pruned; the defaults are the official code's."""

  absolute: float = 0.25
  relative: float = 0.15
  tops: int = 2  # Tokens that are looked at.
  looks: tuple = (20, 30, 50)  # Tokens after its birth when a branch is looked at.
  edit: float = 0.4  # Pruned below this share of edits,
  suffix: float = 0.0  # above this share of a common end,
  rouge: float = 0.0  # or above this share of a common subsequence; 0 is never.
  until: int = 512


class Tree(NamedTuple):
  """Of every place [N, G]: its parent, its age at birth, and whether it is taken."""

  parent: np.ndarray
  birth: np.ndarray
  taken: np.ndarray


def share_at(schedule: Sequence, step: int) -> float:
  """What ((step, share), ...) says: the share of the last entry that has begun."""
  begun = [share for first, share in schedule if first <= step]
  return begun[-1] if begun else 0.0


def make_trees(
  decoder: Decoder,
  single: Sample,
  *,
  group: int,
  max_length: int,
  growth: Growth,
  share: Callable[[int], float],
  place=lambda x: x,
) -> Sample:
  """A `sample` in the form of sampler.make_sampler's, all prompts at once.

  Args:
    single: one of groups of one, for the places that are left.
    share: of the group that is grown, by the version of the parameters (their step).
  """
  enter, room, decode = sampler.programs(decoder, group=group, max_length=max_length)
  alone = decoder.clone(unrolled=True, remat='none')
  look = jax.jit(functools.partial(looked, cap=decoder.config.logit_cap, m=growth.tops))
  step = jax.jit(functools.partial(advanced, decoder=alone), donate_argnums=2)

  def sample(params, prompts, prompt_length, prompt_id, options, key, version):
    asked = Asked(prompts, prompt_length, prompt_id, options)
    asked = sampler.trimmed(asked, max_length)
    room_of = (options.temperature, prompt_id, version, group, max_length)
    found = sampler.blank_rollout(*room_of)
    taken = np.zeros((len(prompts), group), bool)
    if most := round(group * share(int(version))):
      rows = enter(params, place(asked), key)
      weights = unstack(decoder, params)
      cache, programs = room(rows, max_length), (look, step)
      rows, cache, taken = grown(weights, rows, cache, programs, growth, most)
      while bool(rows.alive.any()):
        rows, cache = decode(weights, rows, cache, sampler.CHUNK)
      said = jax.device_get((rows.tokens, rows.logp, rows.length, rows.stopped))
      write(found, np.nonzero(taken), *(x[taken] for x in said))
    return filled(found, ~taken, single, params, asked, key, version)

  return sample


def grown(weights, rows: Rows, cache, programs, growth: Growth, most: int):
  """The rows when no tree grows any more, their cache, and which places are taken."""
  look, step = programs
  n, group = rows.alive.shape
  first = np.arange(group)[None] == np.zeros((n, 1))
  tree = Tree(np.full((n, group), -1), np.zeros((n, group), int), first.copy())
  rows = rows._replace(alive=rows.alive & first)
  for age in range(growth.until):
    alive = np.array(rows.alive)
    open_ = (tree.taken.sum(1) < most) & alive.any(1)
    if not open_.any():
      break
    said = jax.device_get(look(weights, rows))
    source, rank = branched(tree, alive & open_[:, None], said[1], growth, age, most)
    if (source != np.arange(group)[None]).any():
      moved, cache = sampler.narrowed(rows, cache, source)
      rows = moved._replace(keys=rows.keys)
    chosen = np.where(open_[:, None], rank + 1, 0)[..., None]
    own = lambda x: np.take_along_axis(x, source[..., None], 1)
    token, logp = (
      np.take_along_axis(own(x), chosen, -1)[..., 0] for x in (said[0], said[2])
    )
    rows, cache = step(weights, rows, cache, token, logp)
    if pruned(tree, rows, open_ & (tree.taken.sum(1) < most), growth, age + 1):
      rows = rows._replace(alive=rows.alive & tree.taken)
  return rows, cache, tree.taken


def branched(tree: Tree, alive, prob, growth: Growth, age: int, most: int):
  """From which place each comes [N, G], and the rank of the token that it takes.

  New branches are entered into the tree.
  """
  n, group = alive.shape
  source, rank = np.tile(np.arange(group), (n, 1)), np.zeros((n, group), int)
  near = prob[..., :1] - prob < growth.relative
  fits = near & (prob > growth.absolute) & alive[..., None]
  for b, g, v in np.argwhere(fits[..., 1:]):
    if tree.taken[b].sum() < most:
      new = int(np.argmin(tree.taken[b]))
      source[b, new], rank[b, new] = g, v + 1
      tree.parent[b, new], tree.birth[b, new], tree.taken[b, new] = g, age, True
  return source, rank


def pruned(tree: Tree, rows: Rows, open_, growth: Growth, age: int) -> bool:
  """Frees the places of branches that say what their parents say; whether any."""
  due = tree.taken & (tree.parent >= 0) & open_[:, None]
  due &= np.isin(age - tree.birth, growth.looks)
  due &= np.asarray(rows.alive)
  if not due.any():
    return False
  tokens, length = jax.device_get((rows.tokens, rows.length))
  gone = np.zeros_like(due)
  for b, g in np.argwhere(due):
    since = lambda i: tokens[b, i, tree.birth[b, g] : length[b, i]].tolist()
    gone[b, g] = alike(since(g), since(tree.parent[b, g]), growth)
  while (more := tree.taken & ~gone & (tree.parent >= 0) & above(gone, tree)).any():
    gone |= more
  tree.taken[gone] = False
  tree.parent[gone] = -1
  return bool(gone.any())


def above(gone, tree: Tree):
  """Whether a place's parent is gone."""
  return np.take_along_axis(gone, np.maximum(tree.parent, 0), 1)


def alike(one: list, other: list, growth: Growth) -> bool:
  """Whether two continuations are too similar to keep both."""
  size, mean = max(len(one), len(other), 1), max(len(one) + len(other), 1) / 2
  end = next(
    (i for i, (x, y) in enumerate(zip(one[::-1], other[::-1])) if x != y),
    min(len(one), len(other)),
  )
  return bool(
    (growth.edit and table(one, other)[0] / size < growth.edit)
    or (growth.suffix and end / size > growth.suffix)
    or (growth.rouge and table(one, other)[1] / mean > growth.rouge)
  )


def table(one: list, other: list) -> tuple[int, int]:
  """Edits from one to the other (Levenshtein), and their longest common subsequence."""
  edits, common = list(range(len(other) + 1)), [0] * (len(other) + 1)
  for i, x in enumerate(one, 1):
    last, edits[0], before = edits[0], i, 0
    for j, y in enumerate(other, 1):
      same = x == y
      last, edits[j] = edits[j], min(edits[j] + 1, edits[j - 1] + 1, last + (not same))
      before, common[j] = (
        common[j],
        before + 1 if same else max(common[j], common[j - 1]),
      )
  return edits[-1], common[-1]


def looked(weights, rows: Rows, *, cap: float, m: int):
  """[N, G, 1 + m]: a drawn token and the m likeliest; [N, G, m]: their probabilities,
  untempered; [N, G, 1 + m]: the log-probs of all, at the temperature.
  """
  shape = rows.alive.shape
  how = jax.tree.map(lambda x: jnp.repeat(x, shape[1], 0), rows.asked.options)
  flat = rows.hidden.reshape(-1, rows.hidden.shape[-1])
  logits = logprobs.logits(flat, head_kernel(weights), cap)
  drawn = draw.draw(logits, how, sampler.uniform(rows.keys, rows.age)).token
  prob, likeliest = jax.lax.top_k(jax.nn.softmax(logits), m)
  tokens = jnp.concatenate([drawn[:, None], likeliest.astype(jnp.int32)], 1)
  warmth = jnp.where(how.temperature == 0, 1.0, how.temperature)[:, None]
  logp = jnp.take_along_axis(jax.nn.log_softmax(logits / warmth), tokens, 1)
  return tuple(x.reshape(*shape, -1) for x in (tokens, prob, logp))


def advanced(weights, rows: Rows, cache, token: Array, logp: Array, *, decoder):
  """The rows with these tokens behind them."""
  hidden, cache = sampler.seen(weights, rows, token, cache, decoder)
  one = jnp.ones_like(logp)  # All words are kept.
  rows = sampler.written(rows, draw.Drawn(token, logp, one, jnp.inf * one))
  return rows._replace(hidden=hidden), cache


def write(found: Rollout, to, *said) -> None:
  """Puts tokens, log-probs, lengths and stop reasons into the places `to`."""
  tokens, logp, length, stopped = map(np.asarray, said)
  found.tokens[to], found.behavior_logp[to] = tokens, logp
  found.length[to], found.stop_reason[to] = length, stopped


def filled(found: Rollout, left, single: Sample, params, asked: Asked, key, version):
  """`found` with ordinary samples in the places that are left [N, G].

  A power of two is asked for, so that few shapes compile.
  """
  b, g = np.nonzero(left)
  if not len(b):
    return found
  room = 2 ** (len(b) - 1).bit_length()
  which = np.append(b, np.zeros(room - len(b), b.dtype))
  one = jax.tree.map(lambda x: np.asarray(x)[which], asked)
  some = one.options.max_length * (np.arange(room) < len(b))
  how = one.options._replace(max_length=some.astype(np.int32))
  ids = one.prompt_id * left.shape[1] + np.append(g, np.zeros(room - len(g), g.dtype))
  more = single(
    params,
    one.prompts,
    one.length,
    ids.astype(np.int32),
    how,
    jax.random.fold_in(key, SALT),
    version,
  )
  said = (more.tokens, more.behavior_logp, more.length, more.stop_reason)
  write(found, (b, g), *(x[: len(b), 0] for x in said))
  return found
