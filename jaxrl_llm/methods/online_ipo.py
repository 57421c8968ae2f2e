"""Online IPO (Calandriello et al., 2024), https://arxiv.org/abs/2403.08635.

  h = sum_t log(pi / ref) of the first completion minus that of the second
  loss = E_pair[ p (h - 1 / (2 tau))^2 + (1 - p) (h + 1 / (2 tau))^2 ]

Differs from ipo: both completions are the policy's own, and a judge says p, how likely
the first wins; the label's expectation is taken, in place of a draw. Log-probs are
summed. Its gradient on policy is 4 / tau times that of regularised self-play, which is
nash_md without a mixture. The judge by the rewards, and tau, are ours.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, preferences, sequences
from jaxrl_llm.types import Method


def online_ipo(*, tau: float = 0.1, judge=preferences.bradley_terry) -> Method:
  """For groups of two; `judge` maps rewards [B, 2] to p [B]; config.judge, which reads
  the completions, takes its place.
  """

  def prepare(state, batch):
    p = preferences.first(judge, batch)
    return state, batch.replace(extra=batch.extra | {'preference': p})

  def loss(out, batch):
    h = sequences.margin(sequences.seq_sum(out.logp - batch.ref_logp, batch.mask))
    p, w, goal = batch.extra['preference'], batch.prompt_weight, 1 / (2 * tau)
    error = p * jnp.square(h - goal) + (1 - p) * jnp.square(h + goal)
    side = jnp.sign(p - 0.5)
    return jnp.sum(w * error), {
      'margin': metrics.average(h * side, w),
      'accuracy': metrics.wins(h * side, w),
    }

  return Method(loss, ('logp', 'ref_logp'), prepare, reads=('duel',), whole=True)
