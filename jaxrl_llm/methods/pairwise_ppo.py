"""Pairwise-RL's PPO (2025), https://arxiv.org/abs/2504.04950. Experimental.

score = P(y beats the prompt's anchor) = sigmoid(R - R_anchor),  and then as ppo

Differs from ppo: the reward is how likely the completion beats an anchor, so what a
reward model adds to all answers of a prompt cancels. The paper was not read in full: it
asks a generative judge in both orders and names its update pairwise PPO; the sigmoid is
the closest published form, that of cgpo_crpg, and that ppo's defaults go with it is
ours. The anchor is the task's answer (config.source.anchor=True) or, ours too, a greedy
completion (config.source.greedy=True).
"""

from jaxrl_llm.methods.ppo import ppo
from jaxrl_llm.ops import extras
from jaxrl_llm.types import Method


def pairwise_ppo(
  *,
  anchor: str = 'answer',
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_coef: float = 0.1,
  beta: float = 0.05,
  discount: float = 1.0,
  lam: float = 0.95,
) -> Method:
  """`anchor` is 'answer' or 'greedy'; the others are ppo's."""
  plain = ppo(
    clip=clip,
    value_clip=value_clip,
    value_coef=value_coef,
    beta=beta,
    discount=discount,
    lam=lam,
  )

  def prepare(state, batch):
    score = extras.calibrated(batch, anchor, 'pairwise_ppo')
    return plain.prepare(state, batch.replace(reward=score))

  return plain._replace(prepare=prepare, reads=extras.anchored(anchor, 'pairwise_ppo'))
