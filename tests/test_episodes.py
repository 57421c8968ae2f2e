"""Episodes: rows of several turns, what is trained in them, and credit by turn."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import check, loss, row
from test_contract import check_same, every_method, method, start
from test_identities import close, gradient, off_policy, update

from configs import episodes as config_file
from jaxrl_llm import assemble, build, episodes, forward, packing, sharding, types
from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.ops import logprobs
from jaxrl_llm.rewards.environment import environment
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.rollout import draw
from jaxrl_llm.sources import Text
from jaxrl_llm.step import clean, make_update_step, observe, weigh
from jaxrl_llm.tasks.calculator import calculator
from jaxrl_llm.tasks.guess_number import guess_number
from jaxrl_llm.tasks.records import Env, Record
from jaxrl_llm.tasks.two_attempts import two_attempts
from jaxrl_llm.types import InputError, Outputs, Rollout

TOKENIZER = pretrained.load('tiny').tokenizer
STOPS = pretrained.stop_ids(TOKENIZER)
EOS = STOPS[0]
encode = lambda text: TOKENIZER.encode(text, add_special_tokens=False)
decode = lambda ids: TOKENIZER.decode(ids, skip_special_tokens=True)


def config(method='grpo', **sections):
  """configs/episodes.py, smaller, on one device."""
  c = config_file.get_config()
  if method != 'grpo':
    c.method = runs.config(method).method
  c.steps = 2
  c.mesh.fsdp = 1
  c.evaluation.update(every=2, batch=8)
  c.log.tensorboard = False
  c.source.update(prompts=4, group=2, max_length=20, turn_length=2)
  for name, options in sections.items():
    c[name].update(options)
  return c


# ---- A row by hand -------------------------------------------------------------------

ASK = [{'role': 'user', 'content': 'q'}]
RECORD = Record(0, ASK, 'a', {})


def scripted(words, *, room=20, turns=3, turn_length=20, replies=('no', 'no', 'no')):
  """A partner whose policy says `words`, one text a turn, and whose replies are given.

  A word that ends in '$' ends in the stop token. Every log-prob is minus the place of
  its token in the turn, from 1.
  """

  def sample(params, prompts, length, ids, how, key, version):
    n = len(prompts)
    out = np.zeros((n, 1, turn_length), np.int32)
    size, stop = np.zeros((n, 1), np.int32), np.zeros((n, 1), np.int32)
    for i in range(n):
      text = words[seen.setdefault(int(ids[i]), 0)] if how.max_length[i] else ''
      said = [*encode(text.rstrip('$')), *([EOS] if text.endswith('$') else [])]
      said = said[: how.max_length[i]]
      seen[int(ids[i])] += bool(said)
      out[i, 0, : len(said)], size[i, 0] = said, len(said)
      stop[i, 0] = bool(said) and said[-1] == EOS
      asked.append(prompts[i, : length[i]].tolist())
    place = np.arange(1, turn_length + 1, dtype=np.float32)
    logp = -np.broadcast_to(place, out.shape) * (place <= size[..., None])
    ones = np.ones((n, 1), np.float32)
    kept = np.ones(out.shape, np.float32)
    within = np.full(out.shape, np.inf, np.float32)
    return Rollout(out, size, ids, logp, ones, kept, stop, version, within)

  def step(state, said):
    heard = (*state, said)
    told = replies[len(state)]
    return heard, told

  seen, asked = {}, []
  env = Env(lambda r: (r.messages, ()), step, lambda s: (float(len(s)), {'n': 7.0}))
  prompt = chat.coder(TOKENIZER, STOPS).prompt
  between = chat.replier(TOKENIZER, STOPS)
  partner = episodes.Partner(sample, Text(prompt, decode, 8), env, between, room, turns)
  return partner, asked


def options(n, length=20):
  return draw.options(n, max_length=length, stop_ids=STOPS)


def played(words, **how):
  partner, asked = scripted(words, **how)
  row = episodes.begin(partner, RECORD, 0)
  length = how.get('turn_length', 20)
  key = jax.random.key(0)
  options_ = functools.partial(options, length=length)
  (row,) = episodes.play(partner, {}, [row], options_, key, 0, 0)
  return row, asked


def test_a_row_by_hand():
  """'ab<eos>', the reply, 'c<eos>', the reply, 'd<eos>': three turns and no more."""
  row, asked = played(['ab$', 'c$', 'd$'])
  reply = encode('\nno\n')
  due = [*encode('ab'), EOS, *reply, *encode('c'), EOS, *reply, *encode('d'), EOS]
  assert list(row.tokens) == due
  assert row.turn == (1,) * 3 + (0,) * 4 + (2,) * 2 + (0,) * 4 + (3,) * 2
  assert row.logp == (-1, -2, -3, 0, 0, 0, 0, -1, -2, 0, 0, 0, 0, -1, -2)
  assert (row.state, row.count, row.truncated) == (('ab', 'c', 'd'), 3, False)
  # What the policy saw at each turn is all that came before, id by id.
  first = encode('q\n')
  assert asked == [first, first + due[:7], first + due[:13]]


def test_the_environment_ends_a_row():
  row, asked = played(['ab$', 'c$'], replies=('no', None))
  assert row.over and not row.truncated and row.count == 2
  assert row.turn[-2:] == (2, 2) and len(asked) == 2


def test_a_turn_without_a_stop_token_is_closed_for_the_next():
  """The stop token that closes it is not the policy's: mask 0."""
  row, _ = played(['ab', 'c$'], turn_length=2, replies=('no', None))
  assert list(row.tokens) == [*encode('ab'), EOS, *encode('\nno\nc'), EOS]
  assert row.turn == (1, 1, 0, 0, 0, 0, 0, 2, 2)


@pytest.mark.parametrize(
  'room, tokens, truncated',
  [
    (2, 2, True),  # In the middle of a turn.
    (3, 3, True),  # Behind a turn: no room for the reply.
    (7, 3, True),  # Room for the reply, but for no token after it.
    (8, 8, True),  # One token more, no stop token.
    (9, 9, False),
  ],
)
def test_a_row_out_of_room_is_truncated(room, tokens, truncated):
  """'ab<eos>' + '\\nno\\n' + 'c<eos>' is 3 + 4 + 2 tokens."""
  row, _ = played(['ab$', 'c$'], room=room, replies=('no', None))
  assert (len(row.tokens), row.truncated, row.over) == (tokens, truncated, True)
  assert row.turn[-1] > 0  # Never ends in a reply.


def test_a_batch_by_hand():
  """Masks, turns and log-probs as they were; parts of the score in extra."""
  partner, _ = scripted(['ab$', 'c'], turns=2, room=12, turn_length=3)
  rows = [episodes.begin(partner, RECORD, i) for i in range(4)]
  how = functools.partial(options, length=3)
  rows = episodes.play(partner, {}, rows, how, jax.random.key(0), 0, 0)
  reward = lambda seen: (np.arange(4.0), {'place': np.arange(4.0)})
  drawn = episodes.scored(partner, rows, range(6, 8), how, reward, (0.0, 1.0))
  batch = drawn.batch
  types.check(batch)
  assert batch.prompt_id.tolist() == [6, 7]
  # Whenever a question comes again its bin is looked up by this.
  assert batch.extra['question'].tolist() == [RECORD.id] * 2
  assert (
    batch.completions[1, 0].tolist()
    == [*encode('ab'), EOS, *encode('\nno\nc')] + [0] * 4
  )
  assert batch.extra['turn'][0, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0]
  assert batch.mask[0, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
  assert batch.behavior_logp[0, 0, :9].tolist() == [-1, -2, -3, 0, 0, 0, 0, -1, 0]
  assert batch.length.tolist() == [[8, 8], [8, 8]]
  assert batch.reward.tolist() == [[0, 1], [2, 3]]
  assert batch.extra['n'].tolist() == [[7, 7], [7, 7]]
  # By hand: four tokens of the policy's in each of four rows of two turns.
  due = {'tokens': 16, 'length': 4, 'turns': 2, 'rollouts': 4, 'episode/n': 7}
  assert {k: drawn.metrics[k] for k in due} == due


# ---- Chat templates ------------------------------------------------------------------

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
  "'<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
  {'role': 'assistant', 'content': 'ab'},
  {'role': 'user', 'content': 'no'},
  {'role': 'assistant', 'content': 'c'},
]


def chatml():
  tokenizer = pretrained.load('tiny').tokenizer
  tokenizer.add_special_tokens(
    {'additional_special_tokens': ['<|im_start|>', '<|im_end|>']}
  )
  tokenizer.chat_template = CHATML
  return tokenizer


@pytest.mark.parametrize('name', ['tiny', 'chatml'])
def test_an_episodes_ids_are_those_of_the_same_stored_conversation(name):
  """AT-35: with the same mask, whether or not the template closes a turn."""
  tokenizer = chatml() if name == 'chatml' else TOKENIZER
  stops = pretrained.stop_ids(tokenizer)
  want = chat.coder(tokenizer, stops).completion(ASK, TALK)
  stop = stops[-1]
  say = lambda text: [*tokenizer.encode(text, add_special_tokens=False), stop]
  between = chat.replier(tokenizer, stops)
  reply = between('no', say('ab'))
  assert [*say('ab'), *reply, *say('c')] == want.tokens
  assert [1] * 3 + [0] * len(reply) + [1] * 2 == want.mask
  # A turn without its stop token gets the one of the template.
  assert between('no', say('ab')[:-1]) == [stop, *reply]


def test_replies_follow_another_stop_token_too():
  """After <eos>, which ends a turn as well, the template's own is not repeated."""
  tokenizer = chatml()
  stops = pretrained.stop_ids(tokenizer)
  between = chat.replier(tokenizer, stops)
  assert len(stops) == 2
  assert between('no', [5, stops[0]]) == between('no', [5, stops[1]])


# ---- Environments --------------------------------------------------------------------


def through(env, record, *words):
  """The replies to these words, and the score."""
  state, replies = env.start(record)[1], []
  for said in words:
    state, reply = env.step(state, said)
    replies.append(reply)
  return replies, *env.score(state)


def test_guess_number_by_hand():
  env = guess_number(low=1, high=5).env
  record = Record(0, ASK, '4', {})
  replies, score, parts = through(env, record, 'is it 2?', '5', '4')
  assert replies == ['higher', 'lower', None]
  assert (score, parts) == (1.0, {'right': 1.0, 'guesses': 3.0})
  # 2 is off by 2 of 4: half of a half. What is no number of the range gets nothing.
  assert through(env, record, '2')[1] == 0.25
  assert through(env, record, '4000')[:2] == (['?'], 0.0)
  assert through(env, record, 'two')[:2] == (['?'], 0.0)
  assert through(env, record, '2', 'two')[1] == 0.0


def test_guess_number_asks_for_every_number():
  task = guess_number(low=1, high=5)
  assert [r.answer for r in task.test] == list('12345')
  assert {task.train(i).answer for i in range(100)} == set('12345')
  assert task.train(3) == guess_number(low=1, high=5).train(3)
  with pytest.raises(InputError, match='low below high'):
    guess_number(low=3, high=3)


LETTERS = dict(name='letters', test_size=4)


def test_two_attempts_by_hand():
  task = two_attempts(of=LETTERS, prompt='again')
  record = Record(0, ASK, 'a', {})
  replies, score, parts = through(task.env, record, 'ab', 'aa')
  assert replies == ['again', None] and score == 1.0
  assert parts == dict(first=0.5, second=1.0, mended=1.0, spoiled=0.0)
  assert through(task.env, record, 'aa', 'b')[2] == dict(
    first=1.0, second=0.0, mended=0.0, spoiled=1.0
  )
  # One attempt alone is worth nothing.
  assert through(task.env, record, 'aa')[1] == 0.0


def test_calculator_by_hand():
  of = dict(name='arithmetic', low=0, high=9, test_size=10)
  task = calculator(of=of)
  record = Record(0, [{'role': 'user', 'content': '2*3+1?'}], '7', {})
  words = ('<calc>2*3</calc>', 'x <calc>7/0</calc>', '<calc>(1+2)/6</calc>', 'It is 7')
  replies, score, parts = through(task.env, record, *words)
  assert replies == ['6', 'error', '1/2', None]
  assert (score, parts) == (1.0, {'calls': 3.0})
  assert through(task.env, record, '</calc>8<calc>')[:2] == ([None], 0.0)
  for hostile in ('9**9**9', '__import__("os")', '1' * 999, '(' * 999):
    assert through(task.env, record, f'<calc>{hostile}</calc>')[0] == ['error']
  asked = task.env.start(record)[0][-1]['content']
  assert asked.startswith('2*3+1? To compute')
  assert record.messages[-1]['content'] == '2*3+1?'  # Nothing changes in place.


def test_the_environments_score_is_a_reward():
  sample = Sample('q', 'a', 1, False, RECORD, 0.5, {'first': 0.25})
  assert environment()(sample) == 0.5
  assert environment(part='first')(sample) == 0.25
  with pytest.raises(InputError, match=r"part='second'.*first"):
    environment(part='second')(sample)


# ---- Real runs -----------------------------------------------------------------------


@functools.cache
def run(**sections):
  return assemble.assemble(config(**{k: dict(v) for k, v in sections.items()}))


def test_log_probs_are_those_of_one_pass_over_the_conversation():
  """The policy's tokens are conditioned on the replies, as sampled and as trained."""
  there = run()
  batch = there.source(there.state, 0).batch
  params = there.state.params['policy']
  decoder = Decoder(pretrained.load('tiny').config)
  see = forward.make_forward({'policy': decoder})
  logp = jax.jit(lambda x: see({'policy': params}, {}, x, ('logp',)).logp)(batch)
  inside = batch.mask > 0
  np.testing.assert_allclose(
    np.where(inside, logp, 0), batch.behavior_logp, atol=2e-5, rtol=0
  )
  assert (batch.extra['turn'].max(-1) == 2).any()
  # Whole conversations, each in one row from its first token on.
  b, g, t = batch.completions.shape
  start, width = batch.prompt_length, batch.prompts.shape[1] + t
  rows = np.zeros((b, g, width), np.int32)
  for i in range(b):
    rows[i, :, : start[i]] = batch.prompts[i, : start[i]]
    rows[i, :, start[i] : start[i] + t] = batch.completions[i]
  at = np.broadcast_to(np.arange(width, dtype=np.int32), rows.shape)
  hidden = jax.jit(decoder.apply)({'params': params}, rows, at, causal(width))[0]
  logits = logprobs.logits(hidden.reshape(b * g * width, -1), head_kernel(params), 0.0)
  whole = np.asarray(jax.nn.log_softmax(logits)).reshape(b, g, width, -1)
  for i, j, k in zip(*np.nonzero(batch.mask)):
    said = whole[i, j, start[i] + k - 1, batch.completions[i, j, k]]
    assert float(said) == pytest.approx(batch.behavior_logp[i, j, k], abs=2e-5)


def test_episodes_depend_on_the_state_and_the_step_alone():
  """Twice the same; in slots too; other steps and other turns draw otherwise."""
  there = run()
  first, again = (there.source(there.state, 3).batch for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  slots = run(source=(('slots', 3),))
  some = slots.source(slots.state, 3).batch
  np.testing.assert_array_equal(some.completions, first.completions)
  other = there.source(there.state, 4).batch
  assert (other.completions[..., 0] != first.completions[..., 0]).any()
  # Rows of one prompt and turns of one row have draws of their own.
  said = first.completions[..., 0]
  assert (said[:, 0] != said[:, 1]).any()
  second = [row[turn == 2][:1] for row, turn in zip(*flat(first))]
  assert any(len(x) and x[0] != row[0] for x, row in zip(second, flat(first)[0]))


def flat(batch):
  t = batch.completions.shape[-1]
  return batch.completions.reshape(-1, t), batch.extra['turn'].reshape(-1, t)


def test_an_episode_of_one_turn_is_a_completion():
  """Of groups of one, sampled with the key of the step's first turn."""
  one = dict(group=1, max_length=4)
  plain = config('reinforce', source=one | dict(name='on_policy'))
  single = config('reinforce', source=one | dict(turns=1, turn_length=0))
  plain.rewards = single.rewards = dict(one=dict(name='runs.early', weight=1.0))
  want, got = assemble.assemble(plain), assemble.assemble(single)
  found = got.source(got.state, 0)
  turn = want.state.replace(key=jax.random.fold_in(want.state.key, 0))
  due = want.source(turn, 0)
  names = ('prompts', 'completions', 'length', 'mask', 'truncated', 'behavior_logp')
  for name in (*names, 'reward', 'prompt_id', 'temperature', 'prompt_length'):
    x, y = (vars(drawn.batch)[name] for drawn in (found, due))
    if name == 'prompts':  # There is room for a conversation.
      x, y = (a[:, : due.batch.prompt_length.max()] for a in (x, y))
    np.testing.assert_allclose(x, y, atol=1e-6, rtol=0, err_msg=name)
  same = set(due.metrics) - {'seconds/rollout', 'seconds/reward'}
  assert {k: found.metrics[k] for k in same} == {k: due.metrics[k] for k in same}


# ---- Every method passes over replies ------------------------------------------------


def free(params, frozen, batch, needs):
  """The sensors of a policy, a critic and a reward model that see one token each."""
  table = lambda tree, role: jax.nn.log_softmax(tree[role], axis=-1)[0]
  reads = {
    'logp': lambda: table(params, 'policy'),
    'mixed_logp': lambda: table(params, 'policy'),
    'ref_logp': lambda: table(frozen, 'ref'),
    'dpo_logp': lambda: table(frozen, 'dpo'),
    'prm_logp': lambda: table(params, 'prm'),
    'ema_logp': lambda: table(frozen, 'ema'),
    'teacher_logp': lambda: table(frozen, 'teacher'),
    'divergence': lambda: (table(params, 'policy') - table(frozen, 'teacher')) ** 2,
    'value': lambda: params['critic'],
    'cost_value': lambda: params['cost_critic'],
    'twin_value': lambda: params['twin_critic'],
    'entropy': lambda: jnp.square(params['policy'][0]),
    'collision': lambda: table(params, 'policy') - jnp.square(params['policy'][0]),
    'odds': lambda: table(params, 'policy') - params['policy'][0] ** 3,
    'ref_divergence': lambda: (table(params, 'policy') - table(frozen, 'ref')) ** 2,
  }
  found = {n: reads[n]()[batch.completions] for n in needs if n in reads}
  of_tokens = ('score', 'token_score', 'attributes', 'members', 'own')
  of_tokens += ('asked', 'embedding')
  rows = batch.replace(aux=None)
  told = toy.forward(params, frozen, rows, [n for n in needs if n in of_tokens])
  found |= {n: vars(told)[n] for n in needs if n in of_tokens}
  if aux := tuple(n.removeprefix('aux/') for n in needs if n.startswith('aux/')):
    found['aux'] = free(params, frozen, batch.aux, aux)
  return Outputs(**found)


AT = np.array([0, 1, 4, 5, 7])  # Where the policy's five slots go among eight.
REPLY = [2, 3, 6]


def with_replies(batch, at=AT):
  """Three more slots, that the policy did not choose, of wild numbers, in every row."""
  shape = (*batch.mask.shape[:2], 8)
  spread = lambda x, blank: jnp.full(shape, blank, x.dtype).at[..., at].set(x)
  return batch.replace(
    completions=spread(batch.completions, 3),
    mask=spread(batch.mask, 0),
    length=jnp.asarray(at)[batch.length - 1] + 1,  # Ends with the policy's last.
    behavior_logp=spread(jnp.zeros_like(batch.mask), jnp.nan),
    extra={
      k: spread(x, 0) if x.shape == batch.mask.shape else x
      for k, x in batch.extra.items()
    },
  )


def without_replies(batch):
  """The same with the three behind the policy's own."""
  return with_replies(batch, np.arange(toy.T))


@every_method
def test_replies_change_nothing(name):
  """AT-18: parameters and metrics of the same tokens with and without replies."""
  step = jax.jit(make_update_step(free, toy.SGD, method(name)))
  batches = with_replies(toy.batch()), without_replies(toy.batch())
  laid = toy.contrasted if name == 't_reg' else lambda batch: batch
  got, want = (step(start(name), laid(batch)) for batch in batches)
  check_same(got, want)
  moved = jax.tree.map(lambda x, y: abs(x - y).max(), got[0].params, start(name).params)
  assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize('name', ['ppo', 'ma_rlhf', 'rto', 'prime', 'reinforce_pp'])
def test_advantages_by_token_pass_over_replies(name):
  """AT-18: of the policy's tokens the same, of replies none."""
  m, state = method(name), start(name)
  found = []
  for made in (without_replies, with_replies):
    batch = clean(made(toy.batch()))
    batch = observe(free, state, batch, m.prepare_needs)
    found.append(m.prepare(state, batch)[1])
  close(found[1].advantage[..., AT], found[0].advantage[..., : toy.T])
  np.testing.assert_array_equal(found[1].advantage[..., REPLY], 0.0)
  if found[0].target is not None:
    target = [x.target * x.mask for x in found]
    close(target[1][..., AT], target[0][..., : toy.T])


@pytest.mark.parametrize('name', ['grpo', 'ppo', 'kto'])
def test_rows_with_replies_pack(name):
  """Pieces of whole groups with what the policy did not choose in them."""
  step = jax.jit(make_update_step(toy.forward, toy.SGD, method(name)))
  rows = jax.tree.map(np.asarray, with_replies(toy.batch()))
  rows = rows.replace(behavior_logp=None)
  laid = packing.pack(rows, 2 * (2 * 8 + toy.P))
  check_same(step(start(name), laid), step(start(name), rows))


# ---- Configs -------------------------------------------------------------------------


def test_held_out_episodes_are_greedy_and_scored_by_the_environment():
  there = run()
  held, again = there.evaluate(there.state), there.evaluate(there.state)
  assert held == again and len(held.samples) == 3  # 1, 2 and 3 are asked for once.
  scores = [row['reward'] for row in held.samples]
  got = held.metrics
  assert got['eval/score'] == pytest.approx(np.mean(scores))
  assert got['eval/accuracy'] == pytest.approx(got['eval/episode/right'])
  assert got['eval/turns'] == got['eval/episode/guesses']


def test_the_groups_drawn_again_keep_their_turns():
  """PF-PPO's draw moves rows of extra with their completions."""
  there = run(source=(('filter', 'best_worst'),))
  batch = there.source(there.state, 0).batch
  np.testing.assert_array_equal(batch.extra['turn'] > 0, batch.mask > 0)


def test_a_config_says_what_it_lacks():
  with pytest.raises(InputError, match='answered in one turn'):
    c = config()
    c.task = dict(name='letters', test_size=4)
    assemble.assemble(c)
  with pytest.raises(InputError, match=r'source\.greedy'):
    assemble.assemble(config(source=dict(greedy=True)))
  with pytest.raises(InputError, match=r'source\.turns'):
    assemble.assemble(config(source=dict(turns=0)))


# ---- Credit by turn ------------------------------------------------------------------


def test_refuel_by_hand():
  # Turn 1: h = (.5, -.5); turn 2 does not count. R = (2, 1), eta 2: (1 - 2 * 1)^2.
  old = jnp.full((1, 2, 2), -2.0)
  logp = old + jnp.array([[[0.5, 0.9], [-0.5, 0.4]]])
  extra = {'turn': jnp.array([[[1, 2], [1, 2]]])}
  fields = dict(reward=row(2, 1), old_logp=old, extra=extra)
  check(loss('refuel', {'eta': 2.0}, Outputs(logp=logp), **fields), 1.0)


def test_refuel_of_one_turn_is_rebel():
  batch = off_policy(toy.batch())
  single = batch.replace(extra={'turn': batch.mask.astype(jnp.int32)})
  want = gradient(build.method('rebel', eta=0.7, beta=0.0), batch)
  close(gradient(build.method('refuel', eta=0.7), single), want)
  several = gradient(build.method('refuel', eta=0.7), batch)
  assert abs(several - want).max() > 1e-2


def test_refuel_trains_no_later_turn():
  """Tokens of turn 2 alone say which bigrams may not move: none but those of turn 1."""
  batch = toy.batch()
  where = (batch.extra['turn'] == 1)[..., None, None]
  pair = jax.nn.one_hot(toy.previous(batch), toy.V)[..., :, None]
  seen = (where * pair).sum((0, 1, 2))[:, 0]
  moved = abs(gradient(build.method('refuel'), off_policy(batch))).sum(-1)
  assert ((moved > 0) <= (seen > 0)).all() and (moved > 0).any()


ATTEMPTS = dict(
  old_logp=jnp.array([[[-1.0, -2.0], [-3.0, -4.0]]]),
  ref_logp=jnp.array([[[-2.0, -2.0], [-3.0, -6.0]]]),
  reward=row(0, 1),
  extra={'turn': jnp.array([[[1, 2], [1, 2]]]), 'first': row(1, 0)},
)


def test_score_rl_by_hand():
  """Attempts of a token, r_1 = (1, 0), r_2 = (0, 1), log pi / ref (1, 0), (0, 2)."""
  out = Outputs(logp=ATTEMPTS['old_logp'])
  # Stage 2: r_2 and its bonus are (-10, 11), with r_1 (-9, 11): less the other's
  # (-20, -21) and (20, 21), less KL to come (.5, 0) and (1, 1).
  # -((-20.5 * -1 - 21 * -2) + (19 * -3 + 20 * -4)) / 2.
  check(loss('score_rl', {'beta1': 0.5}, out, **ATTEMPTS), 37.25)
  # Stage 1: (-1, -1) and (1, 1) less (2, 0) and (1, 1): -((-3 * -1 - 1 * -2) + 0) / 2.
  how = dict(stage=1, beta1=0.5, beta2=1.5)
  check(loss('score_rl', how, out, **ATTEMPTS), -2.5)


def test_score_rl_without_a_first_attempt_is_rloo():
  batch = toy.batch(g=3)
  none = batch.extra | {'first': jnp.zeros((toy.B, 3))}
  got = build.method('score_rl', alpha=0.0, beta1=0.0)
  want = gradient(build.method('rloo', beta=0.0), batch)
  close(gradient(got, batch.replace(extra=none)), want)


OUTCOMES = np.array(list(itertools.product(range(toy.V), repeat=2)))  # Both attempts.
FIRST, SECOND = np.eye(toy.V)[0], np.arange(25.0).reshape(5, 5) % 3  # Their rewards.


def objective(table, stage, alpha, beta1, beta2):
  """SCoRe's, enumerated, of attempts of one token after the prompt '0'."""
  logp, ref = (jax.nn.log_softmax(x) for x in (table, toy.state().frozen['ref']))
  p, kl = jnp.exp(logp), jnp.sum(jnp.exp(logp) * (logp - ref), -1)
  joint = p[0][:, None] * p
  r1, r2 = FIRST[:, None], SECOND
  if stage == 1:
    return jnp.sum(joint * r2) - (beta1 + beta2) * kl[0] - beta1 * jnp.sum(p[0] * kl)
  paid = r1 + r2 + alpha * (r2 - r1)
  return jnp.sum(joint * paid) - beta1 * (kl[0] + jnp.sum(p[0] * kl))


@pytest.mark.parametrize('stage', [1, 2])
def test_score_rl_has_the_gradient_of_its_objective(stage):
  """Over all pairs of episodes, each as likely as the policy has it."""
  how = dict(stage=stage, alpha=1.5, beta1=0.3, beta2=0.8)
  pairs = OUTCOMES[np.array(list(itertools.product(range(25), repeat=2)))]
  n, state = len(pairs), toy.state()
  batch = types.make_batch(
    np.zeros((n, 1), np.int32), np.ones(n, np.int32), pairs, np.full((n, 2), 2)
  ).replace(
    reward=SECOND[pairs[..., 0], pairs[..., 1]].astype(np.float32),
    extra={
      'turn': np.broadcast_to([1, 2], pairs.shape),
      'first': FIRST[pairs[..., 0]].astype(np.float32),
    },
  )
  batch = jax.tree.map(jnp.asarray, batch)
  m = build.method('score_rl', **how)
  batch = m.prepare(state, observe(toy.forward, state, batch, m.prepare_needs))[1]
  chance = jnp.exp(batch.old_logp.sum((1, 2)))
  batch = weigh(batch, m).replace(
    weight=jnp.broadcast_to(chance[:, None, None] / 2, pairs.shape)
  )

  def value(table):
    out = toy.forward({'policy': table}, {}, batch, ('logp',))
    return m.loss(out, batch)[0]

  table = state.params['policy']
  want = -jax.grad(objective)(table, **how)
  close(jax.grad(value)(table), want, 1e-5)


def test_methods_of_turns_say_what_they_lack():
  plain = toy.batch().replace(extra={})
  with pytest.raises(InputError, match='episode_pairs'):
    update(build.method('refuel'), plain)
  with pytest.raises(InputError, match='two_attempts'):
    update(build.method('score_rl'), plain)
  with pytest.raises(InputError, match='give 1 or 2'):
    build.method('score_rl', stage=3)


def test_where_a_pair_parts():
  """Before turn 3 of three, with what was said until then as the prompt."""
  partner, _ = scripted(['ab$', 'c$', 'd$'])
  key = jax.random.key(0)
  start = episodes.begin(partner, RECORD, 5)._replace(turns=2)
  (done,) = episodes.play(partner, {}, [start], options, key, 0, 0)
  found = episodes.forked(partner, done, 1)
  reply = encode('\nno\n')
  before = [*encode('q\nab'), EOS, *reply, *encode('c'), EOS, *reply]
  assert found.prompt == before and found.tokens == ()
  assert (found.state, found.turns, found.count) == (('ab', 'c'), 1, 0)
  assert found.room == 20 - (len(before) - 2)
  assert [episodes.forked(partner, done, i).seed for i in (0, 1)] == [10, 11]


@pytest.mark.parametrize('how', [dict(replies=('no', None)), dict(room=8)])
def test_what_is_over_parts_at_its_last_turn(how):
  """Ended by the environment, or for want of room, in turn 2."""
  partner, _ = scripted(['ab$', 'c$', 'd$'], **how)
  rows = [episodes.begin(partner, RECORD, 0)]
  (done,) = episodes.play(partner, {}, rows, options, jax.random.key(0), 0, 0)
  assert done.over
  found = episodes.forked(partner, done, 0)
  assert found.prompt == [*encode('q\nab'), EOS, *encode('\nno\n')]
  assert (found.state, found.turns) == (('ab',), 2)


PAIRS = dict(name='episode_pairs', prompts=8, turns=3)


def test_pairs_share_what_was_said_before():
  """Turns 1, 2 and 3 of three are drawn; every group's reward is of its own ends."""
  c = config('refuel', source=PAIRS)
  there = assemble.assemble(c)
  sizes, again = [], there.source(there.state, 1).batch
  for step in range(2):
    drawn = there.source(there.state, step)
    batch = drawn.batch
    types.check(batch)
    # Two in six of what the two share after '1-3\n' are the policy's, sampled once.
    shared = (batch.prompt_length - 4).sum() / 3
    assert drawn.metrics['tokens'] == batch.mask.sum() + shared
    taken = batch.extra['turn'].max(-1)
    assert batch.completions.shape[:2] == (8, 2) and taken.min() == 1
    assert (batch.extra['turn'][..., 0] == 1).all()  # What follows the prompt is said.
    sizes += batch.prompt_length.tolist()
    # What the two say at once differs: draws of their own.
    assert (batch.completions[:, 0] != batch.completions[:, 1]).any()
  jax.tree.map(np.testing.assert_array_equal, batch, again)
  # '1-3\n' alone; with two characters, <eos> and '\n?\n' behind it once, or twice.
  assert set(sizes) >= {4, 4 + 6} and max(sizes) > 4 + 6
  text = decode(batch.prompts[sizes[8:].index(max(sizes[8:]))])
  assert text.startswith('1-3\n') and text.count('?') >= 1


def test_pairs_are_of_two():
  with pytest.raises(InputError, match='Set it to 2'):
    assemble.assemble(config('refuel', source=PAIRS | dict(group=4)))


def test_packed_episodes_move_the_policy_as_padded_ones():
  """The decoder's own packing, of rows with replies."""
  found = []
  for pack in (0, 64):
    there = assemble.assemble(config(plan=dict(pack=pack)))
    batch = sharding.put_batch(there.source(there.state, 0).batch, there.mesh)
    assert (batch.layout is not None) == bool(pack)
    metrics = there.update(there.state, batch)[1]
    assert (np.asarray(batch.extra['turn']).max(-1) == 2).any()
    assert float(metrics['max/mismatch']) < 1e-4
    found.append((metrics['gain'], metrics['grad_norm/policy'], metrics['mismatch_k3']))
  np.testing.assert_allclose(*found, atol=1e-5)
  assert found[0][1] > 0


@pytest.mark.parametrize(
  ('method', 'option'),
  [
    ('grpo', dict(pool=8)),
    ('grpo', dict(hints=2)),
    ('grpo_process', dict(steps='a')),
    ('grpo_care', dict(accuracy='score', answer='answer_tag')),
  ],
)
def test_what_episodes_would_ignore_is_refused(method, option):
  with pytest.raises(InputError, match=f'takes no .*{next(iter(option))}'):
    runs.assembled(config(method, source=option))
