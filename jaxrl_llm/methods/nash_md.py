"""Nash-MD-PG (Munos et al., 2023), https://arxiv.org/abs/2312.00886.

  A = P(y beats y') - 1/2 - tau sum_t log(pi_old / ref)
  loss = - E_seq[ A sum_t log pi(y_t) ],  y the first completion, y' the second

y' is the opponent's: a mixture of policy and reference, whose logits are mixture times
the reference's and the rest the policy's (config.source.mixture; 0 is self-play, 1 the
reference). At rest the policy is a regularised Nash equilibrium, proportional to
ref exp(E[P(y beats y')] / tau). The sequence's own log-ratio stands before all of its
tokens: KL(pi || ref) without the myopia of each token's own. A token-wise mixture is
not quite the sequences' geometric one. tau 0.008 is the paper's, the judge ours.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.reinforce import reinforce
from jaxrl_llm.ops import kl, preferences, weights
from jaxrl_llm.types import Method


def nash_md(
  *, tau: float = 0.008, judge=preferences.bradley_terry, aggregate=weights.seq_sum
) -> Method:
  """For groups of two; `judge` maps rewards [B, 2] to P(y beats y') [B]; config.judge,
  which reads the completions, takes its place.
  """

  def prepare(state, batch):
    paid, batch = kl.paid(batch)
    both = batch.valid.prod(1, keepdims=True)  # A row alone has no opponent.
    mine = both * jnp.array([[1.0, 0.0]])
    chance = preferences.first(judge, batch)[:, None]
    gain = chance - 0.5 - tau * paid.sum(-1)
    return state, batch.replace(
      advantage=(gain * mine)[..., None], valid=mine, mask=batch.mask * mine[..., None]
    )

  plain = reinforce(aggregate=aggregate)
  asked = dict(prepare_needs=('old_logp', 'ref_logp'), reads=('opponent', 'duel'))
  return plain._replace(prepare=prepare, **asked)
