"""Demonstrations beside whatever a method learns from: the ptx term of PPO-ptx
(Ouyang et al., 2022, https://arxiv.org/abs/2203.02155), for any method.

loss - coef sum(weight * log pi) over the demonstrations of batch.aux, which are as many
as the batch has prompts and weighed as the method weighs its own tokens.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import metrics
from jaxrl_llm.types import InputError, Method


def with_pretraining(method: Method, *, coef: float) -> Method:
  """The method with the term."""
  if any(name.startswith('aux/') for name in method.needs + method.measure_needs):
    raise InputError('config.pretrain: this method has a second stream of its own.')
  if not coef > 0:
    raise InputError(f'config.pretrain.coef={coef!r}; give it above 0.')

  def loss(out, batch):
    plain, found = method.loss(out, batch)
    w, logp = batch.aux.weight, out.aux.logp
    found |= {'nll_pretrain': metrics.average(-logp, w)}
    return plain - coef * jnp.sum(w * logp), found

  return method._replace(loss=loss, needs=(*method.needs, 'aux/logp'))
