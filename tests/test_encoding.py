"""Texts that have no ids, wherever they stand."""

import json

import pytest
from test_bad_input import saved_model
from test_data import data_config

from jaxrl_llm import asking, feeds, sources
from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.rewards.classifier import tokens
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError

HALF = '\ud83d'
ASKED = [{'role': 'user', 'content': 'q'}]
SAYS = (
  '{% for t in tools or [] %}{{ t.name }}{{ t.about }}{% endfor %}{{ mood }}'
  '{% for m in messages %}{{ m.role }}{{ m.reasoning_content }}{{ m.content }}'
  '{% for c in m.tool_calls %}{{ c.name }}{{ c.arguments }}{% endfor %}\n{% endfor %}'
)


def said(**more):
  return {
    'prompt': ASKED,
    'completion': [{'role': 'assistant', 'content': 'a', **more}],
  }


def read(tmp_path, bad, good, kind, method, drop=False):
  """A table of which row 2 is bad, brought to ids."""
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(map(json.dumps, [good, bad, good])))
  model = pretrained.load('tiny')
  model.tokenizer.chat_template = SAYS
  c = data_config(str(path), kind, method, test_path=str(path))
  c.data.update(as_chat=False, bad_rows='drop' if drop else 'error')
  return feeds.load_data(c, model)[0]


@pytest.mark.parametrize(
  'bad',
  [
    said(reasoning_content=HALF),
    said(tool_calls=[{'name': 'f', 'arguments': HALF}]),
    said() | {'tools': [{'name': 'f', 'about': HALF}]},
    said() | {'chat_template_kwargs': {'mood': HALF}},
    said() | {'prompt': [{'role': HALF, 'content': 'q'}]},
  ],
  ids=['thought', 'call', 'tool', 'option', 'role'],
)
def test_half_a_character_is_named_and_left_out(tmp_path, bad):
  of = (tmp_path, bad, said(), 'demonstrations', 'sft')
  with pytest.raises(InputError, match='line 2: half a character'):
    read(*of)
  assert len(read(*of, drop=True).train) == 2


def test_half_a_character_in_a_second_stream(tmp_path):
  row = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'prompts': ['c', 'd']}
  bad = row | {'prompts': ['c', HALF]}
  with pytest.raises(InputError, match='line 2: half a character'):
    read(tmp_path, bad, row, 'contrastive_pairs', 't_reg')


def test_half_a_character_in_a_question(tmp_path):
  path = tmp_path / 'x.jsonl'
  rows = [{'question': x, 'answer': 1} for x in ('q', HALF)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'test.jsonl').write_text('{"question": "r", "answer": 1}')
  paths = dict(train_path=str(path), test_path=str(tmp_path / 'test.jsonl'))
  c = data_config('', 'pairs', 'dpo')
  c.task = dict(name='questions', **paths)
  tokenizer = pretrained.load('tiny').tokenizer
  encode = chat.coder(tokenizer, pretrained.stop_ids(tokenizer)).prompt
  with pytest.raises(InputError, match='line 2: half a character'):
    asking.make_task(c, sources.Text(encode, tokenizer.decode, 9))


# ---- Tokens without an embedding -----------------------------------------------------


def widened(folder, **more):
  """A saved model whose tokenizer has one token more than the embedding has rows."""
  path = saved_model(folder)
  tokenizer = pretrained.load('tiny').tokenizer
  for add, token in more.items():
    {
      'special': lambda t: tokenizer.add_special_tokens({'extra_special_tokens': [t]}),
      'word': lambda t: tokenizer.add_tokens([t]),
      'pad': lambda t: tokenizer.add_special_tokens({'pad_token': t}),
    }[add](token)
  tokenizer.save_pretrained(path)
  return str(path)


def test_a_special_token_may_lack_an_embedding_until_a_text_has_it(tmp_path):
  """Gemma 3's tokenizer has <image_soft_token>, its models of text alone do not."""
  found = pretrained.load(widened(tmp_path / 'm', special='<image>'))
  assert len(found.tokenizer) == found.config.vocab + 1
  code = chat.coder(found.tokenizer, pretrained.stop_ids(found.tokenizer))
  assert max(code.prompt(ASKED)) < found.config.vocab
  words = r"contains '<image>', a token .* no embedding"
  for of in ('a<image>', [{'role': 'user', 'content': 'a<image>'}]):
    with pytest.raises(InputError, match=words):
      code.prompt(of)
  with pytest.raises(InputError, match=words):
    code.completion('a', 'b<image>')
  record = records.Record(0, ASKED, '', {})
  assert tokens(found.tokenizer, Sample('q', 'a<image>', 0, False, record)) == []


@pytest.mark.parametrize(
  'more', [{'word': 'ab'}, {'pad': '<pad>'}], ids=['word', 'pad']
)
def test_a_token_that_is_needed_has_an_embedding(tmp_path, more):
  with pytest.raises(InputError, match='has 105 tokens, the embedding only 104 rows'):
    pretrained.load(widened(tmp_path / 'm', **more))
