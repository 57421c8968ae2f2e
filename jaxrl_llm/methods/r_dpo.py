"""R-DPO, length-regularised (Park et al., 2024), https://arxiv.org/abs/2403.19159.

  loss = E_pair[ - log sigmoid(r_chosen - r_rejected) ]
  r = beta sum_t log(pi / ref) + alpha length

Differs from dpo: the reward that it fits pays alpha for every token less. A chosen
completion that is the longer one is ahead by its length, and so is pushed less. alpha
0.01 is from code of others; the paper tunes it.
"""

from jaxrl_llm.methods.dpo import log_ratio, paired
from jaxrl_llm.ops import pair_losses
from jaxrl_llm.types import Method


def r_dpo(*, beta: float = 0.1, alpha: float = 0.01) -> Method:
  """`alpha` is in nats per token."""
  fitted = log_ratio(beta)
  reward = lambda out, batch: fitted(out, batch) + alpha * batch.mask.sum(-1)
  return paired(pair_losses.logistic, reward)
