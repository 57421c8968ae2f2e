"""What some methods carry from step to step, in `State.extra`: numbers that move."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.ops import extras
from jaxrl_llm.ops import kl as kls
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.types import (
  BG,
  Array,
  Batch,
  InputError,
  Method,
  Metrics,
  Outputs,
  State,
)


def adaptive_kl(beta: float, target: float, horizon: float):
  """A `Method.after` that steers KL per completion to `target`, and its start.

  beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), for n completions
  with `KL` the metric kl_ref_seq. Ziegler et al., 2019. A target of 0 leaves beta.
  """
  if not target:
    return lambda state, batch, metrics: state, {}
  if beta <= 0:
    raise InputError(
      f'kl_target={target} moves beta, which starts at {beta}: raise it.'
    )

  def after(state: State, batch: Batch, metrics: Metrics) -> State:
    error = jnp.clip(metrics['kl_ref_seq'] / target - 1.0, -0.2, 0.2)
    change = 1.0 + error * extras.fresh(batch).sum() / horizon
    return state.replace(extra=state.extra | {'beta': state.extra['beta'] * change})

  return after, {'beta': beta}


def follow(alpha: float, every: int, role: str = 'ema'):
  """A `Method.after` that moves frozen[role] towards the policy, and its start.

  role <- alpha role + (1 - alpha) policy, once for every `every` optimizer updates.
  """
  if not 0 <= alpha <= 1 or every < 1:
    raise InputError(
      f'alpha={alpha}, every={every}; alpha is from 0 to 1, every at least 1.'
    )

  count = f'{role}_moves'

  def after(state: State, batch: Batch, metrics: Metrics) -> State:
    moves = state.applied // every
    kept = alpha ** (moves - state.extra[count])
    mix = lambda old, new: kept * old + (1 - kept) * new
    moved = jax.tree.map(mix, state.frozen[role], state.params['policy'])
    extra = state.extra | {count: moves.astype(jnp.float32)}
    return state.replace(frozen=state.frozen | {role: moved}, extra=extra)

  return after, {count: 0.0}


def refreshed(method: Method, *, every: int, share: float = 1.0) -> Method:
  """Any method, its reference moved every so many updates by a share to the policy.

  ref <- share policy + (1 - share) ref. TR-DPO (2024),
  https://arxiv.org/abs/2404.09656; share 1 is the copy that rounds of iterative methods
  begin with.
  """
  move, start = follow(1 - share, every, 'ref')

  def after(state: State, batch: Batch, metrics: Metrics) -> State:
    return move(method.after(state, batch, metrics), batch, metrics)

  return method._replace(after=after, extra=method.extra | start)


def reward_scaler(kind: str, bound: float):
  """`(state, batch) -> (state, score [B, G])` by running moments, and their start.

  'scale' divides by the standard deviation of all scores so far, this batch included;
  'norm' takes their mean off first; 'none' does neither. Then the score is held within
  +-bound, where that is above 0.
  """
  if kind not in ('none', 'scale', 'norm'):
    raise InputError(f"reward_scale={kind!r}; give 'none', 'scale' or 'norm'.")

  def scaled(state: State, batch: Batch) -> tuple[State, BG]:
    score = batch.reward
    if kind != 'none':
      state = observed(state, batch)
      count, total, squares = (state.extra[name] for name in MOMENTS)
      mean = total / jnp.maximum(count, 1.0)
      variance = squares / jnp.maximum(count, 1.0) - jnp.square(mean)
      score -= mean if kind == 'norm' else 0.0
      score /= jnp.sqrt(jnp.maximum(variance, 0.0)) + 1e-6
    return state, jnp.clip(score, -bound, bound) if bound else score

  return scaled, {} if kind == 'none' else dict.fromkeys(MOMENTS, 0.0)


def with_reward_scale(method: Method, kind: str, bound: float) -> Method:
  """Any method on rewards that reward_scaler has brought to scale."""
  scaled, start = reward_scaler(kind, bound)
  if not bound and kind == 'none':
    return method
  if start.keys() & method.extra.keys():
    raise InputError('config.plan.reward_scale: this method scales rewards itself.')

  def prepare(state: State, batch: Batch) -> tuple[State, Batch]:
    if batch.reward is None:
      raise InputError('config.plan.reward_scale: this method has no rewards.')
    state, reward = scaled(state, batch)
    return method.prepare(state, batch.replace(reward=reward))

  return method._replace(prepare=prepare, extra=method.extra | start)


MOMENTS = ('reward_count', 'reward_sum', 'reward_squares')


def observed(state: State, batch: Batch) -> State:
  """The state with this batch's scores in its moments."""
  powers = (jnp.power(batch.reward, i) for i in range(3))
  added = (jnp.sum(x * extras.fresh(batch)) for x in powers)
  moments = {name: state.extra[name] + x for name, x in zip(MOMENTS, added)}
  return state.replace(extra=state.extra | moments)


class Pressure(NamedTuple):
  """What a constraint asks for now, and the costs of the window it is judged by."""

  multiplier: Array
  mean: Array
  std: Array


def multiplier(
  start: float,
  rate: float,
  *,
  most: float,
  threshold: float,
  size: int,
  delay: int = 0,
  kappa: float = 0.0,
):
  """`(state, cost [B, G], valid) -> (state, Pressure)` by dual ascent, and its start.

    log lambda <- min(log lambda + rate lambda (mean + kappa std - threshold), log most)

  Mean and standard deviation (the sample's) are of all valid costs here, and of as many
  before as make up `size`. lambda rests for the first `delay` steps, and at 0 for ever.
  """
  if start < 0 or most < start or size < 2:
    raise InputError(
      f'A multiplier from {start} to {most} over the last {size} costs: it starts at 0 '
      'or above, ends at its start or above, and takes a window of at least 2.'
    )

  def moved(state: State, cost: BG, valid: BG) -> tuple[State, Pressure]:
    costs, seen = latest(state.extra, cost, valid)
    count = seen.sum()
    mean = jnp.sum(seen * costs) / jnp.maximum(count, 1.0)
    square = jnp.sum(seen * jnp.square(costs - mean))
    std = jnp.sqrt(square / jnp.maximum(count - 1.0, 1.0))
    log, excess = state.extra['log_multiplier'], mean + kappa * std - threshold
    change = rate * jnp.exp(log) * excess * (state.step >= delay) * (count > 0)
    log = jnp.minimum(log + change, jnp.log(most))
    found = {'log_multiplier': log, 'costs': costs[:size], 'costs_seen': seen[:size]}
    state = state.replace(extra=state.extra | found)
    return state, Pressure(jnp.exp(log), mean, std)

  born = {'log_multiplier': math.log(start) if start else -math.inf}
  return moved, born | {'costs': np.zeros(size), 'costs_seen': np.zeros(size)}


def latest(extra: dict, cost: BG, valid: BG) -> tuple[Array, Array]:
  """Valid costs, the newest first, and 1 where there is one: a window, or the batch."""
  costs = jnp.concatenate([(cost * valid).ravel(), extra['costs']])
  seen = jnp.concatenate([valid.ravel(), extra['costs_seen']])
  order = jnp.argsort(-seen, stable=True)[: max(cost.size, len(extra['costs']))]
  return costs[order], seen[order]


HISTORY = 50  # Steps of one half of what a phase is told by.


def kl_gate(coef: float, kl: Callable):
  """`(state, batch) -> (state, batch)` with a price of KL, the loss's term that charges
  it, `(out, batch) -> (value, metrics)`, and where the controller starts.

    short <- 0.9 short + 0.1 KL,  ema <- 0.95 ema + 0.05 R
    e = change of ema - 0.001
    threshold = clip((0.3 + 0.3 e + 0.01 clip(sum e, -1, 1) + 0.05 change of e) phase,
                     0.1, 0.6)
    penalty = coef (short - threshold)^2 max(0.5, 2 / (H + 0.1)) above the threshold
    price = d penalty / d KL, in which threshold and H are constants

  SAFE, 2026, https://arxiv.org/abs/2602.04651; all averages start at 0. R, H and KL, by
  `kl(old_logp, ref_logp)`, are the batch's means. In extra [B]: kl_threshold, kl_price.
  """

  def gated(state: State, batch: Batch) -> tuple[State, Batch]:
    rows = extras.fresh(batch)
    mask = batch.mask * rows[..., None]
    share = mask / jnp.maximum(mask.sum(), 1.0)
    reward = jnp.sum(rows * batch.reward) / jnp.maximum(rows.sum(), 1.0)
    state, threshold = followed(state, reward)
    apart = jnp.sum(share * kl(batch.old_logp, batch.ref_logp))
    short = 0.9 * state.extra['kl_short'] + 0.1 * apart
    rush = jnp.maximum(0.5, 2.0 / (jnp.sum(share * batch.old_entropy) + 0.1))
    price = 0.1 * 2.0 * coef * jnp.maximum(short - threshold, 0.0) * rush
    state = state.replace(extra=state.extra | {'kl_short': short})
    told = {'kl_threshold': threshold, 'kl_price': price}
    return state, extras.carried(batch, told)

  def charged(out: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    w, price = batch.weight, batch.extra['kl_price'][:, None, None]
    found = metrics_lib.told(batch, 'kl_threshold', 'kl_price')
    found['kl_ref'] = metrics_lib.average(kls.k3(out.logp, batch.ref_logp), w)
    return jnp.sum(w * price * kl(out.logp, batch.ref_logp)), found

  if not coef:
    return lambda state, batch: (state, batch), lambda out, batch: (0.0, {}), {}
  start = dict.fromkeys(('kl_short', 'reward_ema', 'error', 'error_sum'), 0.0)
  return gated, charged, start | {'rewards': np.zeros(2 * HISTORY)}


def followed(state: State, reward: Array) -> tuple[State, Array]:
  """The threshold of `kl_gate` after a step of this mean reward."""
  x = state.extra
  ema = 0.95 * x['reward_ema'] + 0.05 * reward
  error = ema - x['reward_ema'] - 0.001
  total = x['error_sum'] + error
  steer = 0.3 * error + 0.01 * jnp.clip(total, -1, 1) + 0.05 * (error - x['error'])
  rewards = jnp.append(reward, x['rewards'][:-1])
  found = dict(reward_ema=ema, error=error, error_sum=total, rewards=rewards)
  threshold = jnp.clip((0.3 + steer) * phase(rewards, state.step), 0.1, 0.6)
  return state.replace(extra=x | found), threshold


def phase(rewards: Array, step: Array) -> Array:
  """How far a policy may stray: 1.5 at first, 1.2 while its reward climbs, 1 where that
  is steady and high, 0.8 otherwise. `rewards` are of the last steps, newest first.
  """
  now, before = rewards[:HISTORY], rewards[HISTORY:]
  known = jnp.arange(HISTORY) <= step - HISTORY
  past = jnp.sum(before * known) / jnp.maximum(known.sum(), 1)
  climbs = now.mean() > past + 0.01
  settled = (now.std() < 0.02) & (now.mean() > 0.7)
  later = jnp.where(climbs, 1.2, jnp.where(settled, 1.0, 0.8))
  return jnp.where(step < HISTORY, 1.5, later)
