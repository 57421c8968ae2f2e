"""P-RLHF (2024), https://arxiv.org/abs/2402.05133: a reward model that knows its users.

  e_u = e_0 + o_u, or softmax(w_u) V with clusters, as soft tokens before the prompt
  loss = alpha l(x, u) + (1 - alpha) l(x, anybody)
  l = E_pair[ - log sigmoid(s_chosen - s_rejected) ]

Differs from bradley_terry: the scores are a user's, and half of the loss is of nobody
in particular (o = 0), which serves who is not known. Differs from vpl: a user has a
number and was there in training. The paper trains a policy so, by dpo with beta 0.5;
this is the same recipe for a reward model. Where users start is our choice
(ops/users.py).
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics, sequences, users
from jaxrl_llm.types import InputError, Method


def p_rlhf(
  *, count: int, tokens: int = 10, clusters: int = 0, alpha: float = 0.5
) -> Method:
  """Trains the role reward, and its users.

  Args:
    count: users; the data number them from 1, 0 is anybody.
    tokens: soft tokens of a user.
    clusters: how many kinds of users there are; 0 is each for itself. The paper has 10.
    alpha: the share of the user's own loss; 1 leaves out the other.
  """

  def soft(own, batch):
    return users.soft(own, batch.extra['user'])

  def prepare(state, batch):
    if 'user' not in batch.extra:
      raise InputError(
        "p_rlhf: the pairs do not say whose they are. Set config.data.kind='"
        "personal_pairs'."
      )
    nobody = batch.extra | {'user': jnp.zeros_like(batch.extra['user'])}
    aux = batch.replace(extra=nobody) if alpha < 1 else None
    return state, batch.replace(aux=aux)

  def loss(out, batch):
    w, logit = batch.prompt_weight, sequences.margin(out.score)
    nll = total = -jax.nn.log_sigmoid(logit)
    found = {
      'nll': metrics.average(nll, w),
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit, w),
    }
    if alpha < 1:
      plain = -jax.nn.log_sigmoid(sequences.margin(out.aux.score))
      total = alpha * nll + (1 - alpha) * plain
      found['nll_anybody'] = metrics.average(plain, w)
    return jnp.sum(w * total), found

  own = lambda key, width: users.init(key, width, count, tokens, clusters)
  needs = ('score', 'aux/score') if alpha < 1 else ('score',)
  return Method(loss, needs, prepare, own=own, soft=soft)
