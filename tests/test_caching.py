"""Keys and values kept in fewer bytes: how few, how far off, and who is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import forward, types
from jaxrl_llm.models import caching
from jaxrl_llm.models.attention import KV
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import Asked, make_sampler, programs

B, G, P, T, V, D = 3, 4, 5, 6, 11, 32
# Four heads to two of keys, and a window shorter than the prompts.
CONFIG = DecoderConfig(
  vocab=V,
  width=24,
  layers=2,
  heads=4,
  kv_heads=2,
  mlp_width=24,
  head_dim=D,
  windows=(3, 0),
)
DECODER = Decoder(CONFIG)
LENGTHS = np.array([5, 1, 3], np.int32)


@functools.cache
def params():
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  tree = DECODER.init(jax.random.key(1), zero, zero, causal(1))['params']
  return jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, tree)


def asked():
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, V, (B, P)).astype(np.int32)
  how = draw.options(B, max_length=T, stop_ids=(V,))
  return prompts, LENGTHS, np.arange(B, dtype=np.int32), how


@functools.cache
def sampled(kind):
  """Two rollouts of one key, and the trainer's log-probs of the first."""
  draws = make_sampler(
    DECODER, group=G, max_length=T, slots=2, cache=caching.DTYPES[kind]
  )
  run = lambda: draws(params(), *asked(), jax.random.key(0), 0)
  one, other = run(), run()
  batch = types.make_batch(*asked()[:2], one.tokens, one.length)
  see = forward.make_forward({'policy': DECODER})
  said = jax.jit(lambda p: see({'policy': p}, {}, batch, ('logp',)).logp)(params())
  return one, other, np.asarray(said)


def test_int8_by_hand():
  """max |x| = 127 is a scale of 1; a row of zeros stays one."""
  x = jnp.array([[127.0, -63.4, 0.4, 3.0], [0.0, 0.0, 0.0, 0.0]])
  found = caching.kept(x, jnp.int8)
  np.testing.assert_array_equal(found.whole, [[127, -63, 0, 3], [0, 0, 0, 0]])
  np.testing.assert_array_equal(found.scale, [[1], [0]])
  back = caching.read(KV(found, found), jnp.float32).key
  np.testing.assert_array_equal(back, [[127, -63, 0, 3], [0, 0, 0, 0]])


def test_no_number_is_off_by_more_than_half_a_scale():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, D))
  found = caching.kept(x, jnp.int8)
  off = jnp.abs(caching.read(KV(found, found), x.dtype).value - x)
  assert (off <= 0.5001 * found.scale).all()
  assert off.max() > 0.4 * found.scale.min()


@pytest.mark.parametrize(
  ('kind', 'share'), [('', 1), ('bfloat16', 1 / 2), ('int8', (D + 4) / (4 * D))]
)
def test_bytes(kind, share):
  """Of prompts and completions; with heads of 64 int8 takes 3.76 times less."""
  enter, room, _ = programs(DECODER, group=G, max_length=T, cache=caching.DTYPES[kind])
  rows = jax.eval_shape(enter, params(), Asked(*asked()), jax.random.key(0))
  cache = jax.eval_shape(lambda rows: room(rows, T), rows)
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  numbers = 2 * CONFIG.layers * B * CONFIG.kv_heads * D
  assert size(rows.prefix) == 4 * numbers * P * share
  assert size(cache) == 4 * numbers * G * T * share


@pytest.mark.parametrize(
  ('kind', 'least', 'most'),
  [('', 0, 1e-5), ('bfloat16', 1e-4, 0.05), ('int8', 1e-4, 0.1)],
)
def test_log_probs_are_near_the_trainers(kind, least, most):
  """With windows, grouped heads and slots that are refilled."""
  one, _, said = sampled(kind)
  assert one.length.min() == T
  assert least <= np.abs(said - one.behavior_logp).max() < most


def test_the_same_key_is_the_same_rollout():
  one, other, _ = sampled('int8')
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_array_equal(one.behavior_logp, other.behavior_logp)
