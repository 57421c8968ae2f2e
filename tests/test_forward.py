"""Layout, padding, recomputation and chunks change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxrl_llm import build, forward, types
from jaxrl_llm.models import attention
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.ops import blocks, logprobs
from jaxrl_llm.step import make_update_step, sense, weigh
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


def full():
  """Rows without padding."""
  return example().replace(length=jnp.full((B, G), T), mask=jnp.ones((B, G, T)))


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


@pytest.mark.parametrize('pads', [0, 5])
def test_scalars_of_each_row_alone(pads):
  """AT-48: value before each token; score at the last one, wherever the row starts."""
  ids, positions, mask, start = rows(pads)
  tree = params()['critic']
  before, _ = token_by_token(alone(True)(tree, ids, positions, mask), start)
  close(seen().value, (before @ tree['scores'][:, 0]).reshape(B, G, T))
  tree = params()['reward']
  _, at = token_by_token(alone(True)(tree, ids, positions, mask), start)
  last = example().length.reshape(-1) - 1
  close(seen().score, (at[np.arange(B * G), last] @ tree['scores'][:, 0]).reshape(B, G))


def test_wider_arrays_change_nothing():
  """AT-48: rows end where their lengths say, however much room is behind them."""
  batch = example()
  wider = lambda x, n: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n)], constant_values=5)
  got = reader()(
    params(),
    batch.replace(
      prompts=wider(batch.prompts, 3),
      completions=wider(batch.completions, 4),
      mask=jnp.pad(batch.mask, [(0, 0), (0, 0), (0, 4)]),
    ),
  )
  close(got.score, seen().score)
  for name in ('logp', 'entropy', 'value'):
    close(getattr(got, name)[..., :T] * batch.mask, getattr(seen(), name) * batch.mask)


def test_nothing_after_a_token_is_seen():
  """AT-48: other tokens past each row's end; a pad that is each row's stop token."""
  batch, stop = example(), 7
  ends = jnp.arange(T)[None, None] == batch.length[..., None] - 1
  batch = batch.replace(completions=jnp.where(ends, stop, batch.completions))
  want = reader()(params(), batch)
  for filler in (0, stop, int(batch.completions[0, 0, 0])):
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


def test_the_loss_mask_is_not_the_attention_mask():
  """AT-45: what is not trained is seen all the same, and counts for the length."""
  batch, t = full(), 1
  told = batch.replace(mask=batch.mask.at[0, 0, : t + 1].set(0.0).at[0, 0, -1].set(0.0))
  want = reader()(params(), batch)
  got = reader()(params(), told)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  other = told.completions.at[0, 0, t].set((told.completions[0, 0, t] + 1) % V)
  got = reader()(params(), told.replace(completions=other))
  assert jnp.abs(got.logp - want.logp)[0, 0, t + 1 :].min() > 1e-4
  assert jnp.abs(got.score - want.score)[0, 0] > 1e-4


class Nudged:
  """The decoder with `nudge` [B, P + T, D] on the states that its head reads."""

  config = CONFIG

  def __init__(self, nudge):
    self.nudge = nudge

  def apply(self, variables, ids, positions, *rest):
    hidden, kv = PLAIN.apply(variables, ids, positions, *rest)
    return hidden + self.nudge[jnp.arange(B)[:, None, None], positions], kv


@pytest.mark.parametrize('t', range(T))
def test_one_trained_token_has_its_gradient_before_it(t):
  """AT-40: at the state before the token, which is the prompt's last for the first."""
  for b in range(B):
    batch = full().replace(mask=jnp.zeros((B, G, T)).at[b, 1, t].set(1.0))
    slope = np.abs(nudge_gradient()(batch)).max(-1)
    want = np.zeros((B, P + T))
    want[b, batch.prompt_length[b] + t - 1] = 1
    np.testing.assert_array_equal(slope > 0, want)


@functools.cache
def nudge_gradient():
  method = build.method('sft')

  def loss(nudge, batch):
    see = forward.make_forward({'policy': Nudged(nudge)})
    batch = weigh(batch, method)
    return method.loss(sense(see, params(), {}, batch, ('logp',)), batch)[0]

  return jax.jit(lambda batch: jax.grad(loss)(jnp.zeros((B, P + T, D)), batch))


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


def weighted_slope(stats):
  """Values of `stats(hidden, kernel)` and the gradient of their weighted sum."""
  mix = jax.random.normal(jax.random.key(1), (3, B, G, T))

  def total(hidden, kernel):
    found = stats(hidden, kernel)
    return sum(jnp.vdot(m, s) for m, s in zip(mix, found)), found

  slope = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  return slope


def in_pieces(chunk, block):
  """Log-prob, entropy and collision, capped at 30, `chunk` by `block` at a time."""
  ids, warmth = example().completions, example().temperature
  how = dict(cap=30.0, chunk=chunk, block=block)
  return weighted_slope(
    lambda hidden, kernel: (
      *logprobs.token_stats(hidden, kernel, ids, warmth, **how),
      logprobs.token_collision(hidden, kernel, warmth, **how),
    )
  )


def at_once(hidden, kernel):
  """The same by the plain formulas."""
  ids, warmth = example().completions, example().temperature
  logits = 30 * jnp.tanh(jnp.einsum('bgtd,vd->bgtv', hidden, kernel) / 30)
  full = jax.nn.log_softmax(logits / warmth[..., None, None])
  logp = jnp.take_along_axis(full, ids[..., None], -1)[..., 0]
  return logp, -jnp.sum(jnp.exp(full) * full, -1), jax.nn.logsumexp(2 * full, -1)


@functools.cache
def all_logits():
  return weighted_slope(at_once)


@pytest.mark.parametrize(
  ('chunk', 'block'), [(1, V), (7, 4), (12, 5), (29, 6), (256, 4096)]
)
def test_chunks_change_nothing(chunk, block):
  """Value and gradient of 30 tokens and 13 words; of the sizes 1, 256 and V divide."""
  hidden = jax.random.normal(jax.random.key(0), (B, G, T, D))
  kernel = head_kernel(params()['policy'])
  got, want = (f(hidden, kernel) for f in (in_pieces(chunk, block), all_logits()))
  jax.tree.map(close, got[0][1], want[0][1])
  jax.tree.map(lambda a, b: close(a, b, 5e-5), got[1], want[1])


def test_chunks_of_a_cut_distribution():
  """AT-32: value and gradient, as by a softmax over the words that are kept alone."""
  ids, warmth = example().completions, example().temperature[..., None, None]
  within = jax.random.uniform(jax.random.key(3), ids.shape, maxval=3.0)

  def pieces(hidden, kernel):
    how = dict(within=within, cap=30.0, chunk=7, block=4)
    return logprobs.token_stats(hidden, kernel, ids, warmth[..., 0], **how)

  def plain(hidden, kernel):
    logits = 30 * jnp.tanh(jnp.einsum('bgtd,vd->bgtv', hidden, kernel) / 30) / warmth
    mine = jax.nn.one_hot(ids, V) > 0
    keep = mine | (-jax.nn.log_softmax(logits) <= within[..., None])
    assert 1 < keep.sum(-1).mean() < V - 1
    full = jax.nn.log_softmax(jnp.where(keep, logits, -1e30))
    entropy = -jnp.sum(jnp.where(keep, jnp.exp(full) * full, 0), -1)
    return jnp.take_along_axis(full, ids[..., None], -1)[..., 0], entropy

  hidden = jax.random.normal(jax.random.key(0), (B, G, T, D))
  kernel = head_kernel(params()['policy'])
  mix = jax.random.normal(jax.random.key(1), (2, B, G, T))
  total = lambda stats, *x: sum(jnp.vdot(m, s) for m, s in zip(mix, stats(*x)))
  slope = lambda stats: jax.value_and_grad(functools.partial(total, stats), (0, 1))
  got, want = (slope(f)(hidden, kernel) for f in (pieces, plain))
  jax.tree.map(lambda a, b: close(a, b, 5e-5), got, want)


def test_a_chunk_without_a_live_token_is_not_computed():
  """There the hidden states may be anything, and nothing of it reaches the kernel."""
  hidden = jax.random.normal(jax.random.key(0), (1, 1, 12, D))
  kernel, ids = head_kernel(params()['policy']), jnp.arange(12)[None, None]
  live, warmth = (ids < 6) & (ids != 1), jnp.ones((1, 1))

  def total(hidden, kernel, live):
    found = logprobs.token_stats(hidden, kernel, ids, warmth, chunk=4, live=live)
    return sum(jnp.where(ids < 6, x, 0).sum() for x in found)

  slope = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  wild = hidden.at[:, :, 8:].set(jnp.nan)
  jax.tree.map(close, slope(wild, kernel, live), slope(hidden, kernel, None))
  assert not np.isfinite(slope(wild, kernel, None)[1][1]).all()


def test_chunks_are_exact_in_float64():
  with toy.float64():
    hidden = jax.random.normal(jax.random.key(0), (B, G, T, D), jnp.float64)
    kernel = jax.random.normal(jax.random.key(2), (V, D), jnp.float64)
    got, want = (f(hidden, kernel) for f in (in_pieces(7, 4), weighted_slope(at_once)))
    jax.tree.map(lambda a, b: close(a, b, 1e-10), got, want)


def test_blocks_are_even_where_they_can_be():
  assert blocks.number(49152, 4096) == 12
  assert (
    blocks.number(50257, 4096) == 13
  )  # 29 is the first to divide: a word of padding.
  assert blocks.number(50000, 4096) == 16
  assert blocks.number(13, 4096) == 1


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
  """AT-22, AT-23: old log-probs of the whole batch, new ones of a microbatch with
  gradient. There is no dropout.
  """

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


def test_attention_in_blocks_of_queries_is_attention(monkeypatch):
  """Values and gradients, with a prefix, a window and a cap, over a ragged last block;
  against a softmax over all slots, in float64.
  """
  b, g, t, p, h, k, d = 2, 2, 11, 3, 4, 2, 5
  draw = lambda i, *shape: np.random.default_rng(i).normal(size=shape)
  arrays = (
    draw(0, b, g, t, h, d),
    *(draw(i, b, k, g, t, d) for i in (1, 2)),
    *(draw(i, b, k, 1, p, d) for i in (3, 4)),
  )
  positions = jnp.broadcast_to(p + jnp.arange(t), (b, g, t))
  mask = causal(t) & attention.near(positions, positions, 6)
  prefix_mask = attention.near(positions, jnp.arange(p)[None, None], 6)
  monkeypatch.setattr(attention, 'BLOCK', 4)
  monkeypatch.setattr(attention, 'BLOCKS', 3)

  def ours(q, *kv):
    own, prefix = attention.KV(*kv[:2]), attention.KV(*kv[2:])
    return attention.attend(q, own, mask, prefix, prefix_mask, cap=2.0, causal=True)

  def plain(q, key, value, before, said):
    spread = lambda x: jnp.broadcast_to(x, (b, k, g, *x.shape[3:]))
    join = lambda x, y: jnp.repeat(jnp.concatenate([spread(x), y], 3), h // k, 1)
    scores = jnp.einsum('bgthd,bhgsd->bhgts', q, join(before, key))
    seen = jnp.concatenate([prefix_mask, mask], -1)[:, None]
    weight = jax.nn.softmax(jnp.where(seen, 2 * jnp.tanh(scores / 2), -1e30), -1)
    return jnp.einsum('bhgts,bhgsd->bgthd', weight, join(said, value))

  probe = jnp.asarray(draw(9, b, g, t, h, d))
  slope = lambda f: jax.grad(lambda *x: (probe * f(*x)).sum(), argnums=(0, 1, 2, 3, 4))
  with toy.float64():
    due = plain(*arrays), *slope(plain)(*arrays)
    np.testing.assert_allclose(ours(*arrays), due[0], atol=1e-6)
    for x, y in zip(slope(ours)(*arrays), due[1:]):
      np.testing.assert_allclose(x, y, atol=1e-5)
