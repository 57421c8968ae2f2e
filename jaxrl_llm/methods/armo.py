"""ArmoRM (Wang et al., 2024), https://arxiv.org/abs/2406.12845: several attributes, and
a gate that says which of them counts for this prompt.

  r_a = what regression says of attribute a;   r'_a = r_a - penalty_a r_verbosity
  g = scale softmax(MLP(the state at the prompt's last token) / 10)
  s = sum_a g_a r'_a
  loss = regression's - E_pair[ log sigmoid(s_chosen - s_rejected) ]

r and the state are detached in the second term: the gate moves nothing but itself.
Differs from bradley_terry: the score is a sum of rated attributes, whose weights, none
below 0, the prompt alone decides. Both stages are one run here, which is ours: the
paper's first one is a ridge regression on a frozen model. So are a scale that is
learned, from 1, a gate that starts even, and no dropout. The released script trains on
r; here it is on r', which the text has. evaluate/verbosity.py finds penalties.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.regression import HELPSTEER, regression
from jaxrl_llm.ops import metrics, mlp, ratings, sequences
from jaxrl_llm.types import InputError, Method


def armo(
  *,
  attributes: str = HELPSTEER,
  verbosity: str = '',
  penalties: str = '',
  hidden: int = 1024,
  layers: int = 3,
  temperature: float = 10.0,
) -> Method:
  """Trains the role reward on rated pairs, and the gate.

  Args:
    attributes: as in regression.
    verbosity: the attribute that the others are freed of; '' is none.
    penalties: how much of it each loses, 'helpfulness=0.3,correctness=0.25'.
    hidden, layers: of the gate's network, whose output `temperature` divides.
  """
  names, first = ratings.named(attributes), regression(attributes=attributes)
  if bool(verbosity) != bool(penalties) or verbosity not in (*names, ''):
    raise InputError(
      f'armo: verbosity={verbosity!r}, penalties={penalties!r}; name one of {names} '
      "and what the others lose, or leave both ''."
    )
  gated = gate(jnp.zeros(len(names)), 0, temperature)
  if penalties:
    lost = ratings.weights(names, penalties, 'armo: penalties')
    gated = gate(lost, names.index(verbosity), temperature)

  def loss(out, batch):
    total, found = first.loss(out, batch)
    share, score = gated(jax.lax.stop_gradient(out.asked), out)
    logit, w = sequences.margin(score), batch.prompt_weight
    nll = -jax.nn.log_sigmoid(logit)
    each = {
      f'gate/{n}': metrics.average(share[:, 0, a], w) for a, n in enumerate(names)
    }
    return total + jnp.sum(w * nll), found | each | {
      'nll': metrics.average(nll, w),
      'margin': metrics.average(logit, w),
      'accuracy': metrics.wins(logit, w),
    }

  def own(key, width):
    sizes = (width, *(hidden,) * layers, len(names))
    return {'gate': mlp.init(key, sizes, last=0.0), 'scale': jnp.float32(1.0)}

  needs = (*first.needs, 'asked', 'own')
  serve = lambda out: gated(out.asked, out)[1]
  return first._replace(loss=loss, needs=needs, own=own, serve=serve)


def gate(penalties, column: int, temperature: float):
  """`(asked, out) -> (g [B, G, A], s [B, G])`, the attributes detached."""

  def gated(asked, out):
    logits = mlp.apply(out.own['gate'], asked, jax.nn.relu) / temperature
    share = out.own['scale'] * jax.nn.softmax(logits)
    reward = jax.lax.stop_gradient(out.attributes)
    reward -= penalties[None, None] * reward[..., column : column + 1]
    return share, (share * reward).sum(-1)

  return gated
