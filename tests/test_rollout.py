"""The sampler says what it drew, draws what the policy says, and stops where it must.

Every check is a second computation: the trainer's forward, a plain loop without a
cache, or the same draws cut by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import forward, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.rollout.sampler import make_sampler

B, G, P, T, V = 4, 8, 5, 6, 7
NEVER = 99  # No token has this id.
CONFIG = DecoderConfig(
  vocab=V, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24, head_dim=4
)
DECODER = Decoder(CONFIG)
LENGTHS = np.array([5, 1, 3, 2], np.int32)


@functools.cache
def params():
  """Random weights, wide enough that no two tokens are equally likely."""
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  tree = DECODER.init(jax.random.key(1), zero, zero, causal(1))['params']
  return jax.tree.map(lambda x: x if (x == 1).all() else 15 * x, tree)


def prompts(pad=0, width=P):
  """[B, width], right-padded with `pad`."""
  ids = np.random.default_rng(0).integers(0, V, (B, P)).astype(np.int32)
  wide = np.full((B, width), pad, np.int32)
  wide[:, :P] = np.where(np.arange(P) < LENGTHS[:, None], ids, pad)
  return wide


@functools.cache
def sampler(stop_ids, group=G, max_length=T):
  return make_sampler(DECODER, group=group, max_length=max_length, stop_ids=stop_ids)


def sample(stop_ids=(NEVER,), ids=None, temperature=1.0, rows=slice(None), seed=0):
  """A rollout of the four prompts, or of some of them in another order."""
  ids = prompts() if ids is None else ids
  warmth = np.full(B, temperature, np.float32)
  which = np.arange(B, dtype=np.int32)
  args = (x[rows] for x in (ids, LENGTHS, which, warmth))
  return sampler(stop_ids)(params(), *args, jax.random.key(seed), 3)


@functools.cache
def free():
  """Sampled without a stop token."""
  return jax.device_get(sample())


def to_batch(rollout, ids=None):
  ids = prompts() if ids is None else ids
  batch = types.make_batch(ids, LENGTHS, rollout.tokens, rollout.length)
  return batch.replace(temperature=rollout.temperature)


@functools.cache
def scorer():
  see = forward.make_forward({'policy': DECODER})
  return jax.jit(lambda p, batch: see({'policy': p}, {}, batch, ('logp',)).logp)


def close(got, want, atol):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_its_log_probs_are_the_trainers(temperature):
  """AT-23, AT-31: at the temperature of the draw, over ragged prompts and rows."""
  rollout = sample(temperature=temperature, stop_ids=(0,))
  batch = to_batch(rollout)
  close(scorer()(params(), batch) * batch.mask, rollout.behavior_logp, 1e-5)
  assert int(rollout.version) == 3
  np.testing.assert_array_equal(rollout.prompt_id, np.arange(B))


def test_the_stop_token_cuts_the_same_draws():
  """Kept where it is drawn first, at every place: 0, the middle, the end, never."""
  tokens, logp = free().tokens, free().behavior_logp
  stop = int(tokens[0, 0, 2])
  hit = tokens == stop
  first = np.where(hit.any(-1), hit.argmax(-1), T)
  assert set(first.ravel()) >= {0, 1, 2, 3, T - 1, T}
  got = sample(stop_ids=(stop,))
  np.testing.assert_array_equal(got.length, np.minimum(first + 1, T))
  np.testing.assert_array_equal(got.stop_reason, first < T)
  inside = np.arange(T) <= first[..., None]
  np.testing.assert_array_equal(got.tokens, np.where(inside, tokens, 0))
  close(got.behavior_logp, np.where(inside, logp, 0.0), 1e-6)


def test_every_token_stops():
  """EOS at the first place: one token each, and an early exit keeps the rest 0."""
  got = sample(stop_ids=tuple(range(V)))
  np.testing.assert_array_equal(got.length, 1)
  np.testing.assert_array_equal(got.stop_reason, 1)
  np.testing.assert_array_equal(got.tokens[..., 0], free().tokens[..., 0])
  np.testing.assert_array_equal(got.tokens[..., 1:], 0)


def test_without_a_stop_token_rows_run_out_of_room():
  np.testing.assert_array_equal(free().length, T)
  np.testing.assert_array_equal(free().stop_reason, 0)
  np.testing.assert_array_equal(free().kept_mass, 1.0)


def test_the_pad_may_be_the_stop_token():
  """AT-21: no mask comes from token ids."""
  stop = int(free().tokens[0, 0, 2])
  want = sample(stop_ids=(stop,), ids=prompts(pad=(stop + 1) % V))
  got = sample(stop_ids=(stop,), ids=prompts(pad=stop))
  for name in ('tokens', 'length', 'behavior_logp', 'stop_reason'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  scores = [scorer()(params(), to_batch(got, prompts(pad=p))) for p in (stop, 0)]
  np.testing.assert_array_equal(*scores)


def test_padding_does_not_leak():
  """The same prompts in a wider array, whose sums may round otherwise."""
  got = sample(ids=prompts(pad=3, width=P + 8))
  np.testing.assert_array_equal(got.tokens, free().tokens)
  close(got.behavior_logp, free().behavior_logp, 1e-5)


def test_a_draw_goes_with_its_prompt():
  """Not with the prompt's place in the batch."""
  rows = np.array([2, 0, 3, 1])
  got = sample(rows=rows)
  np.testing.assert_array_equal(got.tokens, free().tokens[rows])
  close(got.behavior_logp, free().behavior_logp[rows], 1e-6)


def test_the_same_key_is_the_same_rollout():
  np.testing.assert_array_equal(sample().tokens, free().tokens)


def test_greedy_is_the_likeliest_token_step_by_step():
  """And the cache is no cache: each step runs the whole sequence alone, again."""
  got = jax.device_get(sample(temperature=0.0))
  np.testing.assert_array_equal(got.tokens, got.tokens[:, :1].repeat(G, 1))
  width = P + T

  @jax.jit
  def next_logits(ids, last):
    positions = jnp.zeros_like(ids) + jnp.arange(width)[None, None]
    hidden, _ = DECODER.apply({'params': params()}, ids, positions, causal(width))
    hidden = jnp.take_along_axis(hidden, last[:, None, None, None], 2)[:, 0, 0]
    return hidden @ head_kernel(params()).T

  ids = np.zeros((B, 1, width), np.int32)
  ids[:, 0, :P] = prompts()
  for t in range(T):
    logits = next_logits(ids, LENGTHS - 1 + t)
    token = np.asarray(logits.argmax(-1))
    np.testing.assert_array_equal(got.tokens[:, 0, t], token)
    want = jax.nn.log_softmax(logits)[np.arange(B), token]
    close(got.behavior_logp[:, 0, t], want, 1e-5)  # Those of temperature 1.
    ids[np.arange(B), 0, LENGTHS + t] = token


def test_rows_are_independent_draws_of_the_policy():
  """4,000 rows: both tokens' joint frequency, within 4.5 standard errors a cell."""
  n = 4000
  first = slice(0, 1)
  args = (
    prompts()[first],
    LENGTHS[first],
    np.zeros(1, np.int32),
    np.ones(1, np.float32),
  )
  got = sampler((NEVER,), n, 2)(params(), *args, jax.random.key(0), 0)
  pairs = np.stack(np.meshgrid(range(V), range(V), indexing='ij'), -1).reshape(1, -1, 2)
  every = types.make_batch(*args[:2], pairs, np.full((1, V * V), 2))
  chance = np.exp(np.asarray(scorer()(params(), every))[0].sum(-1, dtype=np.float64))
  np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-5)
  counts = np.bincount(np.asarray(got.tokens)[0] @ np.array([V, 1]), minlength=V * V)
  error = np.sqrt(n * chance * (1 - chance))
  assert (np.abs(counts - n * chance) <= 4.5 * error + 1).all()


def test_a_prompt_per_row_is_a_group_of_one():
  """`row_prompt`: each completion after its own prompt."""
  batch = to_batch(free())
  owner = np.random.default_rng(1).integers(0, B, (B, G))
  rows = batch.replace(
    row_prompt=prompts(pad=2)[owner], row_prompt_length=LENGTHS[owner]
  )
  got = scorer()(params(), rows)
  for b in range(B):
    under = batch.replace(prompts=prompts()[[b] * B], prompt_length=LENGTHS[[b] * B])
    want = scorer()(params(), under)
    here = owner == b
    close(got[here], want[here], 1e-5)
