"""KTO (Ethayarajh et al., 2024), https://arxiv.org/abs/2402.01306.

  rho = sum_t log(pi / ref),  z0 = max(0, mean of rho over mismatched rows), detached
  loss = E_row[ lam (1 - sigmoid(sign beta (rho - z0))) ]

A completion is desirable, sign +1, where its `reward` is above 0, and else undesirable,
sign -1. A mismatched row is the completion of another prompt after this one's; z0 is
their mean over the whole minibatch, held above zero after averaging. Of held-out rows
it is that of each batch of them. `baseline='batch'` takes the matched rows instead.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import correlation, extras, metrics, preferences, sequences
from jaxrl_llm.types import InputError, Method


def kto(
  *,
  beta: float = 0.1,
  desirable: float = 1.0,
  undesirable: float = 1.0,
  baseline: str = 'mismatched',
) -> Method:
  """`desirable` and `undesirable` weigh the two classes. In the paper the former, times
  how many there are of its class, is 1 to 3/2 of the latter times how many of its own.
  """
  if baseline not in ('mismatched', 'batch'):
    raise InputError(f"kto: baseline is 'mismatched' or 'batch', not {baseline!r}.")
  mismatched = baseline == 'mismatched'

  def prepare(state, batch):
    return state, batch.replace(aux=mismatch(batch)) if mismatched else batch

  def measure(out, batch):
    out, rows = (out.aux, batch.aux) if mismatched else (out, batch)
    ref_logp = out.ref_logp if mismatched else batch.ref_logp
    rho = sequences.seq_sum(out.logp - ref_logp, rows.mask)
    z0 = jnp.maximum(correlation.weighted(rho, rows.seq_weight)[0, 0], 0.0)
    return extras.carried(batch, {'z0': z0})

  def loss(out, batch):
    z0 = batch.extra['z0'][:, None]
    rho = sequences.seq_sum(out.logp - batch.ref_logp, batch.mask)
    good, w = batch.reward > 0, batch.seq_weight
    value = jax.nn.sigmoid(jnp.where(good, beta, -beta) * (rho - z0))
    lam = jnp.where(good, desirable, undesirable)
    found = preferences.graded(beta * rho, good, batch.valid, w.sum(1))
    return jnp.sum(w * lam * (1 - value)), found | {
      'value_kto': metrics.average(value, w),
      'z0': metrics.average(batch.extra['z0'], w.sum(1)),
    }

  sensors = ('aux/logp', 'aux/ref_logp') if mismatched else ('logp',)
  needs = ('logp', 'ref_logp')
  return Method(loss, needs, prepare, (), measure, sensors, whole=True)


def mismatch(batch):
  """Each prompt with the next one's completions, in the order of `prompt_id`.

  What is not valid has no part in it: a prompt is neither one's nor a completion's.
  """
  if batch.prompts.shape[0] < 2:
    raise InputError(
      'kto: mismatched rows need at least two prompts in a batch. Enlarge the batch or '
      "set config.method.baseline='batch'."
    )
  other, there = following(batch)
  rows = jax.tree.map(lambda x: x[other], batch)
  return batch.replace(
    completions=rows.completions,
    length=rows.length,
    mask=rows.mask * there[:, None, None],
    valid=rows.valid * there[:, None],
    temperature=rows.temperature,
    old_logp=None,
    ref_logp=None,
  )


def following(batch):
  """Of each row the next valid one of another prompt [B], and whether there is one.

  Several rows of one prompt, such as the two of a pair, stand behind each other.
  """
  there, slots = batch.valid.max(1) > 0, jnp.arange(batch.prompts.shape[1])
  asked = jnp.where(slots[None] < batch.prompt_length[:, None], batch.prompts, -1)
  other = (asked[:, None] != asked[None]).any(-1) & there[:, None] & there[None]
  place = jnp.argsort(jnp.argsort(batch.prompt_id))
  ahead = (place[None] - place[:, None]) % len(place)
  return jnp.where(other, ahead, len(place)).argmin(1), other.any(1)
