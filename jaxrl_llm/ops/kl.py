"""Per-token estimates of KL(pi || other) from samples of pi, and what they are for.

With d = log pi - log other (Schulman's k1, k2, k3). As a term of the *loss*, on
policy, differentiating them gives in expectation:
  k1: zero.  k2: grad KL(pi || other).  k3: grad KL(other || pi), the other direction.
  ratio * k1, ratio * k3: grad KL(pi || other).
As a term of the *reward* only k1 gives grad KL(pi || other).
tests/test_identities.py enumerates all of it.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BGT, Batch, InputError

LIMIT = 20.0  # Nats; a log ratio past it counts as this much and has no gradient.


def log_ratio(logp: BGT, other: BGT) -> BGT:
  """logp - other, held within +-20 nats, so that its exponential is finite."""
  return jnp.clip(logp - other, -LIMIT, LIMIT)


def k1(logp: BGT, other: BGT) -> BGT:
  """d. Unbiased, may be negative."""
  return log_ratio(logp, other)


def k2(logp: BGT, other: BGT) -> BGT:
  """d^2 / 2. Biased in value, small for small d."""
  return 0.5 * jnp.square(log_ratio(logp, other))


def k3(logp: BGT, other: BGT) -> BGT:
  """exp(-d) - 1 + d. Unbiased, never negative."""
  d = log_ratio(logp, other)
  return jnp.expm1(-d) + d


def paid(batch: Batch) -> tuple[BGT, Batch]:
  """k1 of what was sampled, for the reward, and the batch that tells its sums."""
  found = batch.mask * k1(batch.old_logp, batch.ref_logp)
  return found, batch.replace(extra=batch.extra | {'kl': found.sum(-1)})


def check_in_loss(kl, weighted: bool) -> None:
  """Refuses k1 as a bare loss term: it would regularise nothing.

  k1 is known by its slope, which is 1 everywhere, whatever its name.
  """
  slopes = [float(jax.grad(kl)(jnp.float32(d), jnp.float32(0))) for d in (0.3, -1.1)]
  if slopes == [1.0, 1.0] and not weighted:
    raise InputError(
      "kl='k1' as a term of the loss has zero expected gradient on policy: it adds "
      "noise and no pull to the reference. Use kl='k2' or 'k3', or kl='k1' with "
      'kl_weighted=True (the ratio in front, gradient through it).'
    )
