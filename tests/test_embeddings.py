"""Embeddings in the place of tokens: soft prompts, blended pasts, and who uses them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import test_forward
import toy
from test_forward import CONFIG, D, P, T, example
from test_reward_models import said

from jaxrl_llm import build, forward, packing, train
from jaxrl_llm.data import examples, kinds, reshape
from jaxrl_llm.data.chat import coder as make_coder
from jaxrl_llm.methods.ift import led
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.ops import users, weights
from jaxrl_llm.rewards.learned import learned
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.step import make_update_step, sense, weigh
from jaxrl_llm.tasks.records import Record, chat
from jaxrl_llm.types import InputError, Outputs

close = lambda got, want, atol=2e-5: np.testing.assert_allclose(got, want, 0, atol)


@functools.cache
def network(soft=None):
  models = {'policy': Decoder(CONFIG), 'ref': Decoder(CONFIG)}
  see = forward.make_forward(models, soft)
  return jax.jit(see, static_argnums=3)


def policy():
  return test_forward.params()['policy']


# ---- Soft tokens ---------------------------------------------------------------------


def own_soft(own, batch):
  return own['soft']


def test_soft_tokens_are_tokens():
  """The embeddings of two tokens, before every prompt, are the prompts with those; a
  frozen network does not see them.
  """
  batch = example()
  first = jnp.array([[3, 1], [7, 7], [0, 12]])
  trees = {'policy': policy(), 'own': {'soft': policy()['embed'][first]}}
  see = network(own_soft)
  got = see(trees, {'ref': policy()}, batch, ('logp', 'ref_logp'))
  longer = batch.replace(
    prompts=jnp.concatenate([first, batch.prompts], 1),
    prompt_length=batch.prompt_length + 2,
  )
  plain = network()
  want = plain({'policy': policy()}, {}, longer, ('logp',)).logp
  inside = batch.mask > 0
  close(jnp.where(inside, got.logp - want, 0.0), 0.0)
  alone = plain({'policy': policy()}, {}, batch, ('logp',)).logp
  close(jnp.where(inside, got.ref_logp - alone, 0.0), 0.0)
  assert abs(jnp.where(inside, want - alone, 0.0)).max() > 1e-2
  # Rows with prompts of their own have those of their group before them.
  twice = lambda x: jnp.repeat(x[:, None], 2, 1)
  rows = batch.replace(
    row_prompt=twice(batch.prompts), row_prompt_length=twice(batch.prompt_length)
  )
  same = see(trees, {'ref': policy()}, rows, ('logp', 'ref_logp'))
  close(jnp.where(inside, got.logp - same.logp, 0.0), 0.0)


def test_soft_tokens_take_padded_rows_and_room():
  batch = jax.tree.map(np.asarray, example())
  tree = {'policy': policy(), 'own': {'soft': jnp.zeros((3, 2, D))}}
  say = lambda b, see: see(tree, {}, b, ('logp',))
  with pytest.raises(InputError, match='pack=0'):
    say(packing.pack(batch, 2 * (P + 2 * T)), network(own_soft))
  small = Decoder(dataclasses.replace(CONFIG, max_positions=P + T + 1))
  see = forward.make_forward({'policy': small}, own_soft)
  with pytest.raises(InputError, match=f'has {P + T + 1}'):
    say(batch, see)


# ---- A blended past ------------------------------------------------------------------


def mixed(batch, share, tree=None):
  batch = batch.replace(extra={'mixed': jnp.full(len(batch.prompts), share)})
  found = network()({'policy': tree or policy()}, {}, batch, ('mixed_logp',))
  return jnp.where(batch.mask > 0, found.mixed_logp, 0.0)


def test_no_share_is_the_plain_past_and_all_is_the_likeliest():
  batch = example()
  inside, see = batch.mask > 0, network()
  logp = see({'policy': policy()}, {}, batch, ('logp',)).logp
  close(mixed(batch, 0.0), jnp.where(inside, logp, 0.0))
  # The likeliest token after each prefix, by scoring every one of them.
  best = []
  for token in range(CONFIG.vocab):
    each = []
    for t in range(T):
      there = batch.completions.at[:, :, t].set(token)
      rows = batch.replace(completions=there, temperature=jnp.ones_like(batch.valid))
      each.append(see({'policy': policy()}, {}, rows, ('logp',)).logp[:, :, t])
    best.append(jnp.stack(each, -1))
  best = jnp.stack(best).argmax(0)
  # Told those, and asked for what was there: position by position.
  want = []
  for t in range(T):
    told = best.at[:, :, t].set(batch.completions[:, :, t])
    rows = batch.replace(completions=told)
    want.append(see({'policy': policy()}, {}, rows, ('logp',)).logp[:, :, t])
  close(mixed(batch, 1.0), jnp.where(inside, jnp.stack(want, -1), 0.0))


@pytest.mark.parametrize('layout', ['packed', 'unpadded'])
def test_a_blended_past_in_every_layout(layout):
  """Value and gradient; to the embedding none by way of the past."""
  batch = jax.tree.map(np.asarray, example())
  laid = (
    packing.pack(batch, 2 * (P + 2 * T), rows=3)
    if layout == 'packed'
    else batch.replace(room=packing.room(batch))
  )
  mix = jnp.sin(jnp.arange(batch.mask.size)).reshape(batch.mask.shape)
  of = lambda tree, b: jnp.sum(mix * mixed(b, 0.3, tree))
  got, want = (jax.value_and_grad(of)(policy(), b) for b in (laid, batch))
  largest = max(float(abs(x).max()) for x in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: close(a, b, 2e-5 * largest), got, want)


def test_led_by_hand():
  """l = (1, 2, 0): c = (1 + 2/2, 2, 0), over their sum 4 and times 3: 3/2, 3/2, 0."""
  nll, mask = jnp.array([[[1.0, 2.0, 0.0], [4.0, 9.0, 9.0]]]), jnp.ones((1, 2, 3))
  mask = mask.at[0, 1, 1:].set(0.0)
  close(led(nll, mask, 0.5), [[[1.5, 1.5, 0.0], [1.0, 0.0, 0.0]]])
  # Without a discount what follows counts in full: c = (3, 2, 0).
  close(led(nll, mask, 1.0)[0, 0], np.array([9.0, 6.0, 0.0]) / 5)


def test_ift_by_hand():
  """Half of (1.5 + 3) / 3 and of 4; and without a discount of (1 + 2) / 3 and of 4."""
  nll, mask = jnp.array([[[1.0, 2.0, 0.0]], [[4.0, 0.0, 0.0]]]), jnp.ones((2, 1, 3))
  mask = mask.at[1, 0, 1:].set(0.0)
  for discount, want in ((0.5, (1.5 + 4) / 2), (0.0, (1 + 4) / 2)):
    m = build.method('ift', discount=discount)
    batch = weigh(toy.batch(g=1).replace(mask=mask), m)
    close(m.loss(Outputs(mixed_logp=-nll), batch)[0], want)


def test_ift_of_nothing_is_sft():
  """mix=0, discount=0: the card's identity, with every completion alike."""
  batch, logp = toy.batch(g=1), toy.logp(toy.state().params['policy'], toy.batch(g=1))
  found = []
  for m in (
    build.method('ift', mix=0.0, discount=0.0),
    build.method('sft', aggregate=weights.seq_mean),
  ):
    assert m.needs == ('logp',)
    rows = weigh(m.prepare(toy.state(), batch)[1], m)
    slope = jax.grad(lambda x, m=m, b=rows: m.loss(Outputs(logp=x), b)[0])
    found.append(slope(logp * batch.mask))
  close(*found)
  with pytest.raises(InputError, match='from 0 to 1'):
    build.method('ift', mix=1.5)


# ---- Token rewards by contrast -------------------------------------------------------


def contrastive(m, logp, better, worse, ref=-1.0):
  """Loss of pairs of one token each."""
  ref_aux = jnp.concatenate([better, worse], 1)
  out = Outputs(logp=logp, aux=Outputs(ref_logp=ref_aux))
  return said(m, out, ref_logp=jnp.full_like(logp, ref))[0]


def test_t_reg_by_hand():
  """beta 1, alpha 1/2, rho (.5, 0); log-odds of (log 3, -log 3): c = (1/4, -1/4).

  m = .5, gain = (-.5 - -1) / 4 = 1/8; each slope is +-sigmoid(-m) (1 + alpha / 4).
  """
  m = build.method('t_reg', beta=1.0, alpha=0.5)
  logp = jnp.array([[[-0.5], [-1.0]]])
  side = jnp.array([[[np.log(3.0)], [-np.log(3.0)]]]) - 2
  of = lambda x: contrastive(m, x, side, jnp.full_like(side, -2.0))
  near = 1 / (1 + np.exp(0.5))
  close(of(logp), np.log1p(np.exp(-0.5)) - 0.5 * near / 8)
  slope = near * (1 + 0.5 / 4)
  close(jax.grad(of)(logp), [[[-slope], [slope]]])


def test_one_prompt_for_both_is_dpo():
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(-rng.random((4, 2, 3)), jnp.float32)
  logp, ref, told = draw(), draw(), draw()
  fields = dict(ref_logp=ref, t=3)
  out = Outputs(logp=logp, aux=Outputs(ref_logp=jnp.concatenate([told, told], 1)))
  got = said(build.method('t_reg', alpha=0.5), out, **fields)
  want = said(build.method('dpo'), Outputs(logp=logp), **fields)
  close(got[0], want[0], 1e-6)
  close(got[1]['contrast'][0], 0.0, 1e-7)


@functools.cache
def coder():
  tokenizer = pretrained.load('tiny').tokenizer
  return make_coder(tokenizer, pretrained.stop_ids(tokenizer))


def test_the_two_other_prompts_are_a_batch_beside():
  rows = [{'prompt': 'ab', 'chosen': 'x', 'rejected': 'yz'}]
  (row,) = reshape.contrasted(rows, better='!', worse='??')
  assert row['prompts'] == ['ab\n\n!', 'ab\n\n??']
  turns = [{'role': 'user', 'content': 'a'}]
  (other,) = reshape.contrasted([rows[0] | {'prompt': turns}], better='!', worse='?')
  assert other['prompts'][1] == [{'role': 'user', 'content': 'a\n\n?'}]
  encode = examples.Encoder(coder(), max_prompt=6, max_length=4, long_prompt='drop')
  found = [kinds.contrastive_pairs(r) for r in (row, row | {'prompts': ['a' * 9, 'b']})]
  batch, dropped, _ = encode(found)
  assert dropped == 1 and batch.valid.tolist() == [[1, 1], [0, 0]]
  aux = batch.aux
  assert aux.valid.tolist() == [[1] * 4, [0] * 4]
  assert aux.row_prompt_length[0].tolist() == [5, 5, 6, 6]
  for g in range(4):
    np.testing.assert_array_equal(aux.completions[0, g], batch.completions[0, g % 2])
  m = build.method('t_reg')
  with pytest.raises(InputError, match='contrastive_pairs'):
    m.prepare(toy.state(), toy.batch())


# ---- Users ---------------------------------------------------------------------------


def people(clusters=0, width=4):
  """Three users of two soft tokens, none of whom is anybody."""
  own = users.init(jax.random.key(0), width, 3, 2, clusters)
  bend = lambda x: x + jnp.sin(jnp.arange(x.size)).reshape(x.shape)
  return jax.tree.map(bend, own)


@pytest.mark.parametrize('clusters', [0, 2])
def test_who_is_not_known_is_anybody(clusters):
  own = people(clusters)
  found = users.soft(own, jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, -1.0]))
  assert found.shape == (6, 2, 4)
  for stranger in (4, 5):
    np.testing.assert_array_equal(found[stranger], found[0])
  for i in range(4):
    for j in range(i):
      assert abs(found[i] - found[j]).max() > 1e-2
  if not clusters:
    close(found[0], own['anybody'])
    close(found[2], own['anybody'] + own['offset'][1], 1e-6)
  born = users.init(jax.random.key(0), 4, 3, 2, clusters)
  close(users.soft(born, jnp.array([3.0])), users.soft(born, jnp.array([0.0])))


def personal(m, params, batch):
  """A method's loss on the toy."""
  batch = weigh(m.prepare(toy.state(), batch)[1], m)
  out = sense(toy.forward, params, {}, batch, m.needs)
  return m.loss(out, batch)[0]


def test_only_a_users_own_rows_move_its_offset():
  m = build.method('p_rlhf', count=3, tokens=2)
  params = toy.state(own=m.own).params
  batch = toy.batch()  # Users 0, 1 and 2 in turn; 3 says nothing.
  slope = jax.grad(lambda p: personal(m, p, batch))(params)['own']
  size = abs(slope['offset']).max((1, 2))
  assert (size[:2] > 1e-4).all() and size[2] == 0
  without = batch.replace(mask=batch.mask * (jnp.arange(8) % 3 != 1)[:, None, None])
  slope = jax.grad(lambda p: personal(m, p, without))(params)['own']['offset']
  assert abs(slope[0]).max() == 0 and abs(slope[1]).max() > 1e-4


def test_a_strangers_loss_is_the_general_one():
  """Of rows of nobody both terms are one; alpha=1 leaves the general one out."""
  make = functools.partial(build.method, 'p_rlhf', count=3, tokens=2)
  params = toy.state(own=make().own).params | {'own': people(width=toy.V)}
  batch = toy.batch()
  nobody = batch.replace(extra=batch.extra | {'user': jnp.zeros(toy.B)})
  stranger = batch.replace(extra=batch.extra | {'user': jnp.full(toy.B, 9.0)})
  loss = lambda alpha, b: personal(make(alpha=alpha), params, b)
  close(loss(0.3, stranger), loss(1.0, nobody), 1e-6)
  close(loss(0.0, batch), loss(1.0, nobody), 1e-6)
  both = 0.25 * loss(1.0, batch) + 0.75 * loss(1.0, nobody)
  close(loss(0.25, batch), both, 1e-6)
  assert make(alpha=1.0).needs == ('score',)
  with pytest.raises(InputError, match='personal_pairs'):
    make().prepare(toy.state(), batch.replace(extra={}))


def test_users_who_want_opposite_things_are_told_apart():
  """The same pairs, chosen the other way round by user 2: each is met, where one score
  for all would be right about half, and anybody's is.
  """
  m, tx = build.method('p_rlhf', count=2, tokens=2), optax.adam(3e-2)
  batch = toy.batch()
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
  turn = lambda x: x.at[toy.B :].set(x[toy.B :, ::-1])
  told = {k: turn(getattr(twice, k)) for k in ('completions', 'mask', 'length')}
  user = jnp.repeat(jnp.array([1.0, 2.0]), toy.B)
  twice = twice.replace(**told, extra=twice.extra | {'user': user})
  state = toy.state(tx, own=m.own)
  step = jax.jit(make_update_step(toy.forward, tx, m))
  for _ in range(150):
    state, found = step(state, twice)
  assert found['accuracy'] > 0.9
  close(found['nll_anybody'], np.log(2.0), 0.02)
  nobody = twice.replace(extra=twice.extra | {'user': jnp.zeros(2 * toy.B)})
  assert step(state, nobody)[1]['accuracy'] == 0.5


def test_the_runs_users_are_served(tmp_path):
  """learned(user=...): a number of a user there, and anybody; two users differ."""
  c = runs.config('p_rlhf', steps=2, evaluation=dict(every=2))
  for role in ('own', 'reward'):
    c.optimizer[role].learning_rate = 0.1
  train.main(c, str(tmp_path))
  one = Sample('abc', 'cc', 2, False, Record(0, chat('abc'), '', {}))
  score = lambda user: learned(run=str(tmp_path), user=user).score([one])[0]
  assert abs(score('1') - score('2')) > 1e-4
  assert score('') == score('0') == score('7') != score('1')
  with pytest.raises(InputError, match='numbers its users'):
    learned(run=str(tmp_path), user='me')


def test_a_users_number_is_whole():
  row = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
  assert kinds.personal_pairs(row | {'user': 3}).extra == {'user': 3.0}
  for user in (-1, 0.5):
    with pytest.raises(InputError, match='whole number'):
      kinds.personal_pairs(row | {'user': user})
