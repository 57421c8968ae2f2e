"""GRPO-CARE (2025), https://arxiv.org/abs/2506.16141.

  p = mean over the answer's tokens of ema(a_i | x, reasoning, a_<i)
  H = { g : accuracy_g >= max(mean accuracy, floor) }
  q = min(p, cap)
  R_g = reward_g + bonus accuracy_g [g in H and q_g >= mean of q over H - margin]
  A = (R - group mean) / (group std + 1e-4), and then as grpo with beta 0
  ema <- alpha ema + (1 - alpha) policy, every so many optimizer updates

Differs from grpo: no KL; a right answer that its reasoning makes likely, to a slow
average of the policy, earns more. A lone member of H always gets the bonus. The answer
is where config.source.answer says; what has none gets no bonus. The accuracy is the
part of the reward that config.source.accuracy names, else all of it. The official
code's mean is 'geometric'; margin is that of the paper's transfer runs, 0 of the
others. `dense` is the paper's DenseCons: bonus accuracy p, ungated.
"""

import functools

import jax.numpy as jnp

from jaxrl_llm import controllers
from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, care, metrics
from jaxrl_llm.types import InputError, Method


def grpo_care(
  *,
  bonus: float = 0.5,
  floor: float = 0.1,
  cap: float = 0.95,
  margin: float = 0.01,
  mean: str = 'arithmetic',
  dense: bool = False,
  alpha: float = 0.995,
  every: int = 10,
  clip: float = 0.2,
) -> Method:
  """`alpha` with `every`: half the way in 1,400 updates. The clip is the libraries'."""
  norm = functools.partial(advantages.group_norm, eps=1e-4)
  plain = grpo(clip_low=clip, clip_high=clip, beta=0.0, advantage=norm)
  after, start = controllers.follow(alpha, every)

  def prepare(state, batch):
    answer, accuracy = told(batch)
    likely = care.likelihood(batch.ema_logp, answer, mean=mean)
    held = dict(floor=floor, cap=cap, margin=margin)
    share = likely if dense else care.gate(accuracy, likely, batch.valid, **held)
    paid = bonus * accuracy * share
    state, found = plain.prepare(state, batch.replace(reward=batch.reward + paid))
    extra = batch.extra | {'answer': answer, 'care_bonus': paid, 'likely': likely}
    return state, found.replace(extra=extra)

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    w, answer = batch.seq_weight, batch.extra['answer']
    return value, found | {
      'care_bonus': metrics.average(batch.extra['care_bonus'], w),
      'answer_likelihood': metrics.average(
        batch.extra['likely'], w * (answer.sum(-1) > 0)
      ),
    }

  asked = dict(prepare_needs=('ema_logp',), reads=('answer', 'accuracy'))
  return plain._replace(loss=loss, prepare=prepare, after=after, extra=start, **asked)


def told(batch):
  """The mask of the answer [B, G, T], and the accuracy [B, G], 0 without an answer."""
  if 'answer' not in batch.extra:
    raise InputError(
      'grpo_care: where does the answer stand? Set config.source.answer to '
      "'think_format', 'answer_tag' or 'whole'."
    )
  answer = batch.extra['answer'] * batch.mask
  accuracy = jnp.maximum(batch.extra.get('accuracy', batch.reward), 0.0)
  there = (batch.valid > 0) & (answer.sum(-1) > 0)
  return answer, jnp.where(there, accuracy, 0.0)
