"""Heads that score, on every family: what they say of a row is what one pass over it
says.
"""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import make_reference_logits as oracle

from jaxrl_llm import forward, initial, types
from jaxrl_llm.models import config_json, decoder, weights

FAMILIES = {c['model_type']: name for name, c in oracle.CONFIGS.items()}
PROMPT, ROOM = np.array([9, 7]), 12  # Lengths of two prompts, and the slots they have.
LENGTH = np.array([[11, 4], [13, 9]])  # Of two completions each; 20 tokens at most.
HEADS = {'critic': 1, 'reward': 3}
NEEDS = ('value', 'token_score', 'score', 'attributes', 'asked', 'embedding')


close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=0)


def rows(vocab):
  """Four rows of 20 tokens, [2, 2, 20]; a group's agree in their prompt."""
  ids = np.random.default_rng(7).integers(0, vocab, (2, 2, 20)).astype(np.int32)
  for group, length in zip(ids, PROMPT):
    group[1, :length] = group[0, :length]
  return ids


def batch(ids):
  """The same as a batch: prompts and completions apart, padded with 3."""
  prompts = np.full((2, ROOM), 3, np.int32)
  completions = np.full((2, 2, LENGTH.max()), 3, np.int32)
  for b, g in np.ndindex(2, 2):
    start, count = PROMPT[b], LENGTH[b, g]
    prompts[b, :start] = ids[b, g, :start]
    completions[b, g, :count] = ids[b, g, start : start + count]
  return types.make_batch(prompts, PROMPT, completions, LENGTH)


def random_tree(config):
  """Parameters large enough for attention to be far from even; norms and biases too."""
  rng = np.random.default_rng(0)
  draw = lambda shape: (rng.random(shape) - 0.5).astype(np.float32)
  tree = {path: draw(shape) for path, shape in weights.shapes(config).items()}
  return flax.traverse_util.unflatten_dict(tree)


@functools.partial(jax.jit, static_argnums=0)
def seen(config, params, batch, ids):
  """What a critic of one number and a reward model of three say, each by its own pass;
  and the hidden states of whole rows, in one pass without padding: [2, 2, 20, D].
  """
  models = {r: decoder.Decoder(config, scores=n) for r, n in HEADS.items()}
  place = jnp.broadcast_to(jnp.arange(20)[None, None], ids.shape)
  tree = {'params': params['critic']}
  whole = models['critic'].apply(tree, ids, place, decoder.causal(20))[0]
  return forward.make_forward(models)(params, {}, batch, NEEDS), whole


@pytest.mark.parametrize('family', FAMILIES)
def test_heads(family):
  config = config_json.decoder(oracle.CONFIGS[FAMILIES[family]], family)
  base, ids, rng = random_tree(config), rows(config.vocab), np.random.default_rng(0)
  draw = lambda count: 0.2 * rng.normal(size=(config.width, count)).astype(np.float32)
  kernels = {role: draw(count) for role, count in HEADS.items()}
  trees = {
    r: initial.role_tree(base, r, {}, jax.random.key(0)) | {'scores': kernels[r]}
    for r in HEADS
  }
  assert all('head' not in tree for tree in trees.values())
  got, states = jax.device_get(seen(config, trees, batch(ids), ids))
  value, score = (states @ kernels[role] for role in HEADS)
  for b, g in np.ndindex(2, 2):
    start, count = PROMPT[b], LENGTH[b, g]
    end = start + count
    close(got.value[b, g, :count], value[b, g, start - 1 : end - 1, 0])
    close(got.token_score[b, g, :count], score[b, g, start:end, 0])
    close(got.attributes[b, g], score[b, g, end - 1])
    close(got.score[b, g], score[b, g, end - 1, 0])
    close(got.asked[b, g], states[b, g, start - 1])
    close(got.embedding[b, g], states[b, g, end - 1])
