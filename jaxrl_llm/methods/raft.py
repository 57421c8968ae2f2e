"""RAFT, or best-of-n fine-tuning; SuperHF (2023), https://arxiv.org/abs/2310.16763.

loss = - E_token[ log pi(y_t) ] + beta E_token[ KL(ref || pi)_t ]
       over the best completion of each group

The first of the best where several are. beta 0 is RAFT, and SuperHF's code by default;
above 0 it is SuperHF's prior, which by that code is the forward KL, of the whole
distribution at each token. The paper's own beta was not read; 0.35 is said to be it.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.sft import sft
from jaxrl_llm.ops import advantages, divergences, metrics, sequences
from jaxrl_llm.types import Method


def raft(*, beta: float = 0.0) -> Method:
  """What is not the best of its group is not valid.

  With `beta` 0 the reference is neither needed nor run.
  """
  plain = sft()

  def prepare(state, batch):
    advantages.check_group(batch.reward)
    kept = sequences.best(batch.reward, batch.valid)
    batch = batch.replace(valid=kept, mask=batch.mask * kept[..., None])
    return state, divergences.asked(batch, 0.0) if beta else batch

  def loss(out, batch):
    value, found = plain.loss(out, batch)
    if not beta:
      return value, found
    apart, w = out.ref_divergence, batch.weight
    found['divergence'] = metrics.average(apart, w)
    return value + beta * jnp.sum(w * apart), found

  needs = plain.needs + (('ref_divergence',) if beta else ())
  return plain._replace(loss=loss, needs=needs, prepare=prepare)
