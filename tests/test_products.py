"""Products from rounded operands are those of the rounded numbers, summed wide."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_forward import CONFIG, example, full, params, reader
from test_rollout import DECODER as SAMPLED
from test_rollout import LENGTHS, B, G, T, prompts, scorer, to_batch
from test_rollout import params as sampled_params

from jaxrl_llm import forward
from jaxrl_llm.models import attention
from jaxrl_llm.models.config import Lora
from jaxrl_llm.models.decoder import (
  DTYPES,
  MANY,
  Decoder,
  as_operands,
  causal,
  unstack,
)
from jaxrl_llm.models.products import adapted, product
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import make_sampler

MIXED = Decoder(CONFIG, **DTYPES['mixed'])


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def coarse(x):
  """As bfloat16 has it, in float64."""
  return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_a_product_is_that_of_rounded_numbers():
  """1 + 2^-9 is 1 in bfloat16, 2^-9 is not lost to 1 in the sum."""
  x = jnp.array([[1.0 + 2**-9, 2**-9]])
  got = product(x, jnp.ones((2, 1)), jnp.bfloat16)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, [[1 + 2**-9]])
  np.testing.assert_array_equal(product(x, jnp.ones((2, 1))), [[1 + 2**-8]])


def test_its_gradient_is_of_rounded_numbers_too():
  x, y, slope = normal(2, 3, 5), normal(5, 7, seed=1), normal(2, 3, 7, seed=2)
  found, back = jax.vjp(lambda x, y: product(x, y, jnp.bfloat16), x, y)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(found, coarse(x) @ coarse(y))
  slope_x, slope_y = back(slope)
  close(slope_x, coarse(slope) @ coarse(y).T)
  rows = lambda x: coarse(x).reshape(-1, x.shape[-1])
  close(slope_y, rows(x).T @ rows(slope))


def test_an_adapted_product_is_the_sum_of_two():
  """So are its gradients, of numbers that bfloat16 has as they are."""
  whole = lambda *shape, seed: jnp.round(4 * normal(*shape, seed=seed)) / 4
  shapes = (6, 5), (6, 2), (5, 7), (2, 7)
  parts = [whole(*shape, seed=i) for i, shape in enumerate(shapes)]
  slope = whole(6, 7, seed=9)
  found, back = jax.vjp(lambda *of: adapted(*of, jnp.bfloat16), *parts)
  want, plain = jax.vjp(lambda x, low, w, b: x @ w + low @ b, *parts)
  np.testing.assert_array_equal(found, want)
  for got, due in zip(back(slope), plain(slope)):
    np.testing.assert_array_equal(got, due)


@pytest.mark.parametrize('tokens', [8, MANY + 32])
def test_adapters_in_mixed_are_near_those_of_float32(tokens):
  """Beside many tokens as one product, beside few as two."""
  lora = Lora(2, 4.0, 'q|gate|down')
  ids = jnp.arange(tokens)[None, None] % CONFIG.vocab
  config = dataclasses.replace(CONFIG, max_positions=tokens)
  exact = Decoder(config, lora=lora)
  how = (jnp.arange(tokens)[None, None], causal(tokens))
  tree = exact.init(jax.random.key(0), ids, *how)
  tree = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), tree)
  said = lambda d, tree: d.apply(tree, ids, *how)[0]
  slope = lambda d: jax.grad(lambda t: jnp.square(said(d, t)).sum())(tree)['params']
  mixed = Decoder(config, **DTYPES['mixed'], lora=lora)
  np.testing.assert_allclose(said(mixed, tree), said(exact, tree), atol=0.1)
  assert (said(mixed, tree) != said(exact, tree)).any()
  for name in ('q', 'gate', 'down'):
    for end in ('', '_lora_a', '_lora_b'):
      got, due = (slope(d)['layers'][name + end] for d in (mixed, exact))
      assert jnp.linalg.norm(got - due) < 0.05 * jnp.linalg.norm(due)


def test_kernels_keep_their_gradient_in_float32():
  """A network in bfloat16 sums it so and does not round it."""
  x, y = normal(64, 5).astype(jnp.bfloat16), normal(5, 7, seed=1)
  found = jax.grad(lambda y: product(x, y, jnp.bfloat16).astype(jnp.float32).sum())(y)
  assert found.dtype == jnp.float32
  assert (found != found.astype(jnp.bfloat16)).any()


@pytest.mark.parametrize('dtype', ['mixed', 'bfloat16'])
def test_log_probs_are_near_those_of_float32(dtype):
  decoder = Decoder(CONFIG, **DTYPES[dtype])
  here = lambda see: np.asarray(see(params(), full()).logp)
  exact = here(reader())
  apart = np.abs(here(reader(decoder)) - exact)
  assert 1e-4 < apart.max() < 8 * np.abs(exact).max() * 2**-8


def test_long_rows_attend_by_rounded_numbers():
  """Of 160 tokens, so in blocks; values of 1 + 2^-9 are read as 1."""
  t = attention.BLOCK + 32
  kv = attention.KV(jnp.zeros((1, 1, 1, t, 4)), jnp.full((1, 1, 1, t, 4), 1 + 2**-9))
  see = lambda **how: attention.attend(
    jnp.zeros((1, 1, t, 2, 4)), kv, causal(t), None, None, causal=True, **how
  )
  np.testing.assert_array_equal(see(operands=jnp.bfloat16), np.ones((1, 1, t, 2, 4)))
  np.testing.assert_allclose(see(), np.full((1, 1, t, 2, 4), 1 + 2**-9), rtol=1e-6)


def test_what_is_frozen_is_rounded_beforehand_to_the_same_numbers():
  lora = Lora(2, 4.0, 'q|down')
  decoder = Decoder(CONFIG, lora=lora, **DTYPES['mixed'])
  tokens = jnp.asarray(example().prompts)[:, None]
  at = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  mask = causal(tokens.shape[-1])
  tree = decoder.init(jax.random.key(0), tokens, at, mask)['params']
  run = jax.jit(lambda tree: decoder.apply({'params': tree}, tokens, at, mask)[0])
  rounded = as_operands(decoder, tree)
  kinds = {k: x.dtype for k, x in rounded['layers'].items()}
  assert kinds['gate'] == jnp.bfloat16 and kinds['attn_norm'] == jnp.float32
  assert rounded['embed'].dtype == jnp.float32
  np.testing.assert_array_equal(run(tree), run(rounded))
  assert as_operands(Decoder(CONFIG), tree) is tree


def test_a_frozen_reference_is_rounded_as_the_policy_is():
  """The same weights in both roles say the same, bit for bit."""
  see = forward.make_forward({'policy': MIXED, 'ref': MIXED})
  own = params()['policy']
  read = jax.jit(lambda p, f: see(p, f, example(), ('logp', 'ref_logp')))
  found = read({'policy': own}, {'ref': own})
  np.testing.assert_array_equal(found.logp, found.ref_logp)


def test_the_sampler_says_what_the_trainer_computes():
  decoder = SAMPLED.clone(**DTYPES['mixed'])
  asked = prompts(), LENGTHS, np.arange(B, dtype=np.int32)
  sample = make_sampler(decoder, group=G, max_length=T)
  weights, how = sampled_params(), draw.options(B, max_length=T)
  rollout = sample(weights, *asked, how, jax.random.key(0), 0)
  batch = to_batch(rollout)
  see = forward.make_forward({'policy': decoder})
  read = jax.jit(lambda p, b: see({'policy': p}, {}, b, ('logp',)).logp)
  gap = lambda logp: np.abs((logp - rollout.behavior_logp) * batch.mask).max()
  assert gap(read(weights, batch)) < gap(scorer()(weights, batch)) / 4
  kept = unstack(decoder, weights)['layer_0']
  assert kept['q'].dtype == jnp.bfloat16 and kept['attn_norm'].dtype == jnp.float32


def test_experts_are_not_rounded():
  config = dataclasses.replace(CONFIG, experts=4, experts_per_token=2)
  decoder = Decoder(config, **DTYPES['mixed'])
  one = jnp.zeros((1, 1, 1), jnp.int32)
  tree = decoder.init(jax.random.key(0), one, one, causal(1))['params']
  kinds = {x.dtype for x in jax.tree.leaves(as_operands(decoder, tree))}
  assert kinds == {jnp.dtype('float32')}
