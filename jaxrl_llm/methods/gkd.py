"""GKD (Agarwal et al., 2023), https://arxiv.org/abs/2306.13649, on-policy distillation.

  M = beta teacher + (1 - beta) pi
  loss = E_token[ beta KL(teacher || M) + (1 - beta) KL(pi || M) ]
  beta = 0: E_token[ KL(teacher || pi) ];  beta = 1: E_token[ KL(pi || teacher) ]

Over whole distributions, at the policy's own completions, without a gradient through
their sampling; rewards are only shown. The teacher is config.model.teacher. The paper
mixes in completions of a data set with a chance of 1 - lambda: here lambda is 1. Both
networks are read at the temperature of sampling. beta 0.5 is the libraries'.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import divergences, metrics, weights
from jaxrl_llm.types import InputError, Method


def gkd(*, beta: float = 0.5, aggregate=weights.token_mean) -> Method:
  """`beta`, from 0 to 1, is the teacher's share of M."""
  if not 0 <= beta <= 1:
    raise InputError(f'gkd: beta={beta!r}; give a number from 0 to 1.')

  def prepare(state, batch):
    return state, divergences.asked(batch, beta)

  def loss(out, batch):
    w = batch.weight
    found = {'divergence': metrics.average(out.divergence, w)}
    return jnp.sum(w * out.divergence), found

  return Method(loss, ('divergence',), prepare, aggregate=aggregate)
