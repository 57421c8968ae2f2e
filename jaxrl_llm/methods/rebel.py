"""REBEL (Gao et al., 2024), https://arxiv.org/abs/2404.16767.

  h = sum_t log(pi / pi_old),  R = reward - beta sum_t log(pi_old / pi_ref)
  loss = E_pair[ (h_1 - h_2 - eta (R_1 - R_2))^2 ]

A regression of the difference of two rewards by log-ratios, without baseline or clip:
fitted exactly, pi is proportional to pi_old exp(eta R). In the official code's form
(the paper has 1 / eta before h); beta 0.05 and eta 1 are its summarisation script's.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import kl, metrics, sequences
from jaxrl_llm.types import Method


def rebel(*, eta: float = 1.0, beta: float = 0.05) -> Method:
  """For groups of two. With `beta` 0 the reference is neither needed nor run."""

  def prepare(state, batch):
    reward = batch.reward
    if beta:
      paid, batch = kl.paid(batch)
      reward -= beta * paid.sum(-1)
    return state, batch.replace(advantage=reward)

  def loss(out, batch):
    h = sequences.seq_sum(out.logp - batch.old_logp, batch.mask)
    gap = sequences.margin(h) - eta * sequences.margin(batch.advantage)
    w = batch.prompt_weight
    found = {'margin': metrics.average(sequences.margin(h), w)}
    return jnp.sum(w * jnp.square(gap)), found | metrics.kl_paid(batch)

  needs = ('old_logp', 'ref_logp') if beta else ()
  return Method(loss, ('logp', 'old_logp'), prepare, needs)
