"""GRPO (Shao et al., 2024), https://arxiv.org/abs/2402.03300, outcome supervision.

  r_t = pi(y_t) / pi_old(y_t),  A = (R - group mean) / (group std + eps)
  loss = - E_seq E_token[ min(r A, clip(r, 1 - low, 1 + high) A) - beta KL(pi || ref) ]

Differs from ppo: no critic, the group is the baseline; KL in the loss, by k3, whose
gradient is that of KL(ref || pi) (ops/kl.py). beta 0.04 is the paper's; it does not
state the clip, 0.2 is the libraries'. The standard deviation is the population's and
eps 1e-6 (`advantage='group_norm(ddof=1)'` for the sample's).
"""

import jax.numpy as jnp

from jaxrl_llm.ops import advantages, metrics, surrogates, weights
from jaxrl_llm.ops import kl as kls
from jaxrl_llm.types import Method


def grpo(
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  beta: float = 0.04,
  advantage=advantages.group_norm,
  aggregate=weights.seq_mean,
  kl=kls.k3,
  kl_weighted: bool = False,
  dual_clip: float = 0.0,
) -> Method:
  """`kl_weighted` puts the ratio before the KL term, for the gradient of KL(pi || ref).

  With `beta` 0 the reference is neither needed nor run. `dual_clip`, such as 3, bounds
  the ratio where A < 0; 0 is none, as in the paper.
  """
  kls.check_in_loss(kl, kl_weighted)
  band = surrogates.band(clip_low, clip_high, dual_clip)

  def prepare(state, batch):
    adv = advantage(batch.reward, batch.valid)
    return state, batch.replace(advantage=adv[..., None])

  def loss(out, batch):
    w, adv = batch.weight, batch.advantage
    ratio = surrogates.ratio(out.logp, batch.old_logp)
    gain = jnp.sum(w * surrogates.clipped(ratio, adv, **band))
    hit = surrogates.clip_fraction(ratio, adv, **band)
    found = metrics.kl_paid(batch) | {
      'gain': (gain, jnp.sum(w)),
      **metrics.ratios(ratio, hit, w),
    }
    if not beta:
      return -gain, found
    penalty = kl(out.logp, batch.ref_logp) * (ratio if kl_weighted else 1.0)
    found['kl_ref'] = metrics.average(kls.k3(out.logp, batch.ref_logp), w)
    return beta * jnp.sum(w * penalty) - gain, found

  needs = ('logp', 'old_logp') + (('ref_logp',) if beta else ())
  return Method(loss, needs, prepare, aggregate=aggregate)
