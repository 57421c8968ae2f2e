"""REFUEL (2024), https://arxiv.org/abs/2410.04612.

  h = sum of log(pi / pi_old) over the tokens of the turn at which the two part
  loss = E_pair[ (h_1 - h_2 - eta (R_1 - R_2))^2 ],  R of all from that turn on

Differs from rebel: two conversations go on to their ends from one that the policy has
had, and only the words of the turn where they part are trained, so that a turn is paid
for what comes of it. config.source.name='episode_pairs' draws them; of one turn it is
rebel. In the official code's form, with the eta of its setting two; setting one has
1000, for scores of a reward model. Setting two's KL and penalty are left out.
"""

from jaxrl_llm.methods.rebel import rebel
from jaxrl_llm.types import InputError, Method


def refuel(*, eta: float = 1.0) -> Method:
  """For groups of two that share what was said before turn 1."""
  plain = rebel(eta=eta, beta=0.0)

  def prepare(state, batch):
    if 'turn' not in batch.extra:
      raise InputError(
        'refuel: the batch does not say which turn is which. Set '
        "config.source.name='episode_pairs'."
      )
    state, batch = plain.prepare(state, batch)
    return state, batch.replace(mask=batch.mask * (batch.extra['turn'] == 1))

  return plain._replace(prepare=prepare)
