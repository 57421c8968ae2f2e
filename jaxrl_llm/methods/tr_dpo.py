"""TR-DPO, trust region (Gorbatovski et al., 2024), https://arxiv.org/abs/2404.09656.

  loss = dpo's, of a reference that follows:
  every `every` updates  ref <- alpha pi + (1 - alpha) ref;  alpha 1 copies the policy

Differs from dpo: the reference moves, so that the policy may go further. alpha 0.6 and
512 updates are defaults of code of others.
"""

from jaxrl_llm import controllers
from jaxrl_llm.methods.dpo import paired
from jaxrl_llm.ops import pair_losses, sequences
from jaxrl_llm.types import Method


def tr_dpo(*, beta: float = 0.1, alpha: float = 0.6, every: int = 512) -> Method:
  """`every` counts optimizer updates."""
  after, extra = controllers.follow(1 - alpha, every)

  def reward(out, batch):
    return beta * sequences.seq_sum(out.logp - batch.ema_logp, batch.mask)

  found = paired(pair_losses.logistic, reward, ('logp', 'ema_logp'))
  return found._replace(after=after, extra=extra)
