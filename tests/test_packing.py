"""AT-44: rows packed, or without their padding, say what padded rows say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from jaxrl_llm import build, feeds, forward, packing, pieces, sharding, types
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import InputError, State

B, G, P, T, V, D = 4, 2, 5, 6, 13, 16
WIDTH = 24
CONFIG = DecoderConfig(
  vocab=V, width=D, layers=2, heads=4, kv_heads=2, mlp_width=24, head_dim=4
)
WINDOWED = dataclasses.replace(CONFIG, windows=(3, 0))
ONE = jnp.zeros((1, 1, 1), jnp.int32)
TINY = (ONE, ONE, causal(1))
ROWS = ('score', 'attributes', 'asked', 'embedding')
NEEDS = ('logp', 'entropy', 'value', 'token_score', *ROWS)


def tree(scores, seed):
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  made = Decoder(CONFIG, scores=scores).init(
    jax.random.key(seed), zero, zero, causal(1)
  )['params']
  made = jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, made)
  if scores:
    made['scores'] = jax.random.normal(jax.random.key(seed), (D, scores))
  return made


@functools.cache
def params():
  return {'policy': tree(0, 1), 'critic': tree(1, 2), 'reward': tree(3, 3)}


def example(own=False):
  """Ragged; one token is not the policy's; `own`: every row has its own prompt."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, V, shape).astype(np.int32)
  batch = types.make_batch(
    draw(B, P),
    np.array([5, 1, 2, 3], np.int32),
    draw(B, G, T),
    rng.integers(1, T + 1, (B, G)).astype(np.int32),
  )
  batch.mask[0, 0, 0] = 0.0
  warmth = rng.uniform(0.5, 2.0, (B, G)).astype(np.float32)
  batch = batch.replace(
    temperature=warmth, reward=np.array([[1.0, -1.0]] * B, np.float32)
  )
  if own:
    lengths = rng.integers(1, P + 1, (B, G)).astype(np.int32)
    batch = batch.replace(row_prompt=draw(B, G, P), row_prompt_length=lengths)
  return batch


def network(config):
  return forward.make_forward(
    {
      'policy': Decoder(config),
      'critic': Decoder(config, scores=1),
      'reward': Decoder(config, scores=3),
      'ref': Decoder(config),
    }
  )


def said(see, params, batch):
  """Every sensor where it means something."""
  out = see(params, {}, batch, NEEDS)
  inside = jnp.arange(T)[None, None] < batch.length[..., None]
  tokens = ('logp', 'entropy', 'value', 'token_score')
  return [jnp.where(inside, getattr(out, n), 0.0) for n in tokens] + [
    getattr(out, n) for n in ROWS
  ]


def weighted(see, params, batch):
  """One number of all that the sensors say, and the sensors."""
  found = said(see, params, batch)
  weigh = lambda i, x: jnp.sum(x * jnp.sin(i + jnp.arange(x.size).reshape(x.shape)))
  return sum(weigh(i, x) for i, x in enumerate(found)), found


def close(got, want):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), got, want
  )


@pytest.mark.parametrize(
  ('config', 'own'), [(CONFIG, True), (WINDOWED, False)], ids=['own', 'windowed']
)
def test_every_sensor_and_its_gradient(config, own):
  see, batch = network(config), example(own)
  both = jax.jit(jax.grad(functools.partial(weighted, see), has_aux=True))
  laid = packing.pack(batch, 2 * WIDTH, rows=B)
  assert laid.layout.group.max() > 1 and laid.layout.count == 1
  close(both(params(), laid), both(params(), batch))


@pytest.mark.parametrize(
  ('config', 'own', 'rows'),
  [(CONFIG, True, 1), (WINDOWED, False, 2)],
  ids=['own', 'windowed'],
)
def test_without_padding(config, own, rows):
  """Every sensor and its gradient, in fewer slots."""
  see, batch = network(config), example(own)
  both = jax.jit(jax.grad(functools.partial(weighted, see), has_aux=True))
  room = packing.room(batch, rows=rows)
  assert room.completions < 8
  close(both(params(), batch.replace(room=room)), both(params(), batch))


def test_a_neighbour_changes_nothing():
  """AT-44: the same lengths, other tokens in all but one group."""
  see, batch = network(WINDOWED), packing.pack(example(), WIDTH, rows=B)
  rng = np.random.default_rng(1)
  other = batch.replace(
    prompts=np.concatenate([batch.prompts[:1], rng.integers(0, V, (B - 1, P))]),
    completions=np.concatenate(
      [batch.completions[:1], rng.integers(0, V, (B - 1, G, T))]
    ),
  )
  first = lambda batch: [x[0] for x in said(see, params(), batch)]
  jax.tree.map(np.testing.assert_array_equal, first(other), first(batch))


def updated(name, batch, **plan):
  method = build.method(name)
  needs = (*method.needs, *method.prepare_needs, *method.measure_needs)
  roles = forward.roles(needs)
  tx = optax.sgd(1.0)
  trained = {r: params()[r] for r in sorted(roles['params'])}
  zero = jnp.int32(0)
  frozen = {'ref': tree(0, 9)} if roles['frozen'] else {}
  key = jax.random.key(0)
  state = State(zero, zero, zero, trained, tx.init(trained), frozen, {}, key)
  step = make_update_step(network(CONFIG), tx, method, **plan)
  state, metrics = jax.jit(step)(state, batch)
  return state.params, {k: v for k, v in metrics.items() if np.ndim(v) == 0}


@pytest.mark.parametrize('name', ['sft', 'kto', 'ppo'])
def test_an_update(name):
  """Loss, metrics and parameters after it, in more than one piece."""
  batch = example()
  if name in ('sft', 'kto'):
    alone = lambda x: x[:, :1] if x.shape[1:2] == (G,) else x
    batch = jax.tree.map(alone, batch)
    batch = batch.replace(reward=np.array([[1.0], [-1.0]] * 2, np.float32))
  laid = packing.pack(batch, WIDTH)
  assert 1 < laid.layout.count < B
  two = dict(microbatches=2)
  close(updated(name, laid, **two), updated(name, batch, **two))


def test_an_update_without_padding():
  """Two minibatches in an order of the host's, each in two pieces."""
  batch = example().replace(order=np.array([[2], [0], [3], [1]], np.int32))
  parts = dict(minibatches=2, microbatches=2)
  laid = batch.replace(room=packing.room(batch, **parts))
  close(updated('ppo', laid, **parts), updated('ppo', batch, **parts))


@pytest.mark.parametrize('layout', ['padded', 'packed', 'room'])
def test_logits_of_all_tokens_never_exist(layout):
  """By the compiled program's own account: 2048 tokens, 16384 words, 128 MiB."""
  words, t = 1 << 14, 512
  config = dataclasses.replace(CONFIG, vocab=words, layers=1)
  see = forward.make_forward({'policy': Decoder(config)})
  ones = lambda *shape: np.ones(shape, np.int32)
  batch = types.make_batch(ones(2, 4), 4 * ones(2), ones(2, 2, t), t * ones(2, 2))
  batch = batch.replace(reward=np.array([[1.0, 0.0]] * 2, np.float32))
  if layout == 'packed':
    batch = packing.pack(batch, 2 * t + 4)
  if layout == 'room':
    batch = batch.replace(room=packing.room(batch))
  zero, tx = jnp.int32(0), optax.sgd(1.0)
  make = lambda: {'policy': Decoder(config).init(jax.random.key(0), *TINY)['params']}
  state = jax.eval_shape(
    lambda: State(zero, zero, zero, make(), tx.init(make()), {}, {}, jax.random.key(0))
  )
  step = make_update_step(see, tx, build.method('grpo', beta=0.0))
  used = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
  whole = 2 * 2 * t * words * 4
  assert used.temp_size_in_bytes < 0.5 * whole
  assert 64 * words * 4 < used.temp_size_in_bytes


# ---- The plan ------------------------------------------------------------------------


def test_first_fit_the_longest_first():
  assert packing.bins([3, 5, 2, 6], 8) == [[3, 2], [1, 0]]


def test_room_by_hand():
  """Prompts of 1 and 4 of 4; completions of 3 + 1 and 8 + 5 of 16 slots.

  Together 5 of 8 and 17 of 32 slots, 5 and 4.25 eighths; alone the second group needs
  all of its prompt's slots, and 13 of 16, or 6.5 eighths.
  """
  batch = types.make_batch(
    *(np.zeros((2, 4), np.int32), np.array([1, 4], np.int32)),
    *(np.zeros((2, 2, 8), np.int32), np.array([[3, 1], [8, 5]], np.int32)),
  )
  assert packing.room(batch) == (1, 5, 5)
  assert packing.room(batch, rows=2) == (2, 8, 7)
  assert packing.room(batch, microbatches=2) == (1, 8, 7)


def test_rows_by_hand():
  """Prompt of 2, completions of 2 and 1: slots p p a a b."""
  batch = types.make_batch(
    np.array([[7, 8, 0]], np.int32),
    np.array([2], np.int32),
    np.array([[[1, 2, 0, 0], [3, 0, 0, 0]]], np.int32),
    np.array([[2, 1]], np.int32),
  )
  plan = jax.tree.map(lambda x: x[0].tolist(), packing.pack(batch, 6).layout)
  assert plan.source == [[0, 1, 3, 4, 7, 0]]
  assert plan.position == [[0, 1, 2, 3, 2, 0]]
  assert plan.group == [[1, 1, 1, 1, 1, 0]]
  assert plan.branch == [[0, 0, 1, 1, 2, 0]]
  assert plan.said == [[2, 3, 4, -1, -1, -1]]
  assert plan.before == [[1, 2, 1, 0, 0, 0]]
  assert plan.back == [[0, 1, 0, 0], [2, 0, 0, 0]]
  assert plan.piece == 0 and plan.count == 1


def test_pieces_by_hand():
  """Groups of 4, 6, 3 and 5 tokens in rows of 9, two rows a piece."""
  batch = types.make_batch(
    np.ones((4, 2), np.int32),
    np.array([1, 2, 1, 2], np.int32),
    np.ones((4, 1, 4), np.int32),
    np.array([[3], [4], [2], [3]], np.int32),
  )
  assert packing.bins([4, 6, 3, 5], 9) == [[1, 2], [3, 0]]
  one = packing.pack(batch, 9).layout
  assert one.piece.tolist() == [1, 0, 0, 1] and one.count.tolist() == [2]
  assert one.source.shape == (4, 1, 9)
  two = packing.pack(batch, 9, rows=2).layout
  assert two.piece.tolist() == [0, 0, 0, 0] and two.count.tolist() == [1]
  assert two.source.shape == (2, 2, 9)


def test_what_is_not_valid_takes_no_room():
  """Of four groups two; what is read of them is 0, and of the others the same."""
  see, batch, gone = network(CONFIG), example(), [0, 2]
  valid = batch.valid.copy()
  valid[gone] = 0.0
  some, everyone = (packing.pack(x, WIDTH) for x in (batch.replace(valid=valid), batch))
  assert (some.layout.piece[gone] == -1).all()
  assert some.layout.count[0] < everyone.layout.count[0]
  trees = params()  # Made before anything is traced.
  one = lambda piece: see(trees, {}, piece, ('logp', 'score'))
  read = jax.jit(lambda b: pieces.mapped(one, b, 1))
  got, want = (jax.device_get(read(b)) for b in (some, everyone))
  assert (got.logp[gone] == 0).all() and (got.score[gone] == 0).all()
  rest = [1, 3]
  close((got.logp[rest], got.score[rest]), (want.logp[rest], want.score[rest]))
  none = packing.pack(batch.replace(valid=np.zeros_like(valid)), WIDTH)
  most = lambda piece: (0.0, {'max/mask': piece.mask.max()})
  total = jax.jit(lambda b: pieces.total(most, 0.0, b, 1)[1])
  assert total(none)['max/mask'] == 0  # Not the least of numbers.


def test_shapes_do_not_depend_on_the_lengths():
  """One program for a batch of long groups and for one of short ones."""
  long = example()
  short = long.replace(length=np.ones_like(long.length))
  shapes = lambda b: jax.tree.map(np.shape, packing.pack(b, WIDTH).layout)
  counts = [int(packing.pack(b, WIDTH).layout.count[0]) for b in (short, long)]
  assert shapes(short) == shapes(long) and counts[0] < counts[1]


def test_rows_on_every_device():
  """Eight rows a piece on eight devices; what leads back is whole on each."""
  mesh = sharding.make_mesh()
  laid = packing.pack(example(), WIDTH, rows=8)
  put = sharding.put_batch(types.Batch(*[None] * 9, layout=laid.layout), mesh).layout
  assert len(put.source.sharding.device_set) == 8
  assert put.back.sharding.is_fully_replicated
  np.testing.assert_array_equal(put.source, laid.layout.source)


def test_too_long_a_group():
  with pytest.raises(InputError, match=r'18 tokens and config\.plan\.pack is 12'):
    packing.bins([3, 18], 12)


def test_packing_takes_one_minibatch():
  step = make_update_step(
    network(CONFIG), optax.sgd(1.0), build.method('dpo'), minibatches=2
  )
  with pytest.raises(InputError, match='packing takes one'):
    step(None, packing.pack(example(), WIDTH))


def test_padding_free_leaves_nothing_to_pack():
  config = config_dict.ConfigDict(
    {'plan': dict(minibatches=1, padding_free=True, pack=64)}
  )
  with pytest.raises(InputError, match='nothing to pack'):
    feeds.laid_out(lambda state, step: None, config, sharding.make_mesh())
