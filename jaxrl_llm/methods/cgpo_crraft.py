"""CGPO by CRRAFT (2024), https://arxiv.org/abs/2409.20370. Experimental.

  y* = the best by R of a group's completions that keep every constraint and have
       log(pi_old / ref)(y) <= kl_max
  loss = - E_group[ sigmoid(R - R_anchor)(y*) sum_t log pi(y*_t) ]

Differs from raft: what breaks a constraint or is far from the reference is thrown away
first, and the best counts by how far it beats the anchor. A group with nothing left is
left out; the paper then takes the anchor itself, where it keeps the constraints. kl_max
is ours. See cgpo_crpg for the constraints and what else is left out.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.rloo import rloo
from jaxrl_llm.ops import extras, kl, sequences
from jaxrl_llm.types import Method


def cgpo_crraft(*, kl_max: float = 10.0, anchor: str = 'answer') -> Method:
  """`anchor`: of the calibration, the task's 'answer' or a 'greedy' completion."""

  def prepare(state, batch):
    score = extras.calibrated(batch, anchor, 'cgpo_crraft')
    feasible = extras.read(batch, 'feasible', 'cgpo_crraft')
    _, batch = kl.paid(batch)
    near = jnp.heaviside(kl_max - batch.extra['kl'], 1.0)  # NaN of NaN, not 0.
    kept = sequences.best(batch.reward, feasible * near)
    mask = batch.mask * kept[..., None]
    return state, batch.replace(advantage=score, valid=kept, mask=mask)

  needs = ('old_logp', 'ref_logp')
  asked = dict(prepare_needs=needs, reads=extras.anchored(anchor, 'cgpo_crraft'))
  return rloo(beta=0.0)._replace(prepare=prepare, **asked)
