"""GRPO with process supervision (Shao et al., 2024), https://arxiv.org/abs/2402.03300.

  q_j = (step reward j - mean) / (std + eps), of all step rewards of the group
  A_t = sum of q_j over the steps j that end at t or later,  and then as grpo

Differs from grpo: a reward at the end of every step. One step, which ends with the
completion, is grpo. The paper's step rewards are a process reward model's; here they
are extra['step_reward'] [B, G, T] where extra['step_end'] is 1, and a run has the
config's rewards of what is written so far (config.source.steps says where steps end).
"""

from jaxrl_llm.methods.grpo import grpo
from jaxrl_llm.ops import advantages
from jaxrl_llm.types import InputError, Method


def grpo_process(
  *, clip_low: float = 0.2, clip_high: float = 0.2, beta: float = 0.04
) -> Method:
  """The arguments are grpo's."""

  def prepare(state, batch):
    if 'step_reward' not in batch.extra:
      raise InputError(
        'grpo_process: a reward of every step is due. Set config.source.steps to what '
        "a step ends with, such as '\\n', or config.source.rewriter."
      )
    advantages.check_group(batch.reward)
    end = batch.extra['step_end'] * batch.mask
    adv = advantages.group_steps(batch.extra['step_reward'], end)
    return state, batch.replace(advantage=adv * batch.mask)

  plain = grpo(clip_low=clip_low, clip_high=clip_high, beta=beta)
  return plain._replace(prepare=prepare, reads=('step_reward',))
