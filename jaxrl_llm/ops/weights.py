"""How much each token counts: the aggregation of a loss, as a weighting.

A loss is always `sum(weight * per_token)`. Averaging over tokens, over completions or
over a fixed length is a choice of weights made from the mask alone, over the whole
minibatch and before the forward pass; sums then add up across microbatches and
devices exactly. An empty mask gives zero weights.
"""

import jax.numpy as jnp

from jaxrl_llm.types import BG, BGT, Array


def token_mean(mask: BGT) -> BGT:
  """Every token counts the same: 1 / (tokens in the minibatch)."""
  return mask / jnp.maximum(mask.sum(), 1.0)


def seq_mean(mask: BGT) -> BGT:
  """Every completion counts the same: (1 / completions) (1 / its length)."""
  length = mask.sum(-1, keepdims=True)
  return seq_weight(mask)[..., None] * mask / jnp.maximum(length, 1.0)


def seq_sum(mask: BGT) -> BGT:
  """Every token counts 1 / completions: the completion is the action."""
  return seq_weight(mask)[..., None] * mask


def constant_length(mask: BGT, *, length: int) -> BGT:
  """Every token counts 1 / (completions * length), whatever was generated."""
  return seq_sum(mask) / length


def seq_weight(mask: BGT) -> BG:
  """Uniform over the completions that have any token."""
  full = (mask.sum(-1) > 0).astype(mask.dtype)
  return full / jnp.maximum(full.sum(), 1.0)


def lists(mask: BGT) -> BGT:
  """Every prompt with two completions or more counts the same, whatever it has.

  Its completions share its weight, and their tokens theirs: a list's own weight is the
  sum over its tokens.
  """
  length = mask.sum(-1, keepdims=True)
  size = (length > 0).sum(1, keepdims=True).astype(mask.dtype)
  several = (size > 1).astype(mask.dtype)
  share = mask / jnp.maximum(length, 1.0) / jnp.maximum(size, 1.0)
  return several * share / jnp.maximum(several.sum(), 1.0)


def prompt_weight(mask: BGT) -> Array:
  """Uniform over the prompts whose completions are all there: [B, G, T] to [B]."""
  full = (mask.sum(-1) > 0).all(-1).astype(mask.dtype)
  return full / jnp.maximum(full.sum(), 1.0)
