"""Layout, padding, recomputation and chunks change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import build, forward, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.ops import logprobs
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import Method, State

B, G, P, T, V, D = 3, 2, 4, 5, 13, 16
CONFIG = DecoderConfig(
  vocab=V, width=D, layers=2, heads=4, kv_heads=2, mlp_width=24, head_dim=4
)
PLAIN = Decoder(CONFIG)


def random_params(scalar=False, seed=1):
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  decoder = Decoder(CONFIG, scores=int(scalar))
  tree = decoder.init(jax.random.key(seed), zero, zero, causal(1))['params']
  wide = lambda x: x if (x == 1).all() else 10 * x
  tree = jax.tree.map(wide, tree)
  if scalar:
    tree['scores'] = jax.random.normal(jax.random.key(seed), (D, 1))
  return tree


@functools.cache
def params():
  return {
    'policy': random_params(),
    'critic': random_params(True, 2),
    'reward': random_params(True, 3),
  }


def example():
  """Ragged prompts and completions, at different temperatures."""
  rng = np.random.default_rng(0)
  batch = types.make_batch(
    rng.integers(0, V, (B, P)).astype(np.int32),
    np.array([4, 1, 2], np.int32),
    rng.integers(0, V, (B, G, T)).astype(np.int32),
    rng.integers(1, T + 1, (B, G)).astype(np.int32),
  )
  warmth = rng.uniform(0.5, 2.0, (B, G)).astype(np.float32)
  return jax.tree.map(jnp.asarray, batch.replace(temperature=warmth))


NEEDS = ('logp', 'entropy', 'value', 'score')


@functools.cache
def reader(decoder=PLAIN):
  scalar = Decoder(CONFIG, scores=1)
  see = forward.make_forward({'policy': decoder, 'critic': scalar, 'reward': scalar})
  return jax.jit(lambda params, batch: see(params, {}, batch, NEEDS))


@functools.cache
def seen():
  return reader()(params(), example())


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


@functools.cache
def alone(scalar=False):
  """Hidden states of rows [N, 1, S] that share nothing, under a given mask."""
  decoder = Decoder(CONFIG, scores=int(scalar))
  return jax.jit(
    lambda tree, ids, positions, mask: decoder.apply(
      {'params': tree}, ids, positions, mask
    )[0][:, 0]
  )


def rows(offset=0):
  """Prompt and completion in one row each, `offset` pads before them.

  Returns (tokens [N, 1, S], positions, mask, place of the first completion token).
  """
  batch = jax.tree.map(np.asarray, example())
  n, width = B * G, offset + P + T
  ids = np.full((n, 1, width), 3, np.int32)
  start = offset + np.repeat(batch.prompt_length, G)
  for i, (b, g) in enumerate(np.ndindex(B, G)):
    ids[i, 0, offset : start[i]] = batch.prompts[b, : batch.prompt_length[b]]
    ids[i, 0, start[i] : start[i] + T] = batch.completions[b, g]
  positions = np.broadcast_to(np.maximum(np.arange(width) - offset, 0), ids.shape)
  mask = np.tril(np.ones((width, width), bool)) & (np.arange(width) >= offset)
  return ids, positions, np.broadcast_to(mask, (n, 1, width, width)), start


def token_by_token(hidden, start):
  """[N, S, D] to the states before and at each completion token, [N, T, D]."""
  place = start[:, None] + np.arange(T)
  row = np.arange(len(start))[:, None]
  return hidden[row, place - 1], hidden[row, place]


@pytest.mark.parametrize('pads', [0, 5, 100])
def test_each_row_alone_and_left_padded(pads):
  """AT-20: the shared-prefix layout is every row by itself, wherever it starts."""
  ids, positions, mask, start = rows(pads)
  batch, policy = example(), params()['policy']
  before, _ = token_by_token(alone()(policy, ids, positions, mask), start)
  logits = jnp.einsum('ntd,vd->ntv', before, head_kernel(policy))
  logits = logits / batch.temperature.reshape(-1)[:, None, None]
  full = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(full, batch.completions.reshape(-1, T)[..., None], -1)
  close(seen().logp, taken.reshape(B, G, T))
  close(seen().entropy, -(jnp.exp(full) * full).sum(-1).reshape(B, G, T))


def test_scalars_of_each_row_alone():
  """AT-48: value before each token; score at the last one."""
  ids, positions, mask, start = rows()
  tree = params()['critic']
  before, _ = token_by_token(alone(True)(tree, ids, positions, mask), start)
  close(seen().value, (before @ tree['scores'][:, 0]).reshape(B, G, T))
  tree = params()['reward']
  _, at = token_by_token(alone(True)(tree, ids, positions, mask), start)
  last = example().length.reshape(-1) - 1
  close(seen().score, (at[np.arange(B * G), last] @ tree['scores'][:, 0]).reshape(B, G))


def test_nothing_after_a_token_is_seen():
  """AT-48: other tokens past each row's end; a pad that is a token of the row."""
  batch, want = example(), seen()
  for filler in (0, 7, int(batch.completions[0, 0, 0])):
    slots = jnp.arange(P)[None] < batch.prompt_length[:, None]
    other = batch.replace(
      completions=jnp.where(batch.mask > 0, batch.completions, filler),
      prompts=jnp.where(slots, batch.prompts, filler),
    )
    got = reader()(params(), other)
    np.testing.assert_array_equal(got.score, want.score)
    for name in ('logp', 'entropy', 'value'):
      found, due = getattr(got, name) * batch.mask, getattr(want, name) * batch.mask
      np.testing.assert_array_equal(found, due)


def loss_gradient(decoder):
  def loss(tree):
    see = forward.make_forward({'policy': decoder})
    out = see({'policy': tree}, {}, example(), ('logp', 'entropy'))
    return jnp.sum(out.logp * example().mask) + jnp.sum(out.entropy)

  return jax.jit(jax.value_and_grad(loss))(params()['policy'])


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_recomputation_changes_nothing(remat):
  value, slope = loss_gradient(Decoder(CONFIG, remat=remat))
  want, due = plain_gradient()
  np.testing.assert_allclose(value, want, rtol=1e-6)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(due))
  jax.tree.map(lambda a, b: close(a, b, 1e-6 * largest), slope, due)


@functools.cache
def plain_gradient():
  return loss_gradient(PLAIN)


@pytest.mark.parametrize('chunk', [1, 7, 12, 29, 30, 256])
def test_chunks_change_nothing(chunk):
  """Value and gradient of 30 tokens; 7, 12 and 29 do not divide."""
  batch = example()
  hidden = jax.random.normal(jax.random.key(0), (B, G, T, D))
  kernel = head_kernel(params()['policy'])
  mix = jax.random.normal(jax.random.key(1), (2, B, G, T))

  def chunked(hidden, kernel):
    stats = logprobs.token_stats(
      hidden, kernel, batch.completions, batch.temperature, chunk=chunk
    )
    return sum(jnp.vdot(m, s) for m, s in zip(mix, stats)), stats

  def whole(hidden, kernel):
    logits = jnp.einsum('bgtd,vd->bgtv', hidden, kernel)
    full = jax.nn.log_softmax(logits / batch.temperature[..., None, None])
    logp = jnp.take_along_axis(full, batch.completions[..., None], -1)[..., 0]
    stats = logp, -jnp.sum(jnp.exp(full) * full, -1)
    return sum(jnp.vdot(m, s) for m, s in zip(mix, stats)), stats

  slope = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  (_, stats), grads = jax.jit(slope(chunked))(hidden, kernel)
  (_, want), due = jax.jit(slope(whole))(hidden, kernel)
  jax.tree.map(close, stats, want)
  jax.tree.map(lambda a, b: close(a, b, 5e-5), grads, due)


def test_bfloat16_gives_float32_log_probs():
  """Within 2^-8, a rounding of bfloat16, of logits that are a few units wide."""
  got = reader(Decoder(CONFIG, jnp.bfloat16))(params(), example())
  assert got.logp.dtype == got.entropy.dtype == jnp.float32
  spread = float(jnp.abs(seen().logp).max())
  close(got.logp, seen().logp, 8 * spread * 2**-8)
  total = jax.scipy.special.logsumexp(every_token(jnp.bfloat16), -1)
  close(total, jnp.zeros_like(total), 1e-5)  # So normalised in float32.


def every_token(dtype):
  """The log-prob of each of V tokens first after each prompt: [B, V]."""
  batch = example()
  one = types.make_batch(
    batch.prompts,
    batch.prompt_length,
    np.tile(np.arange(V, dtype=np.int32)[None, :, None], (B, 1, 1)),
    np.ones((B, V), np.int32),
  )
  see = forward.make_forward({'policy': Decoder(CONFIG, dtype)})
  read = jax.jit(lambda params: see(params, {}, one, ('logp',)).logp[..., 0])
  return read({'policy': params()['policy']})


def test_the_first_ratio_is_one():
  """AT-23: old log-probs of the whole batch, new ones of a microbatch with gradient."""

  def loss(out, batch):
    far = jnp.abs(jnp.exp(out.logp - batch.old_logp) - 1) * batch.mask
    return jnp.sum(batch.weight * out.logp), {'max/far': jnp.max(far)}

  probe, tx = Method(loss, ('logp', 'old_logp')), optax.sgd(0.0)
  see = forward.make_forward({'policy': Decoder(CONFIG, remat='full')})
  trained = {'policy': params()['policy']}
  zero = jnp.int32(0)
  state = State(zero, zero, zero, trained, tx.init(trained), {}, {}, jax.random.key(0))
  for plan, limit in ((dict(microbatches=3), 0.0), (dict(minibatches=3), 2e-6)):
    step = jax.jit(make_update_step(see, tx, probe, **plan))
    assert float(step(state, example())[1]['max/far']) <= limit


def test_an_unknown_need_is_an_input_error():
  with pytest.raises(types.InputError, match=r"'logits'.*'logp'"):
    forward.sensor('logits')
  with pytest.raises(types.InputError, match="'valeu'"):
    forward.roles(('logp', 'aux/valeu'))


def test_the_roles_a_method_touches():
  found = {n: forward.roles(build.method(n).needs) for n in ('sft', 'dpo', 'ppo')}
  assert found['sft'] == {'params': {'policy'}, 'frozen': set()}
  assert found['dpo'] == {'params': {'policy'}, 'frozen': {'ref'}}
  assert found['ppo'] == {'params': {'policy', 'critic'}, 'frozen': {'ref'}}
