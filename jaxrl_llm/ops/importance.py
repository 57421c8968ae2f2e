"""Weights for what the sampler's numbers and the trainer's differ by.

With w_t = pi_old / mu, pi_old as the trainer computes it and mu as the sampler
reported it (truncated importance sampling, TIS; Yao et al., 2025). Token weights are
biased and steady; those of a completion are unbiased, and grow or vanish with its
length: a gap of 0.012 nats a token is a factor of 3.3 over 100 tokens.

Masked ones (MIS, IcePop) are 0 outside [low, cap] in place of held there: what differs
too much is left out, and the other tokens count as before.
"""

import jax.numpy as jnp

from jaxrl_llm.ops import kl, sequences
from jaxrl_llm.types import BG, BGT

AGREEMENT = ('mismatch', 'max/mismatch', 'mismatch_k3')  # What `agreement` says.


def token(old_logp: BGT, behavior_logp: BGT, mask: BGT, *, cap: float) -> tuple:
  """Of each token min(w_t, cap) [B, G, T]; of completions as `sequence` [B, G]."""
  ratio = jnp.exp(kl.log_ratio(old_logp, behavior_logp))
  return jnp.minimum(ratio, cap), whole(old_logp, behavior_logp, mask, cap)


def sequence(old_logp: BGT, behavior_logp: BGT, mask: BGT, *, cap: float) -> tuple:
  """min(exp(sum_t log w_t), cap), for each token of the completion and for itself."""
  row = whole(old_logp, behavior_logp, mask, cap)
  return row[..., None] * jnp.ones_like(mask), row


def whole(old_logp: BGT, behavior_logp: BGT, mask: BGT, cap: float) -> BG:
  """min(exp(sum_t log w_t), cap), the cap taken in log space."""
  total = jnp.sum(mask * kl.log_ratio(old_logp, behavior_logp), -1)
  return jnp.exp(jnp.minimum(total, jnp.log(cap)))


def icepop(
  old_logp: BGT, behavior_logp: BGT, mask: BGT, *, low: float, cap: float
) -> tuple:
  """Of each token w_t, or 0 outside the band [B, G, T]; of completions as `mis`."""
  ratio = jnp.exp(kl.log_ratio(old_logp, behavior_logp))
  inside = (ratio >= low) & (ratio <= cap)
  return jnp.where(inside, ratio, 0.0), banded(old_logp, behavior_logp, mask, low, cap)


def mis(
  old_logp: BGT, behavior_logp: BGT, mask: BGT, *, low: float, cap: float
) -> tuple:
  """exp(sum_t log w_t), or 0 outside the band, for each token and the completion."""
  row = banded(old_logp, behavior_logp, mask, low, cap)
  return row[..., None] * jnp.ones_like(mask), row


def geometric(
  old_logp: BGT, behavior_logp: BGT, mask: BGT, *, low: float, cap: float
) -> tuple:
  """As `token`, and 0 for completions with exp(mean_t log w_t) outside the band."""
  weight, row = token(old_logp, behavior_logp, mask, cap=cap)
  mean = jnp.exp(sequences.seq_mean(kl.log_ratio(old_logp, behavior_logp), mask))
  inside = ((mean >= low) & (mean <= cap)).astype(row.dtype)
  return weight * inside[..., None], row * inside


def banded(old_logp: BGT, behavior_logp: BGT, mask: BGT, low: float, cap: float) -> BG:
  """exp(sum_t log w_t) where that lies in [low, cap], else 0."""
  total = jnp.sum(mask * kl.log_ratio(old_logp, behavior_logp), -1)
  inside = (total >= jnp.log(low)) & (total <= jnp.log(cap))
  return jnp.where(inside, jnp.exp(jnp.where(inside, total, 0.0)), 0.0)


def agreement(logp: BGT, behavior_logp: BGT, mask: BGT) -> dict:
  """How far the trainer's log-probs are from the sampler's, as metrics."""
  gap = mask * jnp.abs(logp - behavior_logp)
  count = mask.sum()
  return {
    'mismatch': (gap.sum(), count),
    'max/mismatch': gap.max(),
    'mismatch_k3': (jnp.sum(mask * kl.k3(behavior_logp, logp)), count),
  }
