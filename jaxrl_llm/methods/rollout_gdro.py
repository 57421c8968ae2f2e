"""Rollout-GDRO (2026), https://arxiv.org/abs/2601.19280. Experimental.

  n_b for the bins b of a batch: argmax sum_b log p_b(n_b), sum_b count_b n_b = mean B
  p_b(n) = (1 - gamma) softmax_n(eta s_b(n)) + gamma / arms
  s_b(n_b) <- (1 - ema) s_b(n_b) - ema (lbar_b + mu n_b)
  mu <- mu + rate (realised mean of n - mean);  the loss is grpo's

lbar_b is the mean loss of the prompts of bin b, by their own pass rate (prompt_gdro).
Differs from prompt_gdro: what moves is how many completions a prompt gets, not its
weight. config.source.name='rationed' draws them, config.source.group is `most`. The sum
is exact, so mu stays 0. sign='code' is the published code's opposite sign and sum:
s_b += lbar_b - mu (n_b - mean). On policy lbar_b is exactly 0, and nothing happens:
signal='loss', the paper's, wants several minibatches; signal='reward', ours from a
footnote, takes lbar_b = - mean reward. How the EMA enters the scores is not pinned.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import allocation, bins
from jaxrl_llm.types import InputError, Method


def rollout_gdro(
  *,
  prompts: int = 16384,
  history: int = 50,
  count: int = 10,
  least: int = 2,
  most: int = 12,
  mean: int = 4,
  eta: float = 0.65,
  gamma: float = 0.01,
  ema: float = 0.4,
  rate: float = 0.05,
  hysteresis: float = 0.03,
  signal: str = 'loss',
  sign: str = 'paper',
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  beta: float = 0.001,
) -> Method:
  """`prompts`: how many are told apart, by question modulo this; `count` bins."""
  bins.check_signal('rollout_gdro', signal)
  if sign not in ('paper', 'code') or not 2 <= least <= mean <= most:
    raise InputError(
      f"rollout_gdro: sign={sign!r} is 'paper' or 'code'; least={least}, mean={mean}, "
      f'most={most} are at least 2 and in this order.'
    )
  plain = grpo(clip_low=clip_low, clip_high=clip_high, beta=beta)

  def prepare(state, batch):
    state, batch = bins.looked_up(state, batch, count, hysteresis)
    return state, batch.replace(advantage=batch.extra['gdro_raw'][..., None])

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    return value, found | bins.losses(out, batch, clip_low, clip_high, count)

  def after(state, batch, found):
    told = bins.signalled(batch, found, count, signal)
    moved = steered(state.extra, batch, told, ema, rate, sign)
    logp = allocation.arm_logp(moved['arm_score'], eta=eta, gamma=gamma)
    return state.replace(extra=state.extra | moved | {'arm_logp': logp})

  extra = bins.start(prompts, history) | first(count, np.arange(least, most + 1))
  told = dict(after=after, extra=extra | {'arm_mean': mean}, reads=('accuracy',))
  return plain._replace(loss=loss, prepare=prepare, **told)


def first(count: int, arms) -> dict:
  """Every arm of every bin as likely as the others."""
  zero = np.zeros((count, len(arms)))
  told = {'arms': arms, 'arm_score': zero, 'arm_logp': zero - np.log(len(arms))}
  return told | {'arm_price': 0.0}


def steered(extra, batch, told, ema: float, rate: float, sign: str) -> dict:
  """The scores after bins have lost `told` [count], and the price."""
  mean, price = extra['arm_mean'], extra['arm_price']
  each = jnp.broadcast_to(batch.valid.sum(1)[:, None], batch.valid.shape)
  number = bins.means(batch.extra['gdro_bin'], each, batch.valid, len(told))[1]
  drawn = (told, jnp.round(number), extra['arms'], price)
  other = mean if sign == 'code' else None
  score = allocation.moved(extra['arm_score'], *drawn, ema=ema, mean=other)
  there = batch.valid.any(1)
  realised = batch.valid.sum() / jnp.maximum(there.sum(), 1)
  price += jnp.where(there.any(), rate * (realised - mean), 0.0)
  return {'arm_score': score, 'arm_price': price}
