"""Where completions end: learned stop tokens, and lengths at the edge of the room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import test_chat

from jaxrl_llm import build, forward
from jaxrl_llm.data import chat, examples
from jaxrl_llm.data.examples import Example
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import State

# ---- Learned stops -------------------------------------------------------------------

TEMPLATES = list(test_chat.TEMPLATES)
ANSWERS = ('b', 'cd')
ROOM = 24
TX = optax.adam(1e-2)
VOCAB = len(test_chat.tokenizer('open'))
DECODER = Decoder(
  DecoderConfig(
    vocab=VOCAB, width=32, layers=2, heads=2, kv_heads=2, mlp_width=64, head_dim=16
  )
)


@functools.cache
def lessons():
  """Each template's question and two answers, and all stop tokens."""
  batches, ends = [], set()
  for i, name in enumerate(TEMPLATES):
    found = test_chat.tokenizer(name)
    stops = pretrained.stop_ids(found)
    encode = examples.Encoder(chat.coder(found, stops), max_prompt=80, max_length=ROOM)
    asked = [[test_chat.turn('user', chr(65 + i) + answer[0])] for answer in ANSWERS]
    batches.append(encode([Example(q, (a,), (1.0,)) for q, a in zip(asked, ANSWERS)]))
    ends |= {*stops}
  assert not any(found.dropped or found.cut for found in batches)
  batch = jax.tree.map(
    lambda *x: np.concatenate(x), *[found.batch for found in batches]
  )
  return batch.replace(prompt_id=np.arange(len(batch.prompts))), tuple(ends)


@functools.cache
def step():
  see = forward.make_forward({'policy': DECODER})
  return jax.jit(make_update_step(see, TX, build.method('sft')))


def learned(batch, steps=100):
  """A policy that has the batch by heart."""
  zero = jnp.int32(0)
  start = jnp.zeros((1, 1, 1), jnp.int32)
  init = jax.jit(DECODER.init)
  params = {'policy': init(jax.random.key(0), start, start, causal(1))['params']}
  state = State(zero, zero, zero, params, TX.init(params), {}, {}, jax.random.key(0))
  for _ in range(steps):
    state, found = step()(state, batch)
  assert found['nll'] < 0.01
  return state.params['policy']


@functools.cache
def sampler():
  return make_sampler(DECODER, group=1, max_length=ROOM)


def greedy(params):
  batch, _ = lessons()
  cold = draw.options(
    len(batch.prompts), max_length=ROOM, stop_ids=lessons()[1], temperature=0.0
  )
  arrays = (batch.prompts, batch.prompt_length, batch.prompt_id, cold)
  return sampler()(params, *arrays, jax.random.key(0), 0)


def test_what_was_learned_by_heart_is_said_and_then_stops():
  """AT-39: after each template, at the stop token and not for want of room."""
  batch, _ = lessons()
  got = greedy(learned(batch))
  np.testing.assert_array_equal(got.tokens, batch.completions)
  np.testing.assert_array_equal(got.length, batch.length)
  np.testing.assert_array_equal(got.stop_reason, 1)


def test_without_a_trained_stop_token_there_is_no_end():
  """AT-39: so the test above can fail."""
  batch, _ = lessons()
  last = np.arange(ROOM) == batch.length[..., None] - 1
  got = greedy(learned(batch.replace(mask=batch.mask * ~last)))
  np.testing.assert_array_equal(got.stop_reason, 0)


# ---- The edge of the room ------------------------------------------------------------

TOKENIZER = pretrained.load('tiny').tokenizer
CODER = chat.coder(TOKENIZER, (TOKENIZER.eos_token_id,))
# Room for 3 tokens and 4: a prompt 'xy' and its newline, 'abc' and its stop token.
# (prompt, completions, policies) to (what is left of the prompt, tokens trained of each
# completion, which of them are cut, groups dropped).
EDGES = {
  'both just fit': (
    'xy',
    ['abc'],
    dict(long_prompt='error', long_completion='error'),
    ('xy\n', [4], [0], 0),
  ),
  'both just fit, else dropped': (
    'xy',
    ['abc'],
    dict(long_prompt='drop', long_completion='drop'),
    ('xy\n', [4], [0], 0),
  ),
  'a prompt one longer, cut': (
    'xyz',
    ['abc'],
    dict(long_prompt='cut'),
    ('yz\n', [4], [0], 0),
  ),
  'a prompt one longer, dropped': (
    'xyz',
    ['abc'],
    dict(long_prompt='drop'),
    (None, [0], [0], 1),
  ),
  'a completion one longer, cut': ('xy', ['abcd'], {}, ('xy\n', [4], [1], 0)),
  'a completion one longer, dropped': (
    'xy',
    ['abcd'],
    dict(long_completion='drop'),
    (None, [0], [0], 1),
  ),
  'both longer, both cut': (
    'wxyz',
    ['abcde'],
    dict(long_prompt='cut'),
    ('yz\n', [4], [1], 0),
  ),
  'chosen fits, rejected is cut': (
    'xy',
    ['a', 'abcd'],
    {},
    ('xy\n', [2, 4], [0, 1], 0),
  ),
  'rejected fits, chosen is cut': (
    'xy',
    ['abcd', 'a'],
    {},
    ('xy\n', [4, 2], [1, 0], 0),
  ),
  'chosen fits, rejected does not': (
    'xy',
    ['a', 'abcd'],
    dict(long_completion='drop'),
    (None, [0, 0], [0, 0], 1),
  ),
}


@pytest.mark.parametrize('case', EDGES)
def test_lengths_at_the_edge(case):
  """AT-43: a completion keeps its beginning and, where it is whole, its stop token."""
  prompt, completions, policies, (left, trained, cut, dropped) = EDGES[case]
  encode = examples.Encoder(CODER, max_prompt=3, max_length=4, **policies)
  reward = [1.0] * len(completions)
  asked = lambda words: [test_chat.turn('user', words)]
  # Beside a group that is never touched.
  other = Example(asked('x'), ['a'] * len(completions), reward)
  found = encode([Example(asked(prompt), completions, reward), other])
  batch = found.batch
  assert (found.dropped, found.cut) == (dropped, sum(cut))
  assert batch.valid.tolist() == [[1.0 - dropped] * len(cut), [1.0] * len(cut)]
  assert batch.mask.sum(-1).tolist() == [trained, [2.0] * len(cut)]
  assert batch.prompts.shape == (2, 3) and batch.mask.shape == batch.completions.shape
  if dropped:
    return
  assert batch.truncated[0].tolist() == cut
  assert TOKENIZER.decode(batch.prompts[0, : batch.prompt_length[0]]) == left
  for tokens, size, words, ended in zip(
    batch.completions[0], batch.length[0], completions, cut
  ):
    want = words[:4] if ended else words + TOKENIZER.eos_token
    assert TOKENIZER.decode(tokens[:size]) == want


def test_what_is_cut_is_reported():
  """AT-43: in the metrics of a run whose answers are 6 tokens, with room for 4."""
  run = runs.assembled(runs.config('sft', data=dict(long_completion='cut')))
  found = run.source(run.state, 0).metrics
  assert tuple(found[name] for name in ('dropped', 'cut', 'tokens')) == (0, 8, 32)


def test_what_is_dropped_is_reported():
  """AT-43: answers are 6 tokens, a quarter of them less, with room for 5."""
  room = dict(source=dict(max_length=5), data=dict(long_completion='drop'))
  run = runs.assembled(runs.config('kto', **room))
  drawn = [run.source(run.state, step) for step in range(2)]
  for found in drawn:
    assert found.metrics['dropped'] == 8 - found.batch.valid.sum()
    assert found.metrics['tokens'] == found.batch.mask.sum()
  assert 0 < sum(found.metrics['dropped'] for found in drawn) < 16
