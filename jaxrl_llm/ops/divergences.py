"""How far two whole distributions are apart, in nats."""

import jax.numpy as jnp

from jaxrl_llm.ops import extras
from jaxrl_llm.types import Array, Batch


def kl(logp: Array, logq: Array) -> Array:
  """KL(p || q) of log-probabilities [N, V]: [N]."""
  return jnp.sum(jnp.exp(logp) * (logp - logq), -1)


def jsd(logp: Array, logq: Array, beta: Array) -> Array:
  """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p: [N].

  At beta 0 it is KL(q || p), and at 1 KL(p || q): the limits of this over beta and over
  1 - beta. Agarwal et al., 2023, https://arxiv.org/abs/2306.13649.
  """
  inside = (beta > 0) & (beta < 1)
  b = jnp.where(inside, beta, 0.5)
  logm = jnp.logaddexp(logp + jnp.log1p(-b), logq + jnp.log(b))
  between = b * kl(logq, logm) + (1 - b) * kl(logp, logm)
  return jnp.where(inside, between, jnp.where(beta > 0, kl(logp, logq), kl(logq, logp)))


def asked(batch: Batch, beta: float) -> Batch:
  """The batch that asks the sensors of divergences for jsd at `beta`."""
  return extras.carried(batch, {'jsd_beta': jnp.float32(beta)})
