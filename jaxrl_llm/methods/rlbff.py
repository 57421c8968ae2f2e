"""RLBFF's scalar reward model (Wang et al., 2025, https://arxiv.org/abs/2509.21319).

  x: a conversation, its answer, and a principle that the answer keeps or not
  loss = - E[ log p(the word that is right | x) ],   Yes or No, by the language model
  reward = log p(Yes | x) - log p(No | x)

Differs from bradley_terry: no pair is compared, no head is new, and the same answer has
another reward under another principle. The right word has reward 1 and the other 0.
`full` False takes p among the two words alone: logistic regression of the reward.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import binary, metrics, sequences
from jaxrl_llm.types import Method


def rlbff(*, full: bool = True) -> Method:
  """Trains the role policy. Groups are the words Yes and No, in this order."""

  def loss(out, batch):
    said = sequences.words(out.logp, batch.mask)
    reward, yes = sequences.margin(said), batch.reward[:, 0] > batch.reward[:, 1]
    w, right = batch.prompt_weight, yes.astype(reward.dtype)
    word = jnp.where(yes, said[:, 0], said[:, 1])
    two = binary.cross_entropy(reward, right)
    nll = -word if full else two
    return jnp.sum(w * nll), {
      'nll': metrics.average(nll, w),
      'nll_two': metrics.average(two, w),
      'reward_yes': metrics.average(reward, w * right),
      'reward_no': metrics.average(reward, w * (1 - right)),
      'accuracy': metrics.wins(binary.sided(reward, right), w),
      **binary.calibration(reward, right, w),
    }

  return Method(loss, ('logp',))
