"""A-LoL (2023), https://arxiv.org/abs/2305.14718, offline policy gradient.

  A = max(R - V(x), 0),  V the critic at the prompt's end
  sequence: loss = E_seq[ A s nll ],  s = exp(sum_t log(pi / ref)) within 1 +- clip
  token:    loss = E_seq[ A sum_t s_t (- log pi)_t ],  s_t of each token likewise
  free:     loss = E_seq[ A nll ]
  kl:       loss = E_seq[ A nll + [A > 0] beta sum_t log(pi / ref) ]

nll = - sum_t log pi, and s has no gradient. For stored completions with rewards:
what is no better than expected teaches nothing, and nothing is pushed down. The paper
fits V beforehand, on the frozen reference's states, and draws rows by their A; here V
learns along, loss + value_coef 1/2 E_seq[(V - R)^2], for critic_steps steps alone, and
rows come as they are. clip 0.9 is the official code's; value_coef and beta are ours.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import kl, metrics, sequences
from jaxrl_llm.types import InputError, Method

VARIANTS = ('sequence', 'token', 'free', 'kl')


def a_lol(
  *,
  variant: str = 'sequence',
  clip: float = 0.9,
  beta: float = 0.1,
  value_coef: float = 1.0,
  critic_steps: int = 0,
) -> Method:
  """`variant` as above; `beta` is of 'kl' alone."""
  gained = make_loss(variant, clip, beta)

  def prepare(state, batch):
    adv = jnp.maximum(batch.reward - batch.old_value[..., 0], 0.0)
    return state, batch.replace(advantage=adv * (state.step >= critic_steps))

  def loss(out, batch):
    value, found = gained(out, batch)
    w, first = batch.seq_weight, out.value[..., 0]
    error = 0.5 * jnp.square(first - batch.reward)
    found['kept'] = metrics.average(jnp.sign(batch.advantage), w)
    found['value_loss'] = metrics.average(error, w)
    return value + value_coef * jnp.sum(w * error), found

  ref = () if variant == 'free' else ('ref_logp',)
  return Method(loss, ('logp', 'value', *ref), prepare, ('old_value',), whole=True)


def make_loss(variant: str, clip: float, beta: float):
  """`loss(out, batch)`, of batch.advantage [B, G] in the place of A."""
  if variant not in VARIANTS:
    raise InputError(f'variant={variant!r}; there are {VARIANTS}.')
  bounded = lambda x: jax.lax.stop_gradient(jnp.clip(jnp.exp(x), 1 - clip, 1 + clip))

  def loss(out, batch):
    w, adv, mask = batch.seq_weight, batch.advantage, batch.mask
    nll, scale = -out.logp, 1.0
    gap = None if variant == 'free' else kl.log_ratio(out.logp, batch.ref_logp)
    if variant == 'token':
      nll *= bounded(gap)
    if variant == 'sequence':
      scale = bounded(jnp.clip(sequences.seq_sum(gap, mask), -kl.LIMIT, kl.LIMIT))
    each = adv * scale * sequences.seq_sum(nll, mask)
    if variant == 'kl':
      each += jnp.abs(jnp.sign(adv)) * beta * sequences.seq_sum(gap, mask)
    found = {'nll': metrics.average(-out.logp, mask)}
    if gap is not None:
      found['kl_ref_seq'] = metrics.average(sequences.seq_sum(gap, mask), w)
    return jnp.sum(w * each), found

  return loss
