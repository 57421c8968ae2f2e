"""SCoRe (2024), https://arxiv.org/abs/2409.12917: two attempts, trained in two stages.

  stage 1: max E[ r_2 ] - (beta1 + beta2) KL of attempt 1 - beta1 KL of attempt 2
  stage 2: max E[ r_1 + r_2 + alpha (r_2 - r_1) ] - beta1 KL of both
  loss = - E_seq[ sum_t A_t log pi(y_t) ],  A_t = what is still to come, as below

Differs from rloo: rewards stand at the ends of turns, and the KL to the reference, k1
in the reward, is stronger on the first attempt in stage 1, which holds it in place
while the second learns. Stage 2 pays for progress: the bonus belongs to attempt 2. The
others of the group are the baseline, of each turn its own; KL has none. Rewards: r_2 is
the batch's, r_1 extra['first'] (config.task.name='two_attempts').

Experimental: constants and the form of the credit are from secondary sources. alpha,
beta1 and beta2 are those said to be the paper's for MATH.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.reinforce import reinforce
from jaxrl_llm.ops import advantages, kl, sequences, weights
from jaxrl_llm.types import InputError, Method


def score_rl(
  *, stage: int = 2, alpha: float = 10.0, beta1: float = 0.01, beta2: float = 0.1
) -> Method:
  """Stage 2 goes on from stage 1 (`config.model.name`, its export)."""
  if stage not in (1, 2):
    raise InputError(f'score_rl: stage={stage}; give 1 or 2.')
  extra_kl = beta2 if stage == 1 else 0.0

  def prepare(state, batch):
    if not {'turn', 'first'} <= set(batch.extra):
      raise InputError(
        'score_rl: the batch has no two attempts. Set config.task.name='
        "'two_attempts' and config.source.name='episodes'."
      )
    first, second = batch.extra['first'], batch.reward
    one = 0.0 if stage == 1 else first
    two = second + (alpha * (second - first) if stage == 2 else 0.0)
    better = lambda x: advantages.leave_one_out(x, batch.valid)[..., None]
    early = batch.extra['turn'] == 1
    adv = jnp.where(early, better(one + two), better(two))
    paid, batch = kl.paid(batch)
    adv -= sequences.to_go((beta1 + extra_kl * early) * paid)
    return state, batch.replace(advantage=adv * batch.mask)

  plain = reinforce(aggregate=weights.seq_sum)
  return plain._replace(prepare=prepare, prepare_needs=('old_logp', 'ref_logp'))
