"""Who beats whom: of two completions, and in a group.

A judge says how likely the first of two completions beats the second: rewards [B, 2]
to [B]. Where config.judge has read the completions themselves, its verdicts d stand in
the place of that: P = (1 + d) / 2, with d in Batch.extra['duel'] (beside.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import BG, Array, Batch, InputError, Metrics


def bradley_terry(reward: BG, *, scale: float = 1.0) -> Array:
  """sigmoid of the difference of the rewards, times `scale`."""
  return jax.nn.sigmoid(scale * sequences.margin(reward))


def half(margin: Array, strength: Array | float = 0.0) -> tuple[Array, Array, Array]:
  """Log-probs of (win, loss, tie) by Bradley-Terry; a tie is half of each."""
  win, loss = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  return win, loss, (win + loss) / 2


def rao_kupper(margin: Array, strength: Array) -> tuple[Array, Array, Array]:
  """sigmoid(m - e), sigmoid(-m - e) and the rest for a tie, e = strength; as logs.

  What is left is expm1(2 e) sigmoid(m - e) sigmoid(-m - e).
  """
  win = jax.nn.log_sigmoid(margin - strength)
  loss = jax.nn.log_sigmoid(-margin - strength)
  return win, loss, jnp.log(jnp.expm1(2 * strength)) + win + loss


def davidson(margin: Array, strength: Array) -> tuple[Array, Array, Array]:
  """As e^(m / 2), e^(-m / 2) and strength; as logs."""
  sides = margin / 2, -margin / 2, jnp.log(strength) * jnp.ones_like(margin)
  total = jax.nn.logsumexp(jnp.stack(sides), axis=0)
  return tuple(x - total for x in sides)


def better(reward: BG) -> Array:
  """1 for the higher reward, 1/2 for a tie."""
  return (1 + jnp.sign(sequences.margin(reward))) / 2


def matrix(reward: BG, *, table: tuple) -> Array:
  """table[i][j], where i and j are the rewards of the two: kinds, counted from 0.

  P may be intransitive. A table whose P(i, j) and P(j, i) do not add up to 1 is an
  InputError.
  """
  found = np.array(table, np.float32)
  if found.ndim != 2 or not np.allclose(found + found.T, 1.0, atol=1e-5):
    raise InputError(
      f'matrix: table[i][j] + table[j][i] is 1 in a square; not {table}.'
    )
  sequences.margin(reward)  # Refuses other groups than pairs.
  kind = jnp.clip(reward.astype(jnp.int32), 0, len(found) - 1)
  return jnp.asarray(found)[kind[:, 0], kind[:, 1]]


def first(judge, batch: Batch) -> Array:
  """How likely the first of two completions beats the second: [B]."""
  said = judge(batch.reward)  # Refuses other groups than pairs.
  return (1 + verdicts(batch)[:, 0, 1]) / 2 if 'duel' in batch.extra else said


def against_group(judge, batch: Batch) -> BG:
  """How likely each beats one of its group: the mean over all valid, itself as 1/2."""
  reward, valid = batch.reward, batch.valid
  b, g = reward.shape
  if 'duel' in batch.extra:
    chance = (1 + verdicts(batch)) / 2
  else:
    both = jnp.broadcast_arrays(reward[:, :, None], reward[:, None])
    chance = judge(jnp.stack(both, -1).reshape(-1, 2)).reshape(b, g, g)
  wins = (chance * valid[:, None]).sum(-1)
  return wins * valid / jnp.maximum(valid.sum(1, keepdims=True), 1.0)


def verdicts(batch: Batch) -> Array:
  """d [B, G, G] of config.judge, held within -1 and 1."""
  return jnp.clip(batch.extra['duel'], -1.0, 1.0)


# ---- Ranked lists: [B, G, G], whose entry i, j speaks of j beside i ------------------


def ranked(reward: BG, there: BG, *, ties: bool = False) -> Array:
  """Whether j is i, or is ranked below i: a lower reward, or with `ties` the same and a
  later place. A row that is not `there` has only itself.
  """
  first, second = reward[:, :, None], reward[:, None]
  below, size = first > second, reward.shape[1]
  if ties:
    below |= (first == second) & jnp.triu(jnp.ones((size, size), bool), 1)[None]
  below &= (there[:, :, None] > 0) & (there[:, None] > 0)
  return below | jnp.eye(size, dtype=bool)[None]


def log_first(logit: Array, among: Array) -> BG:
  """log of the chance that i is drawn from those `among` which it is."""
  total = jax.nn.logsumexp(jnp.where(among, logit, -jnp.inf), -1)
  return jnp.diagonal(logit, axis1=1, axis2=2) - total


def compared(score: BG, among: Array, weight: Array) -> Metrics:
  """By how much the better of two scores higher, and how often, over a list's pairs."""
  pairs = (among & ~jnp.eye(score.shape[1], dtype=bool)[None]).astype(weight.dtype)
  count = jnp.maximum(pairs.sum((1, 2), keepdims=True), 1.0)
  share = pairs / count * weight[:, None, None]
  gap = score[:, :, None] - score[:, None]
  return {'margin': metrics.average(gap, share), 'accuracy': metrics.wins(gap, share)}


def graded(score: BG, reward: BG, valid: BG, weight: Array) -> Metrics:
  """`compared` of a group by its rewards; nothing where a group is one completion."""
  if score.shape[1] == 1:
    return {}
  return compared(score, ranked(reward, valid), weight)
