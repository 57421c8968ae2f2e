"""Prompt-GDRO (2026), https://arxiv.org/abs/2601.19280.

  bin b of a prompt: its share of passed visits among its last `history`, in tenths
  S_b <- (1 - ema) S_b + ema lbar_b / max(q_b, floor),  of the bins in the batch
  A <- min(exp(eta clip(S_b, -bound, bound)), cap) A,  and then as grpo

q_b is the bin's share of the batch, lbar_b its mean loss. Differs from grpo: an
adversary weighs up the prompts of bins that lose. On policy the group-normalised loss
of every prompt is exactly 0, and so nothing happens: signal='loss', the paper's, wants
several minibatches a batch; signal='reward', ours from a footnote of the appendix,
takes lbar_b = - mean reward. bound and floor are ours; the paper names no value. lbar_b
is without the KL, and A held within +-5, as in the official code. A visit is passed by
a reward, or what config.source.accuracy names of it, above 0.5.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import bins
from jaxrl_llm.types import Method


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
  """`prompts`: how many are told apart, by question modulo this; `count` bins."""
  bins.check_signal('prompt_gdro', signal)
  plain = grpo(clip_low=clip_low, clip_high=clip_high, beta=beta)

  def prepare(state, batch):
    score = jnp.clip(state.extra['gdro_score'], -bound, bound)
    state, batch = bins.looked_up(state, batch, count, hysteresis)
    weight = jnp.minimum(jnp.exp(eta * score), cap)[batch.extra['gdro_bin']]
    adv = (weight[:, None] * batch.extra['gdro_raw'])[..., None]
    return state, batch.replace(advantage=adv)

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    return value, found | bins.losses(out, batch, clip_low, clip_high, count)

  def after(state, batch, found):
    told = bins.signalled(batch, found, count, signal)
    return steered(state, batch, told, ema, floor)

  extra = bins.start(prompts, history) | {'gdro_score': np.zeros(count)}
  told = dict(after=after, extra=extra, reads=('accuracy',))
  return plain._replace(loss=loss, prepare=prepare, **told)


def steered(state, batch, told, ema: float, floor: float):
  """The state with scores moved by `told` [count]."""
  old, which = state.extra['gdro_score'], batch.extra['gdro_bin']
  size, _ = bins.means(which, batch.reward, batch.valid, len(old))
  told /= jnp.maximum(size / jnp.maximum(size.sum(), 1.0), floor)
  score = jnp.where(size > 0, (1 - ema) * old + ema * told, old)
  return state.replace(extra=state.extra | {'gdro_score': score})
