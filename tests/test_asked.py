"""Questions of a table: their tools, and those that cannot be asked."""

import json

import pytest
import runs

from jaxrl_llm import collect, train
from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.tasks import fitting, records
from jaxrl_llm.tasks.questions import questions
from jaxrl_llm.types import InputError

TOKENIZER = pretrained.load('tiny').tokenizer
TOKENIZER.chat_template = (
  "{% for t in tools or [] %}{{ '[' + t['name'] + ']' }}{% endfor %}"
  "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
  "{% endif %}{{ m.content + '.' + (mood or '') }}{% endfor %}"
)
ENCODE = chat.coder(TOKENIZER, pretrained.stop_ids(TOKENIZER)).prompt
ADD = {'name': 'add'}


def row(content, role='user', **more):
  return {'prompt': [{'role': role, 'content': content}], 'answer': '1', **more}


HELD = [row('held')]


@pytest.fixture
def table(tmp_path):
  """Writes rows and held-out rows; returns the task's options."""

  def write(rows, test=HELD):
    found = dict(name='questions', question='prompt')
    for split, told in (('train', rows), ('test', test)):
      path = tmp_path / f'{split}.jsonl'
      path.write_text('\n'.join(map(json.dumps, told)))
      found[f'{split}_path'] = str(path)
    return found

  return write


def task(options):
  return questions(**{k: v for k, v in options.items() if k != 'name'})


def words(record):
  return TOKENIZER.decode(ENCODE(record.messages, record.template))


def test_tools_and_options_of_a_question_reach_the_template(table):
  more = {'tools': [ADD], 'chat_template_kwargs': {'mood': '!', 'other': None}}
  told = [row('a', tools=json.dumps([ADD])), row('b', **more), row('c', tools=None)]
  rows = task(table(told, [row('b')])).train.rows
  assert [words(r) for r in rows] == ['[add]a.', '[add]b.!', 'c.']
  asked = {'prompt': told[1]['prompt'], 'tools': [ADD]}
  assert collect.asked(rows[1]) == asked | {'chat_template_kwargs': {'mood': '!'}}
  with pytest.raises(InputError, match=r'train.jsonl, line 1: .tools. is a list'):
    task(table([row('a', tools=['add'])]))


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    (row('a' * 9), '1 of 2 .* over max_prompt=8, the longest 10 tokens.*long_prompt'),
    (row('a', 'system'), 'refuses the conversation: no system'),
  ],
)
def test_what_cannot_be_asked_is_said_by_file_and_line(table, wrong, said, split):
  both = [row('b'), wrong], [row('c')]
  found = task(table(*(both if split == 'train' else both[::-1])))
  with pytest.raises(InputError, match=f'{split}.jsonl, line 2: .*{said}'):
    fitting.fitted(found, ENCODE, 8)


def test_long_questions_may_be_left_out(table):
  options = table([row('b'), row('a' * 9), row('c')], [row('a' * 8), row('d')])
  options['long_prompt'] = 'drop'
  found = fitting.fitted(task(options), ENCODE, 8)
  assert {words(found.train(i)) for i in range(2)} == {'b.', 'c.'}
  assert [words(r) for r in found.test] == ['d.']
  assert '1 of 3 training questions are over max_prompt=8' in found.report[-2]
  assert '1 of 2 held-out questions are over max_prompt=8' in found.report[-1]
  with pytest.raises(InputError, match=r'long_prompt.* leave some'):
    fitting.fitted(task(options), ENCODE, 1)
  with pytest.raises(InputError, match=r"long_prompt='cut'; there are"):
    fitting.fitted(task(options | {'long_prompt': 'cut'}), ENCODE, 8)


def test_a_task_without_a_table_stays_as_it_is():
  made = records.Task('made', lambda i: None, (), None)
  assert fitting.fitted(made, ENCODE, 8) is made


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [(row('a' * 99), 'a prompt does not fit'), (row('b', tools=[ADD]), 'show the tools')],
)
def test_a_run_says_so_before_its_first_step(tmp_path, table, wrong, said):
  c = runs.config('grpo', steps=1)
  c.task = table([row('b'), wrong])
  with pytest.raises(InputError, match=f'train.jsonl, line 2: .*{said}'):
    train.main(c, str(tmp_path / 'run'))
