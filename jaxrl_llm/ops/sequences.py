"""From tokens to completions, and from completions to pairs."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import BG, BGT, Array, InputError


def seq_sum(x: BGT, mask: BGT) -> BG:
  """Sum over the completion."""
  return (x * mask).sum(-1)


def seq_mean(x: BGT, mask: BGT) -> BG:
  """Mean over the completion; 0 for an empty one."""
  return seq_sum(x, mask) / jnp.maximum(mask.sum(-1), 1.0)


def margin(x: BG) -> Array:
  """Chosen minus rejected: [B, 2] to [B]. Other group sizes are an InputError."""
  if x.shape[1] != 2:
    raise InputError(
      f'Pairs are groups of two, (chosen, rejected); these have {x.shape[1]} '
      'completions a prompt. Sample two (config.source.group=2), give stored pairs, or '
      'choose a method for what the data are.'
    )
  return x[:, 0] - x[:, 1]


def compared(score: BG, reward: BG) -> tuple[Array, Array, Array]:
  """Winners' and losers' scores of a group's comparisons, their shares: [B, C] each.

  Of two completions the first has won. Of K > 2 each has won against all of a lower
  reward, and C(K, 2) comparisons at most share the weight of their group (InstructGPT,
  https://arxiv.org/abs/2203.02155).
  """
  if score.shape[1] <= 2:
    return score[:, :1], score[:, 1:], jnp.ones_like(margin(score))[:, None]
  i, j = np.triu_indices(score.shape[1], 1)
  first = reward[:, i] > reward[:, j]
  counts = reward[:, i] != reward[:, j]
  share = counts / jnp.maximum(counts.sum(1, keepdims=True), 1)
  pick = lambda a, b: jnp.where(first, score[:, a], score[:, b])
  return pick(i, j), pick(j, i), share


def to_go(x: BGT) -> BGT:
  """Sum of what is still to come, the present included."""
  return jnp.cumsum(x[..., ::-1], -1)[..., ::-1]


def at_last(x: BG, mask: BGT) -> BGT:
  """Puts a number per completion on its last chosen token, zeros elsewhere."""
  remaining = to_go(mask)
  return jnp.where((mask > 0) & (remaining == 1), x[..., None], 0.0)


def words(logp: BGT, mask: BGT) -> BG:
  """Log-prob of what is said: without the stop token, where there is more than that."""
  stop = at_last(jnp.ones_like(mask[..., 0]), mask)
  several = mask.sum(-1, keepdims=True) > 1
  return seq_sum(logp, mask - stop * several)


def at_first(x: BGT, mask: BGT) -> BG:
  """What stands at a completion's first chosen token."""
  return jnp.take_along_axis(x, mask.argmax(-1)[..., None], -1)[..., 0]


def best(score: BG, among: BG) -> BG:
  """1 for the first of those with the highest score, 0 elsewhere; `among` is 1 or 0."""
  top = jnp.where(among > 0, score, -jnp.inf).argmax(1, keepdims=True)
  return among * (jnp.arange(score.shape[1])[None] == top)


def at_rank(mine: Array, other: Array, weight: Array) -> Array:
  """For each row the number of `other` that has the rank of its own in `mine`: [B].

  Ranks ascend, over the rows of a weight above 0; the others get 0.
  """
  last = lambda x: jnp.where(weight > 0, x, jnp.inf)
  rank = jnp.argsort(jnp.argsort(last(mine)))
  return jnp.where(weight > 0, jnp.sort(last(other))[rank], 0.0)


def log_odds(logp: Array) -> Array:
  """log(p / (1 - p)) from log p, stable for p near 0 and near 1.

  log(1 - e^a) is log(-expm1(a)) above a = -log 2 and log1p(-e^a) below; `logp` is held
  at -1e-6 or less.
  """
  a = jnp.minimum(logp, -1e-6)
  near = a > -jnp.log(2.0)
  log1mexp = jnp.where(
    near,
    jnp.log(-jnp.expm1(jnp.where(near, a, -1.0))),
    jnp.log1p(-jnp.exp(jnp.where(near, -1.0, a))),
  )
  return a - log1mexp
