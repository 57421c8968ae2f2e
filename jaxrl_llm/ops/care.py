"""Whether an answer follows from its reasoning: a reference's likelihood of it."""

import jax.numpy as jnp

from jaxrl_llm.ops import sequences
from jaxrl_llm.types import BG, BGT, InputError

ROUNDING = 1e-6  # A mean of equal numbers may exceed them by as much.


def likelihood(logp: BGT, answer: BGT, *, mean: str = 'arithmetic') -> BG:
  """Mean probability of the tokens in the mask `answer`; 0 where there are none.

  'arithmetic': mean_i p_i.  'geometric': exp(mean_i log p_i).
  """
  if mean not in ('arithmetic', 'geometric'):
    raise InputError(f"mean={mean!r}; give 'arithmetic' or 'geometric'.")
  if mean == 'arithmetic':
    return sequences.seq_mean(jnp.exp(logp), answer)
  found = jnp.exp(sequences.seq_mean(logp, answer))
  return jnp.where(answer.sum(-1) > 0, found, 0.0)


def gate(
  accuracy: BG, likely: BG, valid: BG, *, floor: float, cap: float, margin: float
) -> BG:
  """1 where a completion is among the best of its group and its answer follows.

  H = { g : accuracy_g >= max(mean accuracy, floor) },  q_g = min(likely_g, cap)
  gate_g = [ g in H and q_g >= mean of q over H - margin ]
  """
  average = lambda x, m: (
    (x * m).sum(1, keepdims=True) / jnp.maximum(m.sum(1, keepdims=True), 1.0)
  )
  line = jnp.maximum(average(accuracy, valid), floor) - ROUNDING
  high = valid * (accuracy >= line)
  capped = jnp.minimum(likely, cap)
  return high * jnp.heaviside(capped - average(capped, high) + margin + ROUNDING, 1.0)
