"""CGPO by CRPG (2024), https://arxiv.org/abs/2409.20370. Experimental.

  R_c = sigmoid(R - R_anchor) if every constraint is kept, else 0
  R' = max(1 - log(pi_old / ref)(y) / kl_max, 0) R_c
  loss = - E_seq[ (R' - mean R') sum_t log pi(y_t) ],  the mean over the batch

Differs from reinforce: a reward between 0 and 1 that a violation takes away whole
(safe_rlhf weighs it instead), and that fades with the distance from the reference. No
clip, no dual variable. Where log pi is below that of the reference the factor is above
1, unless `cap` holds it there. kl_max is ours, as no card names one. The paper's
mixture of tasks, each with judges of its own, is left out.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.rloo import rloo
from jaxrl_llm.ops import advantages, extras, kl
from jaxrl_llm.types import Method


def cgpo_crpg(
  *, kl_max: float = 10.0, anchor: str = 'answer', cap: bool = False
) -> Method:
  """`anchor`: of the calibration, the task's 'answer' or a 'greedy' completion.

  Constraints are the parts of config.costs; one is kept where its cost is at most 0.
  """
  plain = rloo(beta=0.0, advantage=advantages.batch_mean)

  def prepare(state, batch):
    score = extras.calibrated(batch, anchor, 'cgpo_crpg')
    score *= extras.read(batch, 'feasible', 'cgpo_crpg')
    _, batch = kl.paid(batch)
    factor = jnp.maximum(1.0 - batch.extra['kl'] / kl_max, 0.0)
    factor = jnp.minimum(factor, 1.0) if cap else factor
    return plain.prepare(state, batch.replace(reward=factor * score))

  needs = ('old_logp', 'ref_logp')
  asked = dict(prepare_needs=needs, reads=extras.anchored(anchor, 'cgpo_crpg'))
  return plain._replace(prepare=prepare, **asked)
