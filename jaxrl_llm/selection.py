"""Which tokens carry the policy gradient: wrappers around any method whose advantages
are of tokens. A token that is left out has advantage 0 in this minibatch: no gradient
from it, while penalties and the critic see it as before. What is chosen depends on the
whole minibatch, so it is measured once, by one more forward pass.

Top entropy (2025, https://arxiv.org/abs/2506.01939): only the tokens with
the highest entropies.
Clip-Cov and KL-Cov (2025, https://arxiv.org/abs/2505.22617), against the
fall of the entropy: with cov_t = (logp_t - mean logp) (A_t - mean A), over all tokens,
some of those with a high covariance get no gradient, or a penalty |log(pi / pi_old)|.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.ops import metrics
from jaxrl_llm.types import BGT, Array, Batch, InputError, Method

ROUNDING = 1e-4  # Nats by which two passes of the same parameters may differ.


def with_top_entropy(method: Method, *, share: float) -> Method:
  """Only this share of the tokens, those of highest entropy, has an advantage."""
  check_share('top_entropy', share)

  def keep(out, batch):
    kept = top(out.entropy, batch.mask, count(share, batch.mask))
    return limited(batch, kept)

  return measured(method, keep, ('entropy',), 'top_entropy')


def with_clip_cov(
  method: Method, *, share: float, low: float = 1.0, high: float = 5.0
) -> Method:
  """A share of all tokens, at random among those of cov_t in (low, high), has none.

  The random numbers are of (root key, step, prompt, place). The official code leaves
  out tokens that the ratio's clip silences anyway; here they count.
  """
  check_share('clip_cov', share)
  if low > high:
    raise InputError(
      f'config.plan: clip_cov_low={low!r} is above clip_cov_high={high!r}, and no '
      'token lies between them. Give the lower one first.'
    )

  def prepare(state, batch):
    state, batch = method.prepare(state, batch)
    key = jax.random.fold_in(state.key, state.step)
    one = lambda i: jax.random.uniform(jax.random.fold_in(key, i), batch.mask.shape[1:])
    draw = jax.vmap(one)(batch.prompt_id)
    return state, batch.replace(extra=batch.extra | {'draw': draw})

  def keep(out, batch):
    cov = covariance(out.logp, batch)
    among = batch.mask * (cov > low) * (cov < high)
    dropped = top(batch.extra['draw'], among, count(share, batch.mask))
    return limited(batch, batch.mask - dropped)

  return measured(method._replace(prepare=prepare), keep, ('logp',), 'clip_cov')


def with_kl_cov(method: Method, *, share: float, coef: float) -> Method:
  """loss + coef sum(weight * |log(pi / pi_old)|) over this share, of highest cov_t.

  On one strictly on-policy update pi is pi_old, and nothing happens: gaps of rounding,
  whose signs mean nothing, have no slope here.
  """
  check_share('kl_cov', share)

  def mark(out, batch):
    cov = covariance(out.logp, batch)
    marked = top(cov, batch.mask, count(share, batch.mask))
    return batch.replace(extra=batch.extra | {'kl_cov': marked})

  def loss(out, batch):
    plain, found = method.loss(out, batch)
    w = batch.weight * batch.extra['kl_cov']
    gap = jnp.abs(out.logp - batch.old_logp)
    gap = jnp.where(gap > ROUNDING, gap, 0.0)
    return plain + coef * jnp.sum(w * gap), found | {'kl_cov': metrics.average(gap, w)}

  needs = (*method.needs, 'old_logp')
  changed = method._replace(loss=loss, needs=needs)
  return measured(changed, mark, ('logp',), 'kl_cov')


def measured(method: Method, more, needs: tuple[str, ...], name: str) -> Method:
  """The method with `more(out, batch)` after what it measures itself."""
  if 'logp' not in method.needs:
    raise InputError(f'config.plan.{name}: this method trains no policy.')

  def measure(out, batch):
    batch = batch if method.measure is None else method.measure(out, batch)
    if batch.advantage is None or batch.advantage.ndim < 3:
      raise InputError(
        f'config.plan.{name} chooses among the advantages of tokens, and this method '
        'has none. Leave it out, or take a method such as grpo.'
      )
    return more(out, batch)

  needs = (*method.measure_needs, *needs)
  return method._replace(measure=measure, measure_needs=needs)


def limited(batch: Batch, kept: BGT) -> Batch:
  """The batch with no advantage but of the tokens `kept`."""
  return batch.replace(advantage=batch.advantage * kept)


def covariance(logp: BGT, batch: Batch) -> BGT:
  """cov_t of each token, with the means over all tokens of the minibatch."""
  w = batch.mask / jnp.maximum(batch.mask.sum(), 1.0)
  centred = lambda x: x - jnp.sum(w * x)
  return centred(logp) * centred(batch.advantage * batch.mask)


def top(score: BGT, among: BGT, size: Array) -> BGT:
  """1.0 for the `size` highest scores where `among` is 1, and for ties of the least."""
  found = jnp.where(among > 0, score, -jnp.inf)
  least = jnp.sort(found, axis=None)[::-1][size - 1]
  return among * (found >= least)


def count(share: float, mask: BGT) -> Array:
  """How many tokens a share is, at least one; a share of 0.2 of 10 is 2."""
  return jnp.maximum(jnp.floor(share * mask.sum() + 1e-3), 1.0).astype(jnp.int32)


def check_share(name: str, share: float) -> None:
  if not 0 < share <= 1:
    raise InputError(f'config.plan.{name}={share!r}; give a share, above 0, at most 1.')


def selected(method: Method, plan) -> Method:
  """The method with what config.plan says of single tokens."""
  if share := plan.get('clip_cov', 0.0):
    low, high = plan.get('clip_cov_low', 1.0), plan.get('clip_cov_high', 5.0)
    method = with_clip_cov(method, share=share, low=low, high=high)
  if share := plan.get('kl_cov', 0.0):
    coef = plan.get('kl_cov_coef', 0.1)
    method = with_kl_cov(method, share=share, coef=coef)
  if (share := plan.get('top_entropy', 1.0)) != 1:
    method = with_top_entropy(method, share=share)
  return method
