"""Rewards of several Gaussian heads, mu and sigma [..., K], as one: [...].

Reward-robust RLHF (2024), https://arxiv.org/abs/2409.15360. Its policies maximise

  J = alpha E[r_nominal] + (1 - alpha) min_k E[mu_k] - beta KL

The least is of a mean over completions, which is more than the mean of each one's least
(ops/ensembles.worst): one head for all, and at that head the slope of J.
"""

import jax.numpy as jnp

from jaxrl_llm.types import Array, InputError


def nominal(mu: Array, sigma: Array) -> Array:
  """mu of the head that is surest."""
  best = sigma.argmin(-1, keepdims=True)
  return jnp.take_along_axis(mu, best, -1)[..., 0]


def robust(
  mu: Array, sigma: Array, *, alpha: float | None = None, worst: float | None = None
) -> Array:
  """Numbers of completions [N, K] whose mean is J without its KL: [N].

  Sources print the formula above, in which alpha 1 is the nominal reward alone, and yet
  call alpha 0 standard RLHF. Here alpha is the formula's; `worst` is the other name.

  Args:
    alpha: the share of the nominal reward. 0.2 and 0.4 are said to be best, in
      whichever direction.
    worst: 1 - alpha, the share of the worst head. Give one of both.
  """
  given = alpha if worst is None else 1 - worst
  if (alpha is None) == (worst is None) or not 0 <= given <= 1:
    raise InputError(
      f'robust: alpha={alpha}, worst={worst}; give one of them, from 0 to 1: the share '
      'of the nominal reward, or of the worst head.'
    )
  least = mu[:, mu.sum(0).argmin()]
  return given * nominal(mu, sigma) + (1 - given) * least
