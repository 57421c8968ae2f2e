"""What some methods carry from step to step, in `State.extra`: numbers that move."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import BG, Array, Batch, InputError, Metrics, State


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
    change = 1.0 + error * batch.valid.sum() / horizon
    return state.replace(extra=state.extra | {'beta': state.extra['beta'] * change})

  return after, {'beta': beta}


def follow(alpha: float, every: int):
  """A `Method.after` that moves frozen['ema'] towards the policy, and its start.

  ema <- alpha ema + (1 - alpha) policy, once for every `every` optimizer updates.
  """
  if not 0 <= alpha <= 1 or every < 1:
    raise InputError(
      f'alpha={alpha}, every={every}; alpha is from 0 to 1, every at least 1.'
    )

  def after(state: State, batch: Batch, metrics: Metrics) -> State:
    moves = state.applied // every
    kept = alpha ** (moves - state.extra['ema_moves'])
    mix = lambda old, new: kept * old + (1 - kept) * new
    ema = jax.tree.map(mix, state.frozen['ema'], state.params['policy'])
    extra = state.extra | {'ema_moves': moves.astype(jnp.float32)}
    return state.replace(frozen=state.frozen | {'ema': ema}, extra=extra)

  return after, {'ema_moves': 0.0}


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


MOMENTS = ('reward_count', 'reward_sum', 'reward_squares')


def observed(state: State, batch: Batch) -> State:
  """The state with this batch's scores in its moments."""
  powers = (jnp.power(batch.reward, i) for i in range(3))
  added = (jnp.sum(x * batch.valid) for x in powers)
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
  costs = jnp.concatenate([cost.ravel(), extra['costs']])
  seen = jnp.concatenate([valid.ravel(), extra['costs_seen']])
  order = jnp.argsort(-seen, stable=True)[: max(cost.size, len(extra['costs']))]
  return costs[order], seen[order]
