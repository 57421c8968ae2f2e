"""Several reward models at once (Coste et al., 2024, https://arxiv.org/abs/2310.02743).

  loss = sum_k E[ n_k - log sigmoid(s_k chosen - s_k rejected) + center ( ... )^2 ]

Each of the K is a model of its own in a leading axis of the role ensemble, and none
sees another. They differ by their first head (drawn, not zero), and with `bootstrap` by
how often each has an example: n_k is Poisson(1) of the example's number, the same in
every epoch. That is our choice; the paper's models differ by seed. ops/ensembles.py
says how K scores become one. `center` holds their offsets together.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.bradley_terry import bradley_terry
from jaxrl_llm.ops import metrics, sequences
from jaxrl_llm.types import InputError, Method, Outputs


def ensemble(
  *, members: int = 5, center: float = 0.01, l2: float = 0.0, bootstrap: bool = True
) -> Method:
  """Trains the role ensemble: `members` trees stacked."""
  if members < 2:
    raise InputError(f'ensemble: members={members}; give at least 2.')
  one = bradley_terry(center=center, l2=l2)

  def loss(out, batch):
    w, score = batch.prompt_weight, out.members
    count = drawn(batch.prompt_id, members) if bootstrap else jnp.ones_like(score[:, 0])

    def member(score, count):
      rows = batch.replace(prompt_weight=w * count)
      return one.loss(Outputs(score=score), rows)

    each, found = jax.vmap(member, in_axes=-1)(score, count)
    margins = score[:, 0] - score[:, 1]
    return jnp.sum(each), jax.tree.map(jnp.sum, found) | {
      'accuracy': metrics.wins(sequences.margin(score.sum(-1)), w),
      'accuracy_single': metrics.wins(margins, w[:, None] * jnp.ones_like(margins)),
      'disagreement': metrics.average(jnp.std(margins, -1), w),
    }

  return Method(loss, ('members',), members=members)


def drawn(example, members: int):
  """Poisson(1) of (example, member): [B, K]."""
  root = jax.random.key(0)
  keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(example)
  draw = lambda key: jax.random.poisson(key, 1.0, (members,))
  return jax.vmap(draw)(keys).astype(jnp.float32)
