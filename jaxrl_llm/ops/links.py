"""f'(pi / ref) of f-divergences, up to a constant, from rho = log(pi / ref).

Where E[r] - beta D_f(pi, ref) is largest, beta link(rho) is r - const.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array

LIMIT = 80.0  # Nats; an exponent past it counts as this much and has no gradient.


def reverse_kl(rho: Array) -> Array:
  """KL(pi || ref): rho."""
  return rho


def forward_kl(rho: Array) -> Array:
  """KL(ref || pi): - ref / pi."""
  return -jnp.exp(jnp.minimum(-rho, LIMIT))


def jensen_shannon(rho: Array) -> Array:
  """log(2 pi / (pi + ref))."""
  return jnp.log(2.0) + jax.nn.log_sigmoid(rho)


def alpha(rho: Array, *, alpha: float) -> Array:
  """(1 - (ref / pi)^alpha) / alpha, 0 < alpha < 1: from reverse to forward KL.

  The alpha of the paper; what others write as (u^(a - 1) - 1) / (a - 1) has a = 1 -
  alpha.
  """
  return -jnp.expm1(jnp.minimum(-alpha * rho, LIMIT)) / alpha
