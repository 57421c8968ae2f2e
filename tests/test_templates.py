"""config.model.chat_template: a template from a file, wherever one is rendered."""

import pytest
import runs
from ml_collections import config_dict
from transformers import AutoTokenizer

from jaxrl_llm import restored, train
from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import InputError

# As Qwen3's own, what was thought is left out of all turns but the last; and not so.
FORGETS = """{%- for m in messages -%}
{%- if m.role == 'assistant' and not loop.last -%}
A{{ m.content.split('</t>')[-1] }}
{%- else -%}{{ m.role[0] }}{{ m.content }}{%- endif -%}
{%- endfor -%}"""
KEEPS = '{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}'


@pytest.fixture
def path(tmp_path):
  (tmp_path / 'keeps.jinja').write_text(KEEPS)
  return str(tmp_path / 'keeps.jinja')


def model(**options):
  return pretrained.configured(config_dict.ConfigDict({'name': 'tiny', **options}))


def test_a_template_that_keeps_all_turns_makes_them_trainable(tmp_path, path):
  (tmp_path / 'forgets.jinja').write_text(FORGETS)
  said = lambda role, content: {'role': role, 'content': content}
  before = [said('user', 'q')]
  after = [said('assistant', 't</t>a'), said('user', 'r'), said('assistant', 'b')]
  ids = {}
  for name in ('forgets', 'keeps'):
    found = model(chat_template=str(tmp_path / f'{name}.jinja')).tokenizer
    ids[name] = chat.coder(found, pretrained.stop_ids(found)).completion
  with pytest.raises(InputError, match=r'rewrites .* \(config.model.chat_template\)'):
    ids['forgets'](before, after)
  text = 'at</t>a<eos>urab<eos>'
  assert found.decode(ids['keeps'](before, after).tokens) == text


def test_without_a_file_the_template_is_the_tokenizers_own():
  own = pretrained.load('tiny').tokenizer.chat_template
  assert model().tokenizer.chat_template == own != KEEPS
  assert model(chat_template='').tokenizer.chat_template == own


def test_a_run_its_samples_and_its_export_have_the_template(tmp_path, path):
  c = runs.config('sft', steps=1, model=dict(chat_template=path))
  train.main(c, str(tmp_path / 'run'))
  policy = restored.policy(str(tmp_path / 'run'))
  assert policy.tokenizer.chat_template == KEEPS
  restored.export(policy, tmp_path / 'out')
  exported = pretrained.load(str(tmp_path / 'out')).tokenizer
  assert exported.chat_template == KEEPS


@pytest.mark.parametrize(('text', 'words'), [(None, 'not readable'), (' ', 'empty')])
def test_a_file_without_a_template(tmp_path, text, words):
  file = tmp_path / 'x.jinja'
  if text is not None:
    file.write_text(text)
  with pytest.raises(InputError, match=rf'chat_template={file} is .*{words}'):
    model(chat_template=str(file))


def test_of_several_templates_tools_have_the_one_that_is_for_them(tmp_path):
  own = pretrained.load('tiny').tokenizer
  shows = "{% for t in tools %}{{ t['name'] }}{% endfor %}"
  own.chat_template = {'default': KEEPS, 'tool_use': shows + KEEPS}
  own.save_pretrained(tmp_path)
  found = AutoTokenizer.from_pretrained(tmp_path)
  assert set(found.chat_template) == {'default', 'tool_use'}
  ids = chat.coder(found, pretrained.stop_ids(found))
  asked = [{'role': 'user', 'content': 'q'}]
  assert found.decode(ids.prompt(asked)) == 'uq'
  assert found.decode(ids.prompt(asked, {'tools': [{'name': 'add'}]})) == 'adduq'
  found.chat_template = {'tool_use': KEEPS}
  with pytest.raises(InputError, match=r'refuses .*no default'):
    ids.prompt(asked)
