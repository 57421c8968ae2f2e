"""The sampler says what it drew, draws what the policy says, and stops where it must.

Every check is a second computation: the trainer's forward, a plain loop without a
cache, or the same draws cut by hand.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxrl_llm import forward, packing, pieces, types
from jaxrl_llm.models import caching
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.models.pretrained import random_params
from jaxrl_llm.ops import importance
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.places import Places
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.rollout.stops import stop_strings

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
def sampler(group=G, max_length=T, slots=0):
  return make_sampler(DECODER, group=group, max_length=max_length, slots=slots)


def sample(
  stop_ids=(NEVER,), ids=None, rows=slice(None), seed=0, slots=0, max_length=T, **how
):
  """A rollout of the four prompts, or of some of them in another order."""
  ids = prompts() if ids is None else ids
  how = draw.options(B, max_length=max_length, stop_ids=stop_ids, **how)
  which = np.arange(B, dtype=np.int32)
  args = jax.tree.map(lambda x: x[rows], (ids, LENGTHS, which, how))
  return sampler(slots=slots)(params(), *args, jax.random.key(seed), 3)


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


@pytest.mark.parametrize(
  ('dtype', 'least', 'most'), [('float32', 0, 1e-5), ('bfloat16', 1e-4, 1)]
)
def test_a_sampler_of_other_precision_shows(dtype, least, most):
  """AT-34, AT-38: the gap between its log-probs and the trainer's, in the metrics."""
  narrow = make_sampler(DECODER.clone(dtype=dtype), group=G, max_length=T)
  args = (
    prompts(),
    LENGTHS,
    np.arange(B, dtype=np.int32),
    draw.options(B, max_length=T),
  )
  rollout = narrow(params(), *args, jax.random.key(0), 0)
  batch = to_batch(rollout)
  found = importance.agreement(
    scorer()(params(), batch), rollout.behavior_logp, batch.mask
  )
  assert least <= float(found['max/mismatch']) < most


def test_the_stop_token_cuts_the_same_draws():
  """Kept where it is drawn first, at every place: 0, the middle, the end, never."""
  tokens, logp = free().tokens, free().behavior_logp
  place = lambda hit: np.where(hit.any(-1), hit.argmax(-1), T)
  stop = max(range(V), key=lambda v: len(set(place(tokens == v).ravel())))
  first = place(tokens == stop)
  assert set(first.ravel()) >= {0, 1, 2, T - 1, T}
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
    draw.options(1, max_length=2),
  )
  got = sampler(n, 2)(params(), *args, jax.random.key(0), 0)
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


# ---- Truncation: top-k, top-p, min-p -------------------------------------------------


def kept_by_sorting(p, top_k=0, top_p=1.0, min_p=0.0):
  """Which tokens are kept, for float64 probabilities [V] without ties, by sorting."""
  order = np.argsort(-p)
  keep = np.zeros(len(p), bool)
  keep[order[: top_k or len(p)]] = True
  if top_p < 1:
    left = np.where(keep, p, 0) / p[keep].sum()
    before = np.cumsum(left[order]) - left[order]
    keep[order[before >= top_p]] = False
  return keep & (p >= min_p * p.max())


CUTS = [
  {'top_k': 1},
  {'top_k': 40},
  {'top_p': 0.9},
  {'top_p': 0.01},
  {'min_p': 0.05},
  {'top_k': 50, 'top_p': 0.8},
  {'top_k': 300, 'top_p': 0.95, 'min_p': 0.02},
  {},
]


def test_truncation_keeps_what_sorting_keeps():
  """AT-32: in one call, a row for each way to cut; 700 tokens in three blocks."""
  rng = np.random.default_rng(0)
  logits = rng.normal(scale=2.0, size=(len(CUTS), 700)).astype(np.float32)
  whole = np.exp(logits.astype(np.float64) / 0.7)
  whole /= whole.sum(-1, keepdims=True)
  keep = np.stack([kept_by_sorting(p, **cut) for p, cut in zip(whole, CUTS)])
  column = lambda name, other: [cut.get(name, other) for cut in CUTS]
  how = draw.options(
    len(CUTS),
    max_length=1,
    temperature=0.7,
    top_k=column('top_k', 0),
    top_p=column('top_p', 1.0),
    min_p=column('min_p', 0.0),
  )
  weight = jnp.exp(logits / 0.7 - (logits / 0.7).max(-1, keepdims=True))
  np.testing.assert_array_equal(weight >= draw.threshold(weight, how)[:, None], keep)
  drawn = np.full(keep.shape, False)
  one = jax.jit(lambda u: draw.draw(jnp.asarray(logits), how, u))
  for u in np.random.default_rng(1).uniform(size=(300, len(CUTS), 2)):
    token, logp, share, within = (np.asarray(x) for x in one(u.astype(np.float32)))
    rows = np.arange(len(CUTS))
    drawn[rows, token] = True
    np.testing.assert_array_equal(-np.log(whole) <= within[:, None], keep)
    close(share, np.where(keep, whole, 0).sum(-1), 1e-5)
    close(logp + np.log(share), np.log(whole[rows, token]), 1e-5)
  assert not (drawn & ~keep).any()
  np.testing.assert_array_equal(drawn[0], keep[0])
  assert share[-1] == 1.0


def test_a_draw_inverts_the_distribution():
  """By hand: weights 1 0 2 1 have running sums 1 1 3 4; 0 weight is never drawn."""
  weight = jnp.array([[1.0, 0.0, 2.0, 1.0]] * 6)
  u = jnp.array([0.0, 0.24, 0.26, 0.74, 0.76, 0.99999994])
  np.testing.assert_array_equal(draw.invert(weight, u), [0, 0, 2, 2, 3, 3])
  last = jnp.zeros((1, 600)).at[0, 299].set(1e-30)
  for u in (0.0, 0.5, 0.99999994):
    assert int(draw.pick(last, jnp.full((1, 2), u))[0]) == 299


def test_truncated_log_probs_say_of_what():
  """AT-32: of the distribution drawn from; with the kept mass, of the whole one."""
  rollout = jax.device_get(sample(top_p=0.6, temperature=1.3))
  batch = to_batch(rollout)
  assert (rollout.kept_mass >= 0.6 - 1e-6).all() and rollout.kept_mass.min() < 0.9
  whole = rollout.behavior_logp + np.log(rollout.kept_mass)
  close(scorer()(params(), batch) * batch.mask, whole * batch.mask, 1e-5)


@pytest.mark.parametrize('layout', ['padded', 'packed', 'unpadded'])
def test_the_trainer_cuts_as_the_sampler_did(layout):
  """AT-32: one prompt by top-p, one by top-k, one by min-p, one not at all; the ratio
  of a first update is 1 and its entropy is of what was drawn from.
  """
  cuts = dict(top_p=[0.6, 1, 1, 1], top_k=[0, 3, 0, 0], min_p=[0, 0, 0.2, 0])
  rollout = jax.device_get(sample(temperature=1.3, stop_ids=(0,), **cuts))
  batch = to_batch(rollout).replace(keep_within=rollout.keep_within)
  kept = [rollout.kept_mass[i].mean(where=batch.mask[i] > 0) for i in range(B)]
  assert max(kept[:3]) < 0.97 and kept[3] == 1 and np.isinf(batch.keep_within[3]).all()
  if layout == 'packed':
    batch = packing.pack(batch, P + G * T)
    see = forward.make_forward({'policy': DECODER})
    one = lambda piece: see({'policy': params()}, {}, piece, ('logp',)).logp
    logp = jax.jit(lambda b: pieces.mapped(one, b, 1))(batch)
  else:
    room = packing.room(batch) if layout == 'unpadded' else None
    logp = scorer()(params(), batch.replace(room=room))
  close(logp * batch.mask, rollout.behavior_logp, 1e-5)


def test_every_prompt_has_options_of_its_own():
  """In one call: greedy, cold, short, and with a stop token; the rest untouched."""
  stop = int(free().tokens[3, 0, 1])
  got = jax.device_get(
    sample(temperature=[0.0, 1.0, 1.0, 1.0], max_length=[T, T, 2, T])
  )
  greedy = jax.device_get(sample(temperature=0.0))
  np.testing.assert_array_equal(got.tokens[0], greedy.tokens[0])
  np.testing.assert_array_equal(got.tokens[1], free().tokens[1])
  np.testing.assert_array_equal(got.length[2], 2)
  np.testing.assert_array_equal(got.tokens[2, :, :2], free().tokens[2, :, :2])
  np.testing.assert_array_equal(got.stop_reason, 0)
  mixed = draw.options(B, max_length=T)._replace(
    stop_ids=np.array([[NEVER], [NEVER], [NEVER], [stop]], np.int32)
  )
  args = (prompts(), LENGTHS, np.arange(B, dtype=np.int32), mixed, jax.random.key(0), 3)
  got = jax.device_get(sampler()(params(), *args))
  np.testing.assert_array_equal(got.tokens[:3], free().tokens[:3])
  assert got.length[3, 0] <= 2 and got.stop_reason[3, 0] == 1


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (dict(max_length=T + 1), f'max_length={T + 1} .* has room for {T} tokens'),
    (dict(length=0), 'A prompt of 0 tokens'),
    (dict(length=P + 1), f'A prompt of {P + 1} tokens in an array of {P}'),
  ],
)
def test_what_does_not_fit_is_refused(change, match):
  how = draw.options(B, max_length=change.get('max_length', T))
  length = np.where(np.arange(B) == 1, change.get('length', 1), LENGTHS)
  args = (prompts(), length, np.arange(B, dtype=np.int32), how)
  with pytest.raises(types.InputError, match=match):
    sampler()(params(), *args, jax.random.key(0), 0)


# ---- Slots that are refilled ---------------------------------------------------------


def test_rows_left_go_on_in_half_the_rows(monkeypatch):
  """The same draws, though half of the rows are gone after two or four tokens."""
  tokens = free().tokens  # Before its own rows are watched.
  monkeypatch.setattr('jaxrl_llm.rollout.sampler.CHUNK', 2)
  widths, narrow = [], Places.narrow

  def watched(self):
    keep = narrow(self)
    widths.append(self.sample.shape[1])
    return keep

  monkeypatch.setattr(Places, 'narrow', watched)
  place = lambda v: (tokens == v).argmax(-1) + T * (tokens != v).all(-1)
  stops = tuple(v for v in range(V) if (place(v) < 2).any())[:4]
  got = sample(stop_ids=stops)
  assert widths[0] < G and min(widths) < widths[0]
  first = np.min([place(v) for v in stops], 0)
  inside = np.arange(T) <= first[..., None]
  np.testing.assert_array_equal(got.tokens, np.where(inside, free().tokens, 0))
  np.testing.assert_array_equal(got.length, np.minimum(first + 1, T))
  close(got.behavior_logp, np.where(inside, free().behavior_logp, 0), 1e-6)


@pytest.mark.parametrize('slots', [0, 2])
def test_stop_strings_cut_the_same_draws(slots, monkeypatch):
  """After the token that completes one, wherever a look at the text falls; one ends
  the completions of a single prompt alone.
  """
  monkeypatch.setattr('jaxrl_llm.rollout.sampler.CHUNK', 4)
  write = lambda ids: ''.join('abcdefg'[i] for i in ids)
  texts = [[write(row) for row in group] for group in free().tokens]
  pair, single = texts[0][0][1:3], texts[2][0][3]
  cut = stop_strings(write, (pair, 'never'), own={2: (single,)})
  ends = lambda text, s: found + len(s) if (found := text.find(s)) >= 0 else T + 1
  want = np.array([[ends(t, pair) for t in group] for group in texts])
  want[2] = np.minimum(want[2], [ends(t, single) for t in texts[2]])
  found, want = want <= T, np.minimum(want, T)
  assert len(set(want.ravel())) > 2 and any(single in t for t in texts[1])
  draws = make_sampler(DECODER, group=G, max_length=T, slots=slots, cut=cut)
  how = draw.options(B, max_length=T)
  which = np.arange(B, dtype=np.int32)
  got = draws(params(), prompts(), LENGTHS, which, how, jax.random.key(0), 3)
  np.testing.assert_array_equal(got.length, want)
  np.testing.assert_array_equal(got.stop_reason, found)
  inside = np.arange(T) < want[..., None]
  np.testing.assert_array_equal(got.tokens, np.where(inside, free().tokens, 0))
  close(got.behavior_logp, np.where(inside, free().behavior_logp, 0), 1e-6)


@pytest.mark.parametrize('slots', [1, 2, 3])
def test_refilled_slots_sample_what_all_at_once_do(slots, monkeypatch):
  """Each prompt's draws are its own, whichever slot it gets and whoever had it."""
  monkeypatch.setattr('jaxrl_llm.rollout.sampler.CHUNK', 2)
  stop = (int(free().tokens[0, 0, 2]), int(free().tokens[1, 1, 0]))
  want = jax.device_get(sample(stop_ids=stop, top_p=0.9))
  got = sample(stop_ids=stop, top_p=0.9, slots=slots)
  for name in ('tokens', 'length', 'stop_reason', 'prompt_id'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  for name in ('behavior_logp', 'kept_mass', 'temperature'):
    close(getattr(got, name), getattr(want, name), 3e-6)  # Two programs round twice.
  assert got.version == 3


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_other_shapes_differ_at_near_ties_alone(dtype):
  """By 8, 4, 2 and 1 prompts at once: the same draw, until two words are as near as
  rounding is. Counted; what follows a first difference is another text.
  """
  config = dataclasses.replace(
    CONFIG, vocab=4096, width=192, layers=6, head_dim=48, mlp_width=512
  )
  decoder, size = Decoder(config, jnp.dtype(dtype)), 64
  tree = jax.tree.map(jnp.asarray, random_params(config))
  ids = np.random.default_rng(0).integers(0, 4096, (8, P)).astype(np.int32)
  how = draw.options(8, max_length=size)
  asked = ids, np.full(8, P, np.int32), np.arange(8, dtype=np.int32), how
  found = [
    make_sampler(decoder, group=G, max_length=size, slots=slots)(
      tree, *asked, jax.random.key(0), 0
    )
    for slots in (8, 4, 2, 1)
  ]
  near = 1e-4 if dtype == 'float32' else 0.1
  for slots, other in zip((4, 2, 1), found[1:]):
    apart = found[0].tokens != other.tokens
    first = np.where(apart.any(-1), apart.argmax(-1), size)
    before = np.arange(size) < first[..., None]
    gap = np.where(before, found[0].behavior_logp - other.behavior_logp, 0.0)
    assert abs(gap).max() < near
    count = int(apart.any(-1).sum())
    print(f'{dtype}, {slots} prompts at once: {count} of {8 * G} differ')
    assert count <= (4 if dtype == 'float32' else 4 * G)


@pytest.mark.parametrize('cache', [None, jnp.int8])
@pytest.mark.parametrize('slots', [0, 2])
def test_room_is_made_as_rows_need_it(cache, slots, monkeypatch):
  """The same draws from caches of 2, 4 and 6 places; short rows never see the last."""
  monkeypatch.setattr('jaxrl_llm.rollout.sampler.CHUNK', 2)
  widths, write = [], caching.written

  def watched(old, new, index):
    widths.append(jax.tree.leaves(old)[0].shape[3])
    return write(old, new, index)

  monkeypatch.setattr(caching, 'written', watched)

  def drawn(longest):
    draws = make_sampler(DECODER, group=G, max_length=T, slots=slots, cache=cache)
    how = draw.options(B, max_length=[longest, 1, longest, 2])
    which = np.arange(B, dtype=np.int32)
    widths.clear()
    found = draws(params(), prompts(), LENGTHS, which, how, jax.random.key(0), 3)
    return found, sorted({*widths})

  whole, _ = drawn(T)
  monkeypatch.setattr('jaxrl_llm.rollout.sampler.LEAST', 2)
  found, seen = drawn(T)
  assert seen == [2, 4, 6]
  np.testing.assert_array_equal(found.tokens, whole.tokens)
  np.testing.assert_array_equal(found.length, whole.length)
  close(found.behavior_logp, whole.behavior_logp, 3e-6)
  assert drawn(3)[1] == [2, 4]


def test_nothing_is_compiled_twice():
  """A sampler's programs depend on shapes alone, not on options or lengths."""
  draws = sampler(slots=0)
  run = lambda **how: draws(
    params(),
    prompts(),
    LENGTHS,
    np.arange(B, dtype=np.int32),
    draw.options(B, max_length=how.pop('max_length', T), stop_ids=(NEVER,), **how),
    jax.random.key(7),
    0,
  )
  run()
  with runs.compilations() as found:
    run(temperature=0.3, top_p=0.9)
    run(top_k=3, max_length=2)
    run(min_p=0.1, temperature=0.0)
  assert found == []
