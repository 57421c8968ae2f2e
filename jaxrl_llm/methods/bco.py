"""BCO (Jung et al., 2024), https://arxiv.org/abs/2404.04656.

  r = beta sum_t log(pi / ref),  delta = 1/2 (mean r of good + mean r of bad), detached
  loss = E_good[ - log sigmoid(r - delta) ] + E_bad[ - log sigmoid(delta - r) ]

A completion is good where its `reward` is above 0. Differs from kto: a logistic loss,
in which no row is so far off that it is ignored; each class counts as much, whatever
its size; and delta is of the rows themselves. Its means are of all batches before this
one; a class that none of them had does not count, and at first delta is 0. The paper's
weights for prompts that the two classes do not share are left out.
"""

import jax.numpy as jnp

from jaxrl_llm.methods.dpo import log_ratio
from jaxrl_llm.ops import extras, metrics, pair_losses, preferences
from jaxrl_llm.types import Method

CLASSES = {'good': ('reward_chosen', 1), 'bad': ('reward_rejected', -1)}


def bco(*, beta: float = 0.01) -> Method:
  """For completions with labels."""
  fitted = log_ratio(beta)

  def prepare(state, batch):
    return state, extras.carried(batch, {'delta': between(state.extra)})

  def measure(out, batch):
    w = batch.seq_weight
    mine = [sides(batch) == sign for _, sign in CLASSES.values()]
    scale = sum(x * w.sum() / above_zero(jnp.sum(w * x)) for x in mine)
    return batch.replace(extra=batch.extra | {'scale': scale})

  def loss(out, batch):
    r, w = fitted(out, batch), batch.seq_weight
    side, delta = sides(batch), batch.extra['delta'][:, None]
    found = preferences.graded(r, side, batch.valid, w.sum(1))
    found['delta'] = metrics.average(delta[:, 0], w.sum(1))
    for name, sign in CLASSES.values():
      found[name] = metrics.average(r, w * (side == sign))
    each = batch.extra['scale'] * pair_losses.logistic(side * (r - delta))
    return jnp.sum(w * each), found

  zero = {f'bco_{name}{of}': 0.0 for name in CLASSES for of in ('', '_count')}
  return Method(
    loss,
    ('logp', 'ref_logp'),
    prepare,
    measure=measure,
    extra=zero,
    after=follow,
    whole=True,
  )


def sides(batch):
  """1 of what is good, -1 of what is bad: [B, G]."""
  return jnp.where(batch.reward > 0, 1, -1)


def above_zero(x):
  """x, to divide by: 1 in the place of 0."""
  return jnp.where(x > 0, x, 1.0)


def between(extra):
  """Half-way between the means of the classes that were seen."""
  seen = jnp.stack([jnp.sign(extra[f'bco_{name}_count']) for name in CLASSES])
  means = jnp.stack([extra[f'bco_{name}'] for name in CLASSES])
  return jnp.sum(seen * means) / above_zero(seen.sum())


def follow(state, batch, metrics):
  """Adds a batch's rows to the running means."""
  extra = dict(state.extra)
  for name, (metric, sign) in CLASSES.items():
    new = jnp.sum(batch.valid * (sides(batch) == sign))
    count = extra[f'bco_{name}_count'] + new
    move = (metrics[metric] - extra[f'bco_{name}']) * new / jnp.maximum(count, 1.0)
    extra |= {f'bco_{name}': extra[f'bco_{name}'] + move, f'bco_{name}_count': count}
  return state.replace(extra=extra)
