"""How much better than expected: rewards to advantages. No parameters.

Group functions take `(reward, valid)`, both [B, G]; invalid rows count nowhere and get
0. A group whose largest and smallest reward are equal gets exactly 0, whatever
rounding does to its mean.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import sequences
from jaxrl_llm.types import BG, BGT, Array, InputError


def none(reward: BG, valid: BG) -> BG:
  """The reward itself: no baseline."""
  return reward * valid


def group_mean(reward: BG, valid: BG) -> BG:
  """Reward minus the mean reward of the group."""
  check_group(reward)
  count = jnp.maximum(valid.sum(1, keepdims=True), 1.0)
  mean = (reward * valid).sum(1, keepdims=True) / count
  return jnp.where(tied(reward, valid), 0.0, (reward - mean) * valid)


def leave_one_out(reward: BG, valid: BG) -> BG:
  """Reward minus the mean reward of the group's other completions."""
  count = valid.sum(1, keepdims=True)
  return group_mean(reward, valid) * (count / jnp.maximum(count - 1.0, 1.0))


def group_norm(reward: BG, valid: BG, *, eps: float = 1e-6, ddof: int = 0) -> BG:
  """Group mean removed, then divided by the group's standard deviation plus eps."""
  centred = group_mean(reward, valid)
  count = jnp.maximum(valid.sum(1, keepdims=True) - ddof, 1.0)
  std = jnp.sqrt(jnp.square(centred).sum(1, keepdims=True) / count)
  return centred / (std + eps)


def group_steps(reward: BGT, end: BGT, *, eps: float = 1e-6, ddof: int = 0) -> BGT:
  """`group_norm` over all steps of the group; of each token what is still to come.

  `reward` counts where `end` is 1, which is a step's last token.
  """
  flat = lambda x: x.reshape(len(x), -1)
  found = group_norm(flat(reward), flat(end), eps=eps, ddof=ddof)
  return sequences.to_go(found.reshape(reward.shape))


def pair_sign(reward: BG, valid: BG) -> BG:
  """+1 for the better of a group of two, -1 for the other, 0 for a tie."""
  if reward.shape[1] != 2:
    raise InputError(
      f'pair_sign is for groups of two; these have {reward.shape[1]} completions. Set '
      'config.source.group=2.'
    )
  return jnp.sign(reward - reward[:, ::-1]) * valid.prod(1, keepdims=True)


def batch_mean(reward: BG, valid: BG) -> BG:
  """Reward minus the mean reward of all completions; 0 where all are equal."""
  mean = jnp.sum(reward * valid) / jnp.maximum(valid.sum(), 1.0)
  return jnp.where(all_tied(reward, valid), 0.0, (reward - mean) * valid)


def of_duels(duel: Array, valid: BG, *, eps: float = 1e-6) -> BG:
  """(1/G) sum_j d_ij / sqrt(sum_ij d_ij^2 / (2 G (G - 1)) + eps), of d [B, G, G].

  The mean by which i beats the others and itself. Where d_ij = R_i - R_j it is
  `group_norm` with the sample's deviation, but for where eps stands.
  """
  check_group(valid)
  d = duel * valid[:, :, None] * valid[:, None]
  count = valid.sum(1, keepdims=True)
  pairs = jnp.maximum(2.0 * count * (count - 1.0), 1.0)
  square = jnp.square(d).sum((1, 2))[:, None] / pairs
  return d.sum(2) / jnp.maximum(count, 1.0) * jax.lax.rsqrt(square + eps)


def tied(reward: BG, valid: BG) -> BG:
  """True for groups with one distinct valid reward or none: [B, G] to [B, 1]."""
  top = jnp.where(valid > 0, reward, -jnp.inf).max(1, keepdims=True)
  bottom = jnp.where(valid > 0, reward, jnp.inf).min(1, keepdims=True)
  return top <= bottom


def all_tied(x: Array, mask: Array) -> Array:
  """True where what the mask leaves of x is one number: any shape to a scalar."""
  return tied(x.reshape(1, -1), mask.reshape(1, -1))[0, 0]


def check_group(reward: BG) -> None:
  """Refuses groups of one, which have nothing to compare a completion with."""
  if reward.shape[1] < 2:
    raise InputError(
      'Comparing within a group needs at least two completions per prompt; this batch '
      f'has {reward.shape[1]}. Set config.source.group to 2 or more; where the method '
      "has it, config.method.advantage='none' goes without a group baseline."
    )


def gae(
  reward: BGT, value: BGT, mask: BGT, *, discount: float = 1.0, lam: float = 0.95
) -> BGT:
  """Generalised advantage estimation over the tokens that the policy chose.

  delta_t = r_t + discount V_{t+1} - V_t,  A_t = delta_t + discount lam A_{t+1},
  with V = A = 0 past the last token. Masked slots pass (A, V) through and get 0.
  Schulman et al., 2016, https://arxiv.org/abs/1506.02438.
  """

  def step(carry, x):
    next_advantage, next_value = carry
    r, v, m = x
    advantage = r + discount * next_value - v + discount * lam * next_advantage
    kept = jnp.where(m > 0, advantage, next_advantage), jnp.where(m > 0, v, next_value)
    return kept, jnp.where(m > 0, advantage, 0.0)

  xs = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (reward, value, mask))
  zero = jnp.zeros_like(reward[..., 0])
  _, advantage = jax.lax.scan(step, (zero, zero), xs, reverse=True)
  return jnp.moveaxis(advantage, 0, -1)


def gae_targets(
  reward: BGT, value: BGT, mask: BGT, *, discount: float = 1.0, lam: float = 0.95
):
  """`gae` and what the critic is to say: (A, A + V)."""
  found = gae(reward, value, mask, discount=discount, lam=lam)
  return found, found + value


def macro_gae(
  reward: BGT,
  value: BGT,
  mask: BGT,
  *,
  n: int,
  discount: float = 1.0,
  lam: float = 0.95,
):
  """`gae` over runs of n chosen tokens, their rewards and values averaged: (A, target).

  The last token is a run of its own, so that its reward is not averaged. MA-RLHF,
  2024, https://arxiv.org/abs/2410.02743.
  """
  order = jnp.cumsum(mask, -1) - 1
  last = order == mask.sum(-1, keepdims=True) - 1
  run = jnp.where(last, order, order // n)  # Places without a run have no tokens.
  places = jnp.arange(mask.shape[-1])[None, None, None]
  member = (run[..., None] == places) * mask[..., None]
  count = member.sum(-2)
  share = member / jnp.maximum(count, 1.0)[..., None, :]
  over = lambda x: jnp.einsum('bgt,bgts->bgs', x, share)
  back = lambda x: jnp.einsum('bgs,bgts->bgt', x, member)
  there = (count > 0).astype(mask.dtype)
  found = gae(over(reward), over(value), there, discount=discount, lam=lam)
  return back(found), back(found + over(value))


def whiten(x: BGT, mask: BGT) -> BGT:
  """Mean removed and standard deviation divided out, over all masked-in tokens.

  Where all are equal they get exactly 0, whatever rounding does to their mean.
  """
  weight = mask / jnp.maximum(mask.sum(), 1.0)
  centred = x - jnp.sum(weight * x)
  variance = jnp.sum(weight * jnp.square(centred))
  white = centred * jax.lax.rsqrt(variance + 1e-8) * mask
  return jnp.where(all_tied(x, mask), 0.0, white)
