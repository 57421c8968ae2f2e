"""What is not to count is replaced by 0 before a method sees it."""

import jax.numpy as jnp

from jaxrl_llm.types import PER_TOKEN, Batch, Outputs


def clean(batch: Batch) -> Batch:
  """Invalid rows leave the mask; masked slots of per-token fields become 0."""
  batch = batch.replace(mask=batch.mask * batch.valid[..., None])
  if batch.reward is not None:
    batch = batch.replace(reward=jnp.where(batch.valid > 0, batch.reward, 0.0))
  if batch.aux is not None:
    batch = batch.replace(aux=clean(batch.aux))
  return blank(batch, batch, PER_TOKEN)


def blank(tree, batch: Batch, names):
  """0 x NaN is NaN, in the gradient too: masked slots are replaced, not multiplied."""
  inside = batch.mask > 0
  found = {n: x for n in names if (x := vars(tree)[n]) is not None}
  tree = tree.replace(**{n: jnp.where(inside, x, 0.0) for n, x in found.items()})
  if isinstance(tree, Outputs) and tree.aux is not None:
    tree = tree.replace(aux=blank(tree.aux, batch.aux, names))
  return tree
