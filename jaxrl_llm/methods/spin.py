"""SPIN (Chen et al., 2024), https://arxiv.org/abs/2401.01335, self-play fine-tuning.

  h = sum_t log(pi / p) of the data's answer minus that of p's own, p the opponent
  loss = - E[ log sigmoid(lam h) ]

The loss is dpo's; what differs is where pairs come from: the better one is always the
data's, the worse one drawn from the opponent, the policy of the round before, which is
the reference too. A round's minimiser is p (data / p)^(1 / lam) up to a factor, so that
lam=1 is done in one exact round and below 1 overshoots. configs/pipelines.py:spin plays
the rounds. lam 0.1 is the paper's, 5 in its last round.
"""

from jaxrl_llm.methods.dpo import dpo
from jaxrl_llm.types import Method


def spin(*, lam: float = 0.1) -> Method:
  """Pairs (the data's answer, the opponent's)."""
  return dpo(beta=lam)
