"""RLOO (Ahmadian et al., 2024), https://arxiv.org/abs/2402.14740.

A_i = R_i - mean of the others' R,  R_i = reward_i - beta sum_t log(pi_old / pi_ref)
loss = - E_seq[ A sum_t log pi(y_t) ]

Differs from reinforce: the group's other completions are the baseline; the log-prob is
summed, not averaged, over the completion (the completion is the action); KL is part of
the reward. beta is the paper's 0.03 (sec. C).
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, kl, metrics, sequences
from jaxrl_llm.types import Method


def rloo(*, beta: float = 0.03, advantage=advantages.leave_one_out) -> Method:
  """With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    reward = batch.reward
    if beta:
      paid, batch = kl.paid(batch)
      reward -= beta * paid.sum(-1)
    return state, batch.replace(advantage=advantage(reward, batch.valid))

  def loss(out, batch):
    w = batch.seq_weight
    gain = jnp.sum(w * batch.advantage * sequences.seq_sum(out.logp, batch.mask))
    return -gain, {'gain': (gain, jnp.sum(w))} | metrics.kl_paid(batch)

  needs = ('old_logp', 'ref_logp') if beta else ()
  return Method(loss, ('logp',), prepare, needs)
