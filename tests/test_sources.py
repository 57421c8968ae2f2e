"""Batches: which rows, in what order, and that their ids are those sampled."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest
import runs

from jaxrl_llm import sources, types
from jaxrl_llm.data import chat, examples, order
from jaxrl_llm.data.examples import Example
from jaxrl_llm.models import pretrained
from jaxrl_llm.rollout import draw
from jaxrl_llm.sources import Drawn, Text
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError, Rollout

STOP = 96  # <eos>, after the 95 printable characters and newline.
TOKENIZER = pretrained.load('tiny').tokenizer


def text(max_prompt=8):
  return Text(
    chat.coder(TOKENIZER, [STOP]).prompt,
    lambda ids: TOKENIZER.decode(ids, skip_special_tokens=True),
    max_prompt,
  )


def ask(content):
  return [{'role': 'user', 'content': content}]


# ---- on_policy -----------------------------------------------------------------------


def test_the_ids_trained_are_the_ids_sampled():
  """AT-35: no id passes through text, not even one that text would not give back."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 104, (2, 3, 4)).astype(np.int32)  # Reserved ids among them.
  length = np.array([[4, 1, 2], [3, 4, 4]], np.int32)
  asked = {}

  def sample(params, prompts, prompt_length, prompt_id, options, key, version):
    asked.update(prompts=prompts, length=prompt_length, key=key, version=version)
    ones = np.ones((2, 3), np.float32)
    return Rollout(
      tokens=tokens,
      length=length,
      prompt_id=prompt_id,
      behavior_logp=-rng.random((2, 3, 4)).astype(np.float32),
      temperature=ones * options.temperature[:, None],
      kept_mass=np.ones((2, 3, 4), np.float32),
      stop_reason=(length < 4).astype(np.int32),
      version=version,
    )

  seen = []

  def reward(rows):
    seen.extend(rows)
    return np.arange(6.0), {'place': np.arange(6.0)}

  question = sources.Ask(
    sample=sample,
    text=text(),
    record=lambda i: Record(i, ask(f'q{i}'), 'a', {}),
    reward=reward,
    options=functools.partial(draw.options, max_length=4, temperature=0.5),
    policy=lambda state: state.params['policy'],
  )
  source = sources.on_policy(question, prompts=2)
  state = types.State(
    step=0,
    applied=0,
    skipped=0,
    params={'policy': {}},
    opt_state=(),
    frozen={},
    extra={},
    key=jax.random.key(3),
  )
  drawn = source(state, 7)
  batch = drawn.batch
  assert batch.completions.tobytes() == tokens.tobytes()
  assert batch.length.tolist() == length.tolist()
  assert batch.prompts.tobytes() == asked['prompts'].tobytes()
  # Step 7 of 2 prompts takes records 14 and 15; 'q14\n' has one id per character.
  ids = TOKENIZER.convert_tokens_to_ids
  assert asked['prompts'].tolist() == [
    [*ids(list('q14\n')), 0, 0, 0, 0],
    [*ids(list('q15\n')), 0, 0, 0, 0],
  ]
  assert asked['length'].tolist() == [4, 4]
  assert batch.prompt_id.tolist() == [14, 15]
  assert asked['key'] == jax.random.fold_in(state.key, 7)
  # The mask covers the length, the stop token included; full rows are truncated.
  assert batch.mask.sum(-1).tolist() == length.tolist()
  assert batch.truncated.tolist() == [[1, 0, 0], [0, 1, 1]]
  assert batch.reward.tolist() == [[0, 1, 2], [3, 4, 5]]
  assert batch.temperature.tolist() == [[0.5] * 3] * 2
  assert [s.record.id for s in seen] == [14, 14, 14, 15, 15, 15]
  assert [s.tokens for s in seen] == [4, 1, 2, 3, 4, 4]
  # By hand: 18 tokens, 6 rollouts, no group tied, std of (0, 1, 2) is sqrt(2 / 3).
  due = dict(tokens=18, rollouts=6, length=3, truncated=0.5, groups_tied=0, reward=2.5)
  assert {k: drawn.metrics[k] for k in due} == due
  assert drawn.metrics['reward_std'] == pytest.approx((2 / 3) ** 0.5)
  assert drawn.metrics['reward/place'] == 2.5


def test_only_one_bos(tmp_path):
  """A template that writes BOS and a tokenizer that would add one: still one."""
  from tokenizers import processors

  tokenizer = pretrained.load('tiny').tokenizer
  bos = tokenizer.convert_tokens_to_ids('<reserved_0>')
  tokenizer.bos_token = '<reserved_0>'
  tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
    single='<reserved_0> $A', special_tokens=[('<reserved_0>', bos)]
  )
  tokenizer.chat_template = '{{ bos_token }}' + tokenizer.chat_template
  assert tokenizer('a').input_ids.count(bos) == 1  # The tokenizer does add one.
  ids = pretrained.encode_chat(tokenizer, ask('ab'))
  assert ids == [bos, *tokenizer.convert_tokens_to_ids(['a', 'b', '\n'])]


def test_log_probs_that_are_not_finite_are_refused():
  """AT-36: by step and count, before anything is learned from them."""
  logp = np.zeros((2, 3, 4), np.float32)
  logp[1, 0, 2], logp[1, 2, 0] = np.nan, -np.inf
  fields = {n: np.zeros((2, 3)) for n in ('length', 'temperature', 'stop_reason')}
  rollout = Rollout(
    tokens=logp, behavior_logp=logp, kept_mass=logp, prompt_id=0, version=0, **fields
  )
  with pytest.raises(InputError, match=r'Step 8: .* in 2 of 6 completions'):
    sources.check_finite(rollout, 7)


def test_trimmed_of_what_no_row_needs():
  """To quarters of the room: 3 of 8 to 4, 5 of 8 to 6; every per-token field."""
  batch = types.make_batch(
    np.ones((2, 8), np.int32),
    np.array([3, 1], np.int32),
    np.ones((2, 1, 8), np.int32),
    np.array([[5], [2]], np.int32),
  )
  said = dict(behavior_logp=batch.mask, kept_mass=batch.mask, keep_within=batch.mask)
  batch = batch.replace(**said)
  got = sources.trimmed(batch)
  types.check(got)
  assert got.prompts.shape == (2, 4) and got.completions.shape == (2, 1, 6)
  assert got.mask.sum() == batch.mask.sum() == 7


# ---- until_mixed ---------------------------------------------------------------------


def scripted(rewards):
  """A source whose draw i has the rewards of line i; prompt ids count up."""

  def source(state, step):
    reward = np.array(rewards[step], np.float32)
    b, g = reward.shape
    batch = types.make_batch(
      np.zeros((b, 2), np.int32),
      np.ones(b, np.int32),
      np.zeros((b, g, 3), np.int32),
      np.full((b, g), 3, np.int32),
    )
    batch = batch.replace(
      reward=reward, prompt_id=np.arange(step * b, (step + 1) * b, dtype=np.int32)
    )
    timing = {'seconds/rollout': 1.0, 'seconds/reward': 0.5}
    return Drawn(batch, sources.describe(batch, {}) | timing, [])

  return source


TIED, MIXED = [1, 1], [0, 1]


def test_only_mixed_groups_are_kept_and_all_are_counted():
  """Draws of 2 groups: ids 0 (tied), 1, 2 (tied), 3; the third draw is not needed."""
  source = sources.until_mixed(
    scripted([[TIED, MIXED], [TIED, MIXED], [MIXED, MIXED]]), prompts=2, limit=3
  )
  drawn = source(None, 0)
  assert drawn.batch.prompt_id.tolist() == [1, 3]
  assert drawn.batch.reward.tolist() == [MIXED, MIXED]
  # 2 draws of 2 groups of 2 completions of 3 tokens.
  due = {'rollouts': 8, 'tokens': 24, 'seconds/rollout': 2, 'seconds/reward': 1}
  assert {k: drawn.metrics[k] for k in due} == due
  assert drawn.metrics['groups_tied'] == 0.5  # Of those drawn, not of those kept.
  assert drawn.metrics['reward'] == 0.75


def test_a_group_is_mixed_by_what_is_right():
  """A penalty for length sets wrong answers apart, and teaches nothing of the task."""
  plain = scripted([[[-0.5, 0], [-0.5, 1]]])

  def source(state, step):
    found = plain(state, step)
    right = (found.batch.reward == 1).astype(np.float32)
    return found._replace(batch=found.batch.replace(extra={'accuracy': right}))

  drawn = sources.until_mixed(source, prompts=2, limit=1)(None, 0)
  assert drawn.batch.prompt_id.tolist() == [1, 0]


def test_tied_groups_fill_up_after_the_limit():
  """Limit 2: step 1 takes draws 2 and 3, and has but one mixed group, id 6."""
  script = [None, None, [TIED, TIED], [MIXED, TIED], [MIXED, MIXED]]
  drawn = sources.until_mixed(scripted(script), prompts=2, limit=2)(None, 1)
  assert drawn.batch.prompt_id.tolist() == [6, 4]
  assert drawn.metrics['rollouts'] == 8


# ---- dataset -------------------------------------------------------------------------


CODER = chat.coder(TOKENIZER, (STOP,))


def dataset(n, *, prompts=4, seed=1, share=slice(None)):
  """n examples, each 'a' and the stop token: of 2 tokens."""
  encode = examples.Encoder(CODER, max_prompt=4, max_length=3)
  return sources.dataset(
    size=n,
    read=lambda i: encode.read(Example(ask('x'), ('a',), (1.0,))),
    encode=encode,
    prompts=prompts,
    index=order.shuffled([(n, 1.0)], prompts, seed),
    share=share,
  )


def test_each_row_once_per_epoch_in_another_order():
  """AT-59: 10 rows by 4: five batches are two epochs, the third batch is in both."""
  source = dataset(10, seed=1)
  drawn = [source(None, step) for step in range(5)]
  ids = np.concatenate([d.batch.prompt_id for d in drawn])
  first, second = ids[:10], ids[10:]
  assert sorted(first) == sorted(second) == list(range(10))
  assert (first != second).sum() > 5
  assert [d.metrics['epoch'] for d in drawn] == [0, 0.4, 0.8, 1.2, 1.6]
  assert drawn[0].metrics['tokens'] == 8


def test_a_step_depends_on_nothing_before_it():
  one = dataset(10, seed=1)
  wanted = [one(None, step).batch.prompt_id.tolist() for step in range(6)]
  fresh = dataset(10, seed=1)
  assert fresh(None, 5).batch.prompt_id.tolist() == wanted[5]
  assert fresh(None, 2).batch.prompt_id.tolist() == wanted[2]
  other = dataset(10, seed=2)
  assert other(None, 0).batch.prompt_id.tolist() != wanted[0]


def test_too_few_rows():
  with pytest.raises(InputError, match=r'3 rows and a batch takes 4.*source\.prompts'):
    dataset(3, seed=1)


def test_processes_share_a_batch():
  """Each reads its own rows of the batch that all agree on."""
  whole = dataset(10)(None, 3).batch
  halves = [dataset(10, share=s)(None, 3).batch for s in (slice(0, 2), slice(2, 4))]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *halves)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)


# ---- Order ---------------------------------------------------------------------------


def test_parts_are_mixed_by_weight():
  """3 : 1 of parts of 100 and 8; each part goes through all of itself, then again."""
  index = order.shuffled([(100, 3.0), (8, 1.0)], 10, seed=0)
  drawn = np.array([index(step) for step in range(40)]).ravel()
  small = drawn[drawn >= 100]
  assert len(small) == 100
  for epoch in range(12):
    assert sorted(small[8 * epoch : 8 * epoch + 8]) == list(range(100, 108))
  assert set(drawn[drawn < 100]) == set(range(100))


def test_like_lengths_come_together():
  """The same examples in a window, and each batch of neighbours in length."""
  plain = order.shuffled([(1000, 1.0)], 4, seed=0)
  size = lambda i: (i * 7919) % 50
  index = order.by_length(plain, size, seed=0)
  window = [index(s) for s in range(order.WINDOW, 2 * order.WINDOW)]
  flat = lambda batches: sorted(i for batch in batches for i in batch)
  assert flat(window) == flat([plain(s) for s in range(order.WINDOW, 2 * order.WINDOW)])
  spread = [max(map(size, b)) - min(map(size, b)) for b in window]
  assert np.mean(spread) < 3
  middles = [np.mean([size(i) for i in b]) for b in window]
  assert middles != sorted(middles)
  again = order.by_length(plain, size, seed=0)
  assert again(order.WINDOW + 5) == window[5]


def test_batches_are_drawn_ahead():
  """AT-60: two ahead, each once, whatever order they are asked in; errors when due."""
  asked, here = [], threading.get_ident()

  def source(state, step):
    assert threading.get_ident() != here
    asked.append(step)
    if step == 5:
      raise InputError('row 5')
    return step

  drawn = sources.prefetched(source)
  assert [drawn(None, step) for step in (0, 1, 2)] == [0, 1, 2]
  assert drawn(None, 3) == 3
  with pytest.raises(InputError, match='row 5'):
    drawn(None, 5)
  assert drawn(None, 0) == 0
  assert asked[:4] == [0, 1, 2, 3]


# ---- pad and encode ------------------------------------------------------------------


def test_pad():
  tokens, length = sources.pad([[5, 6], [7]], 3)
  assert tokens.tolist() == [[5, 6, 0], [7, 0, 0]]
  assert length.tolist() == [2, 1]
  with pytest.raises(InputError, match=r'4 tokens .* fit in 3.*max_prompt to 4'):
    sources.pad([[1], [1, 2, 3, 4]], 3)
  with pytest.raises(InputError, match='Prompt 1 of the batch has no tokens'):
    sources.pad([[1], []], 3)


CUTTING = examples.Encoder(CODER, max_prompt=3, max_length=4, long_prompt='cut')


def encode(*found, max_length=4, max_prompt=8, **policies):
  return examples.Encoder(
    CODER, max_prompt=max_prompt, max_length=max_length, **policies
  )(found)


def test_a_batch_is_as_wide_as_its_longest_row_in_steps():
  """Buckets of 3: prompts of 1 and 2 take 3 slots, answers of 2 and 4 take 6."""
  short, long = Example(ask('x'), ('a',), (1.0,)), Example(ask('xy'), ('abc',), (1.0,))
  found = encode(short, long, bucket=3, max_prompt=9, max_length=9).batch
  prompts = 3 * -(-int(found.prompt_length.max()) // 3)
  assert found.prompts.shape[1] == prompts < 9
  assert found.completions.shape[2] == 6
  assert encode(long, bucket=3, max_prompt=8, max_length=5).batch.mask.shape[2] == 5


def test_examples_end_in_the_stop_token_or_are_truncated():
  """'ab' and stop are 3 of 4; 'abc' and stop are 4; 'abcd' leaves no room for stop."""
  batch = encode(
    Example(ask('x'), ('ab', 'abc'), (1.0, 0.0)),
    Example(ask('yz'), ('abcd', 'd'), (0.5, -1.0)),
  ).batch
  a, b, c, d = TOKENIZER.convert_tokens_to_ids(list('abcd'))
  assert batch.completions.tolist() == [
    [[a, b, STOP, 0], [a, b, c, STOP]],
    [[a, b, c, d], [d, STOP, 0, 0]],
  ]
  assert batch.length.tolist() == [[3, 4], [4, 2]]
  assert batch.truncated.tolist() == [[0, 0], [1, 0]]
  assert batch.mask.sum(-1).tolist() == [[3, 4], [4, 2]]
  assert batch.reward.tolist() == [[1, 0], [0.5, -1]]
  assert batch.prompt_length.tolist() == [2, 3]
  assert TOKENIZER.eos_token_id == STOP


def test_examples_that_are_refused():
  good = Example(ask('x'), ('ab', 'a'), (1.0, 0.0))
  empty = Example(ask('x'), ('ab', ''), (1.0, 0.0))
  with pytest.raises(InputError, match='an assistant message is empty'):
    encode(good, empty)
  with pytest.raises(InputError, match=r'\[1, 2\] completions'):
    encode(good, Example(ask('x'), ('ab',), (1.0,)))
  with pytest.raises(InputError, match=r'prompt of 3 tokens .*source\.max_prompt to 3'):
    encode(Example(ask('xy'), ('a',), (1.0,)), max_prompt=2)
  with pytest.raises(InputError, match=r'completion of 5 tokens .*max_length to 5'):
    encode(Example(ask('x'), ('abcd',), (1.0,)), long_completion='error')
  with pytest.raises(InputError, match="long_prompt='shorten'"):
    encode(good, long_prompt='shorten')


def test_what_is_too_long_is_dropped_or_cut_and_counted():
  """AT-43. 'xyz' and newline are 4 tokens, one more than fits; 'xy' is 3, as many."""
  long, fits = (Example(ask(p), ('abcd', 'a'), (1.0, 0.0)) for p in ('xyz', 'xy'))
  found = encode(long, fits, max_prompt=3, long_prompt='drop')
  assert (found.dropped, found.cut) == (1, 1)
  assert found.batch.valid.tolist() == [[0, 0], [1, 1]]
  assert found.batch.mask.sum(-1).tolist() == [[0, 0], [4, 2]]
  found = encode(long, fits, max_prompt=3, long_prompt='cut')
  assert (found.dropped, found.cut) == (0, 2)
  y, z, end = TOKENIZER.encode('yz\n')
  assert found.batch.prompts.tolist()[0] == [y, z, end]
  bos = TOKENIZER.encode('x')[0]  # Stays too.
  begun = dataclasses.replace(CUTTING, coder=CODER._replace(bos=bos))
  assert begun([long, fits]).batch.prompts.tolist()[0] == [bos, z, end]
  # A pair goes with its longer half.
  found = encode(long, fits, long_completion='drop')
  assert (found.dropped, found.cut) == (2, 0)


def test_a_pair_of_which_a_half_has_no_trained_token_left_is_dropped():
  second = [{'role': 'user', 'content': 'bcd'}, {'role': 'assistant', 'content': 'e'}]
  found = encode(Example(ask('x'), (second, 'a'), (1.0, 0.0)))
  assert (found.dropped, found.batch.mask.sum()) == (1, 0)


def test_a_run_trains_on_what_its_sampler_gave(monkeypatch):
  """AT-35 end to end: the update sees the bytes that left the sampler."""
  run = runs.assembled(runs.config('grpo'))
  drawn = run.source(run.state, 0)
  batch, again = drawn.batch, run.source(run.state, 0).batch
  assert batch.completions.tobytes() == again.completions.tobytes()
  inside = batch.mask > 0
  assert (batch.completions[~inside] == 0).all()
  ends = np.take_along_axis(batch.completions, batch.length[..., None] - 1, -1)[..., 0]
  assert ((ends == STOP) | (batch.truncated > 0)).all()
  assert (batch.completions[inside] == STOP).sum() == (ends == STOP).sum()
