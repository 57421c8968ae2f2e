"""The logits of a solution's steps as one number: [..., T] to [...].

`mask` is 1 at steps; p = sigmoid(logit) says that a step is right. Without a step the
number is that of an empty product, sum or minimum: 1, or 0 in logits.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import BG, BGT


def prod(logit: BGT, mask: BGT) -> BG:
  """The probability that all are right, were they independent."""
  return jnp.exp(sum_log(logit, mask))


def sum_log(logit: BGT, mask: BGT) -> BG:
  """log prod, which does not underflow."""
  return jnp.sum(jax.nn.log_sigmoid(logit) * mask, -1)


def sum_logit(logit: BGT, mask: BGT) -> BG:
  """The sum of the log odds."""
  return jnp.sum(logit * mask, -1)


def least(logit: BGT, mask: BGT) -> BG:
  """The worst step's."""
  return jnp.min(jnp.where(mask > 0, jax.nn.sigmoid(logit), 1.0), -1)


def mean(logit: BGT, mask: BGT) -> BG:
  """The average step's."""
  total = jnp.sum(jax.nn.sigmoid(logit) * mask, -1)
  count = jnp.sum(mask, -1)
  return jnp.where(count > 0, total / jnp.maximum(count, 1.0), 1.0)


def last(logit: BGT, mask: BGT) -> BG:
  """The last step's."""
  at = jnp.cumsum(mask[..., ::-1], -1)[..., ::-1] * mask == 1
  found = jnp.sum(jax.nn.sigmoid(logit) * at, -1)
  return jnp.where(jnp.sum(mask, -1) > 0, found, 1.0)
