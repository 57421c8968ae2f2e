"""BRME, for reward-robust RLHF (2024), https://arxiv.org/abs/2409.15360: heads on one
trunk, each of which says how sure it is. Experimental.

  mu_k, s_k = head k of the state at a completion's last token;   k of `members`
  sigma_k = floor + softplus(s_k)
  loss = sum_k E[ n_k ( (y - mu_k)^2 / (2 sigma_k^2) + log sigma_k ) ] / members
  r = mu_k of the head whose sigma_k is least, the nominal reward, which is served

Differs from ensemble: one trunk, a number to meet in place of a comparison, and a
deviation beside it. ops/robust.py has what a policy is trained on. This is stage 2;
stage 1 is bradley_terry, and y its score (rewards/rated.py) or an annotator's rating.
Of stage 2 a squared error is known, neither its exact target nor how sigma is learned.
Our default is the likelihood of a Gaussian. Ours too are the floor, the Poisson counts
n_k of ensemble, without which the heads grow alike, and a trunk that does not start as
stage 1's.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods import ensemble
from jaxrl_llm.ops import metrics, mlp, ratings, robust
from jaxrl_llm.types import InputError, Method


def brme(
  *,
  attribute: str = 'overall',
  members: int = 5,
  floor: float = 0.05,
  bootstrap: bool = True,
) -> Method:
  """Trains the role reward, a trunk whose heads stand apart, and those."""
  if members < 2 or not floor > 0:
    raise InputError(
      f'brme: members={members}, floor={floor}; give at least 2, and more than 0.'
    )
  told = lambda batch: ratings.told(batch, [attribute])

  def gaussians(out):
    found = mlp.apply(out.own['heads'], out.embedding, jnp.tanh)
    mu, spread = jnp.split(found, 2, -1)
    return mu, floor + jax.nn.softplus(spread)

  def loss(out, batch):
    (mu, sigma), (y, rated) = gaussians(out), told(batch)
    w = ratings.per_rating(batch, rated)
    error = jnp.square(y - mu)
    nll = error / (2 * jnp.square(sigma)) + jnp.log(sigma)
    count = ensemble.drawn(batch.prompt_id, members)[:, None] if bootstrap else 1.0
    served, there = robust.nominal(mu, sigma), (batch.seq_weight[..., None] * rated)
    there = there[..., 0]
    return jnp.sum(w * nll * count) / members, {
      'nll': metrics.average(nll.sum(-1) / members, there),
      'squared_error': metrics.average(jnp.square(served - y[..., 0]), there),
      'sigma': metrics.average(sigma.min(-1), there),
      'heads_apart': metrics.average(jnp.std(mu, -1), there),
    }

  def own(key, width):
    return {'heads': mlp.init(key, (width, 2 * members))}

  return Method(
    loss,
    ('embedding', 'own'),
    measure=lambda out, batch: ratings.measured(batch, told(batch)[1]),
    own=own,
    serve=lambda out: robust.nominal(*gaussians(out)),
    gaussians=gaussians,
  )
