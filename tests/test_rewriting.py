"""The sequence-to-sequence reward model: its data, and its rewards of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import config_dict

from jaxrl_llm import restored, rewriting
from jaxrl_llm.data import kinds, reshape
from jaxrl_llm.models import decoder, pretrained
from jaxrl_llm.ops import logprobs
from jaxrl_llm.types import InputError

close = lambda got, want, atol=1e-6: np.testing.assert_allclose(got, want, 0, atol)


def test_the_gap_of_a_token():
  """In blocks as in one piece, and under a cap; 0 of the likeliest."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, 7, (2, 3, 5)))
  for cap in (0.0, 1.5):
    z = hidden @ kernel.T
    z = jax.nn.log_softmax(cap * jnp.tanh(z / cap) if cap else z)
    want = z.max(-1) - jnp.take_along_axis(z, tokens[..., None], -1)[..., 0]
    for chunk in (4, 256):
      got = logprobs.token_gap(hidden, kernel, tokens, cap=cap, chunk=chunk)
      close(got, want, 1e-5)
    best = logprobs.likeliest(hidden, kernel, cap=cap).astype(int)
    close(logprobs.token_gap(hidden, kernel, best, cap=cap), 0.0)


def digits(said: str, due: str, *, tau=2.0, sure=3.0):
  """Rewards of digits, by a model that is `sure` nats more of those that are due."""
  logits = sure * jax.nn.one_hot(jnp.array([int(x) for x in due]), 10)[None, None]
  tokens = jnp.array([[[int(x) for x in said]]])
  gap = logprobs.token_gap(logits, jnp.eye(10), tokens)
  return rewriting.feedback(gap, jnp.ones(tokens.shape), tau)[0, 0]


def test_an_answer_that_stays_has_positive_rewards_alone():
  close(digits('31415', '31415'), np.full(5, 0.2))


@pytest.mark.parametrize('at', range(5))
def test_one_wrong_digit_has_the_only_negative_reward(at):
  said = [*'31415']
  said[at] = '9'
  want = np.full(5, 0.2)
  want[at] = -0.2
  close(digits(''.join(said), '31415'), want)


def test_a_token_nearly_as_likely_has_none():
  """A gap of log 3: below tau 4 it is 0, above tau 2 negative; slots have none."""
  close(digits('13', '12', tau=4.0, sure=np.log(3)), [0.5, 0.0])
  close(digits('13', '12', tau=2.0, sure=np.log(3)), [0.5, -0.5])
  gap, mask = jnp.zeros((1, 1, 4)), jnp.array([[[1.0, 1.0, 0.0, 0.0]]])
  close(rewriting.feedback(gap, mask, 2.0), [[[0.5, 0.5, 0.0, 0.0]]])


def test_rewrites_of_pairs():
  """The rejected to the chosen, the chosen to itself, after what was asked."""
  rows = [{'prompt': '1 + 1 =', 'chosen': '2', 'rejected': '3'}]
  wrong, right = reshape.rewrites(rows)
  assert [wrong['completion'], right['completion']] == ['2', '2']
  shown = lambda row: [(m['role'], m['content']) for m in row['prompt']]
  request = ('user', reshape.REWRITE)
  assert shown(wrong) == [('user', '1 + 1 ='), ('assistant', '3'), request]
  assert shown(right) == [('user', '1 + 1 ='), ('assistant', '2'), request]
  assert kinds.demonstrations(wrong).completions == ('2',)


def network(room):
  """The tiny model as a run's policy, whose prompts have this much room."""
  model = pretrained.load('tiny')
  config = config_dict.ConfigDict({'source': {'max_prompt': room}})
  return restored.Network(
    decoder.Decoder(model.config),
    model.params(),
    model.tokenizer,
    model.fields,
    'tiny',
    None,
    config,
    None,
  )


def drawn(monkeypatch, room, **source):
  """A batch of a run whose answers are rewritten."""
  monkeypatch.setattr(restored, 'network', lambda run, role: network(room))
  c = runs.config('grpo_process', source=dict(rewriter='x', steps='', **source))
  run = runs.assembled(c)
  return run.source(run.state, 0)


def test_rewards_of_tokens_in_a_run(monkeypatch):
  """Every token ends a step, and its reward follows from one pass over the row."""
  found = drawn(monkeypatch, 100, rewriter_tau=1.5)
  batch, model = found.batch, network(100)
  np.testing.assert_array_equal(batch.extra['step_end'], batch.mask)
  reward, size = batch.extra['step_reward'], batch.mask.sum(-1, keepdims=True)
  assert {*np.unique(np.sign(reward))} == {-1.0, 0.0, 1.0}
  assert (np.isclose(abs(reward) * size, 1) | (reward == 0)).all()
  tokens, length = batch.completions[0, 0], batch.length[0, 0]
  shown = found.samples[0]
  asked = kinds.judged(shown['prompt'], shown['completion'], reshape.REWRITE)
  ids = [*pretrained.encode_chat(model.tokenizer, asked), *tokens[:length]]
  place, seen = jnp.arange(len(ids))[None, None], decoder.causal(len(ids))
  state, _ = model.decoder.apply(
    {'params': model.params}, jnp.array([[ids]]), place, seen
  )
  z = state[0, 0, -length - 1 : -1] @ decoder.head_kernel(model.params).T
  gap = np.array(z.max(-1) - z[jnp.arange(length), tokens[:length]])
  want = (gap < 1e-6) * 1.0 - (gap > np.log(1.5))
  close(reward[0, 0, :length], want / length)


def test_an_answer_that_does_not_fit_has_no_reward(monkeypatch):
  batch = drawn(monkeypatch, 20).batch
  assert not batch.extra['step_reward'].any() and batch.mask.any()


def test_a_rewriter_of_other_tokens_is_refused():
  tokenizer = pretrained.load('tiny').tokenizer
  asked = kinds.judged('q', 'a', 'b')
  encode = lambda messages: pretrained.encode_chat(tokenizer, messages)
  rewriting.check_tokens(tokenizer, encode, asked, 'runs/x')
  with pytest.raises(InputError, match='rewriter=runs/x: its tokens'):
    rewriting.check_tokens(tokenizer, lambda m: encode(m)[1:], asked, 'runs/x')
