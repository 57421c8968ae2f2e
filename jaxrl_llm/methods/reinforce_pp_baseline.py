"""REINFORCE++-baseline (Hu et al., 2025), https://arxiv.org/abs/2501.03262.

  A = R - group mean, whitened over all tokens of the batch
  loss = - E_token[ min(r A', clip(r, 1 - clip, 1 + clip) A') ] + beta k2(pi, ref)

Differs from reinforce_pp: the group's mean is taken off first, and KL is in the loss,
by k2, whose gradient is that of KL(pi || ref); from grpo: the deviation is the whole
batch's. beta and clip are OpenRLHF's for PPO.
"""

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages, kl, weights
from jaxrl_llm.types import Method


def reinforce_pp_baseline(*, clip: float = 0.2, beta: float = 0.01) -> Method:
  """With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    adv = advantages.group_mean(batch.reward, batch.valid)[..., None] * batch.mask
    return state, batch.replace(advantage=advantages.whiten(adv, batch.mask))

  plain = grpo(
    clip_low=clip, clip_high=clip, beta=beta, kl=kl.k2, aggregate=weights.token_mean
  )
  return plain._replace(prepare=prepare)
