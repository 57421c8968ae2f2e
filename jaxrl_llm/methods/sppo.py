"""SPPO (Wu et al., 2024), https://arxiv.org/abs/2405.00675, self-play.

  P = mean over the group of how likely y beats one of it, itself as 1/2
  loss = E_seq[ (sum_t log(pi / pi_old) - eta (P - 1/2))^2 ]

Fitted exactly, pi is proportional to pi_old exp(eta P), the multiplicative weights
update, but for 1/2 in the place of log Z / eta. On intransitive P their average comes
to rest at the Nash equilibrium, the last policy need not: see inpo. `ends` keeps the
best and the worst of a group, as the official code does with five. The code's rounds
are of many updates, these of one batch. eta 1000 is the paper's; it asks for log-ratios
of hundreds of nats, so steps and not the loss say where it ends.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics, preferences, sequences
from jaxrl_llm.types import Method


def sppo(
  *, eta: float = 1000.0, ends: bool = True, judge=preferences.bradley_terry
) -> Method:
  """`judge` maps rewards [B, 2] to how likely the first wins [B]; config.judge, which
  reads the completions, takes its place.
  """

  def prepare(state, batch):
    gain = preferences.against_group(judge, batch) - 0.5
    if ends:
      top, bottom = (sequences.best(x, batch.valid) for x in (gain, -gain))
      kept = jnp.maximum(top, bottom)
      batch = batch.replace(valid=kept, mask=batch.mask * kept[..., None])
    return state, batch.replace(advantage=gain)

  def loss(out, batch):
    gap = sequences.seq_sum(out.logp - batch.old_logp, batch.mask)
    gain, w = batch.advantage, batch.seq_weight
    return jnp.sum(w * jnp.square(gap - eta * gain)), {
      'margin': metrics.average(2 * jnp.sign(gain) * gap, w)
    }

  return Method(loss, ('logp', 'old_logp'), prepare, reads=('duel',))
