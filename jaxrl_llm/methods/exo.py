"""EXO (Ji et al., 2024), https://arxiv.org/abs/2402.00856.

  loss = E_group[ sum q log(q / p) ]

q as in infonca; p likewise, or of a pair (1 - flipped, flipped). Differs from infonca:
KL(q || p) in place of KL(p || q), whose optimum is the same where the policy can have
it; else it picks one mode. The slope vanishes where the policy is confidently wrong.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.methods.infonca import listed, scored
from jaxrl_llm.ops import divergences, sequences
from jaxrl_llm.types import Method


def exo(
  *, beta: float = 0.1, flipped: float = 1e-3, temperature: float = 0.0
) -> Method:
  """`temperature` divides the rewards; 0 takes pairs, and `flipped` of them wrong."""

  def loss(reward, goal):
    return divergences.kl(jax.nn.log_softmax(reward), goal)

  def pair(reward):
    sequences.margin(reward)  # Refuses other groups than pairs.
    return jnp.broadcast_to(jnp.log(jnp.array([1 - flipped, flipped])), reward.shape)

  return listed(loss, beta, scored(temperature) if temperature else pair)
