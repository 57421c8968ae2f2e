"""CGPO by CODPO (2024), https://arxiv.org/abs/2409.20370. Experimental.

  y+ = the best by R of a group's completions that keep every constraint
  y- = the worst of those that break one; of all, where none does
  h = sum_t log(pi / ref) of y+ minus that of y-
  loss = - E_group[ log sigmoid(beta h) + nll / |y+| sum_t log pi(y+_t) ]

Differs from dpo: pairs are made of the policy's own completions by judges. A group in
which nothing keeps the constraints, or y+ is y-, is left out. beta and nll are ours, as
no card names them. See cgpo_crpg for the constraints and what else is left out.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import advantages, extras, metrics, sequences
from jaxrl_llm.types import Method


def cgpo_codpo(*, beta: float = 0.1, nll: float = 0.1) -> Method:
  """Rows that are in no pair are not valid."""

  def prepare(state, batch):
    advantages.check_group(batch.reward)
    feasible = extras.read(batch, 'feasible', 'cgpo_codpo')
    failing = batch.valid * (1.0 - feasible)
    chosen = sequences.best(batch.reward, feasible)
    among = jnp.where(failing.any(1, keepdims=True), failing, feasible)
    rejected = sequences.best(-batch.reward, among)
    there = chosen.any(1) & ~(chosen * rejected).any(1)
    side = (chosen - rejected) * there[:, None]
    kept = jnp.abs(side)
    batch = batch.replace(valid=kept, mask=batch.mask * kept[..., None])
    return state, batch.replace(extra=batch.extra | {'side': side})

  def measure(out, batch):
    there = batch.mask.any(-1)
    both = (there.sum(1) == 2).astype(jnp.float32)
    # 1 each, but for the sampler's error, of which a pair has the product.
    each = jnp.where(there, there.sum() * batch.seq_weight, 1.0)
    share = both / jnp.maximum(both.sum(), 1.0)
    return batch.replace(prompt_weight=share * each.prod(1))

  def loss(out, batch):
    h = sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    side, w = batch.extra['side'], batch.prompt_weight
    logit = beta * jnp.sum(side * h, 1)
    fit = jnp.sum((side > 0) * sequences.seq_mean(out.logp, batch.mask), 1)
    gain = jnp.sum(w * (jax.nn.log_sigmoid(logit) + nll * fit))
    return -gain, {
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit, w),
    }

  return Method(loss, ('logp', 'ref_logp'), prepare, measure=measure, whole=True)
