"""ODIN (2024), https://arxiv.org/abs/2402.07319: a reward free of length.

  e = the state at a completion's last token;   u_Q, u_L = two heads, each of norm 1
  r_Q = u_Q e,   r_L = u_L e
  m = (r_Q + r_L)(chosen) - (r_Q + r_L)(rejected)
  loss = E_pair[ - log sigmoid(m) ] + orthogonal |u_Q u_L|
         + decorrelate (|rho(r_Q, length)| - rho(r_L, length))

rho is Pearson's correlation over the completions of a minibatch, chosen and rejected
together, and 0 where all are of one length. r_Q alone is served. Differs from
bradley_terry: what of the preferences goes with length has a head of its own, which is
left out. Both coefficients are 1, which is ours, as are heads that start at random and
a norm that is not learned. A minibatch of few pairs says little of rho.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import correlation, extras, metrics, sequences
from jaxrl_llm.types import Method

QUALITY, LENGTH = 0, 1  # Columns of the heads.


def odin(*, decorrelate: float = 1.0, orthogonal: float = 1.0) -> Method:
  """Trains the role reward, a trunk whose heads [D, 2] stand apart, and those."""

  def measure(out, batch):
    score, w = scores(out), batch.seq_weight[..., None]
    size = batch.mask.sum(-1)[..., None]
    size = correlation.standard(size, *correlation.moments(size, w))
    middle, std = correlation.moments(score, w)
    z = correlation.standard(score, middle, std)
    held = {'middle': middle, 'std': std, 'rho': correlation.weighted(size * z, w)}
    batch = batch.replace(extra=batch.extra | {'size': size})
    return extras.carried(batch, {k: x[0] for k, x in held.items()})

  def loss(out, batch):
    score, w, seq_w = scores(out), batch.prompt_weight, batch.seq_weight
    middle, std, rho = (batch.extra[k] for k in ('middle', 'std', 'rho'))
    z = correlation.standard(score, middle, std)
    each = correlation.terms(z, batch.extra['size'], rho)
    sides = jnp.sign(rho[..., QUALITY]) * each[..., QUALITY] - each[..., LENGTH]
    cosine = units(out)[:, QUALITY] @ units(out)[:, LENGTH]
    both, served = (sequences.margin(x) for x in (score.sum(-1), score[..., QUALITY]))
    nll = -jax.nn.log_sigmoid(both)
    total = jnp.sum(w * nll) + decorrelate * jnp.sum(seq_w * sides)
    told = lambda x: metrics.average(x + 0 * w, w)
    return total + orthogonal * jnp.sum(w) * jnp.abs(cosine), {
      'nll': metrics.average(nll, w),
      'margin': metrics.average(served, w),
      'accuracy': metrics.wins(served, w),
      'accuracy_both': metrics.wins(both, w),
      'length_rho/quality': told(rho[:, 0, QUALITY]),
      'length_rho/length': told(rho[:, 0, LENGTH]),
      'heads_cosine': told(cosine),
    }

  needs = ('embedding', 'own')
  own = lambda key, width: {'heads': jax.random.normal(key, (width, 2))}
  serve = lambda out: scores(out)[..., QUALITY]
  return Method(loss, needs, measure=measure, measure_needs=needs, own=own, serve=serve)


def units(out):
  """The two heads [D, 2], each of norm 1."""
  heads = out.own['heads']
  return heads / jnp.linalg.norm(heads, axis=0, keepdims=True)


def scores(out):
  """r_Q and r_L: [B, G, 2]."""
  return out.embedding @ units(out)
