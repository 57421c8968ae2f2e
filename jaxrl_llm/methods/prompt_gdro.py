"""Prompt-GDRO (2026), https://arxiv.org/abs/2601.19280.

  bin b of a prompt: its share of passed visits among its last `history`, in tenths
  S_b <- (1 - ema) S_b + ema lbar_b / max(q_b, floor),  of the bins in the batch
  A <- min(exp(eta clip(S_b, -bound, bound)), cap) A,  and then as grpo

q_b is the bin's share of the batch, lbar_b its mean loss. Differs from grpo: an
adversary weighs up the prompts of bins that lose. On policy the group-normalised loss
of every prompt is exactly 0, and so nothing happens: signal='loss', the paper's, wants
several minibatches a batch; signal='reward', ours from a footnote of the appendix,
takes lbar_b = - mean reward. bound and floor are ours; the paper names no value.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, bins, sequences, surrogates
from jaxrl_llm.types import InputError, Method


def prompt_gdro(
  *,
  prompts: int = 16384,
  history: int = 50,
  count: int = 10,
  eta: float = 0.65,
  ema: float = 0.12,
  cap: float = 15.0,
  bound: float = 5.0,
  floor: float = 0.05,
  hysteresis: float = 0.03,
  signal: str = 'loss',
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  beta: float = 0.001,
) -> Method:
  """`prompts`: how many are told apart, by prompt_id modulo this; `count` bins."""
  if signal not in ('loss', 'reward'):
    raise InputError(f"prompt_gdro: signal={signal!r}; give 'loss' or 'reward'.")
  plain = grpo(clip_low=clip_low, clip_high=clip_high, beta=beta)

  def prepare(state, batch):
    who = batch.prompt_id % prompts
    mine = state.extra['gdro_bin'][who].astype(jnp.int32)
    score = jnp.clip(state.extra['gdro_score'], -bound, bound)
    raw = jnp.clip(advantages.group_norm(batch.reward, batch.valid), -5.0, 5.0)
    weight = jnp.minimum(jnp.exp(eta * score), cap)[mine]
    passed = ((batch.reward > 0.5) & (batch.valid > 0)).any(1)
    state = state.replace(
      extra=bins.visited(state.extra, who, passed, count, hysteresis)
    )
    extra = batch.extra | {'gdro_bin': mine, 'gdro_raw': raw}
    adv = (weight[:, None] * raw)[..., None]
    return state, batch.replace(advantage=adv, extra=extra)

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    return value, found | by_bin(out, batch, clip_low, clip_high, count)

  def after(state, batch, found):
    told = jnp.stack([found[f'gdro_loss/{i}'] for i in range(count)])
    return steered(state, batch, told if signal == 'loss' else None, ema, floor)

  extra = bins.start(prompts, history) | {'gdro_score': np.zeros(count)}
  return plain._replace(loss=loss, prepare=prepare, after=after, extra=extra)


def by_bin(out, batch, low: float, high: float, count: int) -> dict:
  """The unweighted loss of each bin, as metrics."""
  ratio = surrogates.ratio(out.logp, batch.old_logp)
  raw = batch.extra['gdro_raw'][..., None]
  gain = surrogates.clipped(ratio, raw, low=low, high=high)
  rows = (sequences.seq_mean(-gain, batch.mask) * batch.seq_weight).sum(1)
  share, which = batch.seq_weight.sum(1), batch.extra['gdro_bin']
  pair = lambda here: (jnp.sum(rows * here), jnp.sum(share * here))
  return {f'gdro_loss/{i}': pair(which == i) for i in range(count)}


def steered(state, batch, told, ema: float, floor: float):
  """The state with moved scores: by `told` [count], or by minus the mean reward."""
  old, which = state.extra['gdro_score'], batch.extra['gdro_bin']
  size, mean = bins.means(which, batch.reward, batch.valid, len(old))
  told = -mean if told is None else told
  told /= jnp.maximum(size / jnp.maximum(size.sum(), 1.0), floor)
  score = jnp.where(size > 0, (1 - ema) * old + ema * told, old)
  return state.replace(extra=state.extra | {'gdro_score': score})
