"""Data sets in: every format's rows as examples; errors name file and line."""

import datetime
import decimal
import gzip
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pytest
import runs
from pyarrow import parquet

from jaxrl_llm import feeds, reference, train
from jaxrl_llm.data import (
  chat,
  contamination,
  examples,
  fitting,
  letters,
  mixture,
  prepare,
  solutions,
  tables,
)
from jaxrl_llm.data.examples import Example
from jaxrl_llm.data.files import files
from jaxrl_llm.data.kinds import KINDS
from jaxrl_llm.evaluate import accuracy, stored
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import InputError


def turn(content, role='user'):
  return {'role': role, 'content': content}


ASK, SAY, NO = [turn('q')], [turn('yes', 'assistant')], [turn('no', 'assistant')]
TALK = [*ASK, *SAY, turn('r'), turn('s', 'assistant')]
# (kind, row, what it is): TRL's formats, standard and conversational, and our own.
ROWS = [
  ('demonstrations', {'prompt': 'q', 'completion': 'a'}, ('q', ('a',), (1.0,))),
  ('demonstrations', {'prompt': ASK, 'completion': SAY}, (ASK, (SAY,), (1.0,))),
  ('demonstrations', {'messages': TALK}, (ASK, (TALK[1:],), (1.0,))),
  ('demonstrations', {'text': 'once'}, ('', ('once',), (1.0,))),
  ('demonstrations', {'messages': [*TALK, *ASK]}, (ASK, (TALK[1:],), (1.0,))),
  ('demonstrations', {'messages': SAY + TALK}, (SAY + ASK, (TALK[1:],), (1.0,))),
  ('demonstrations', {'prompt': 'q', 'messages': TALK}, (ASK, (TALK[1:],), (1.0,))),
  (
    'pairs',
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
    ('q', ('a', 'b'), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'prompt': ASK, 'chosen': SAY, 'rejected': NO},
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'chosen': ASK + SAY, 'rejected': ASK + NO},
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'chosen': 'The sky is blue.', 'rejected': 'The sky is green.'},
    ('The sky is', (' blue.', ' green.'), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'messages': ASK, 'chosen': 'a', 'rejected': 'b', 'margin': 2},
    (ASK, ('a', 'b'), (1.0, 0.0), {'margin': 2.0}),
  ),
  (
    'pairs',
    {'prompt': 'q', 'chosen': ASK + SAY, 'rejected': ASK + NO},
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'prompt': ASK, 'chosen': ASK + SAY, 'rejected': ASK + NO},
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'pairs',
    {'prompt': 'q', 'chosen': SAY, 'rejected': NO},
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'hh',
    {
      'chosen': '\n\nHuman: q\n\nAssistant: yes',
      'rejected': '\n\nHuman: q\n\nAssistant: no',
    },
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  (
    'costs',
    {'input': 'q', 'answer': 'a', 'other_answer': 'b', 'safer': True},
    ('q', ['b', 'a'], (1.0, 0.0)),
  ),
  (
    'costs',
    {
      **{'input': 'q', 'answer': 'a', 'other_answer': 'b', 'safer': False},
      **{'is_safe': False, 'is_other_safe': True},
    },
    ('q', ['a', 'b'], (1.0, 0.0)),
  ),
  ('labels', {'prompt': 'q', 'completion': 'a', 'label': True}, ('q', ('a',), (1.0,))),
  ('labels', {'prompt': ASK, 'completion': NO, 'label': False}, (ASK, (NO,), (-1.0,))),
  ('labels', {'messages': ASK, 'response': 'a', 'label': True}, (ASK, ('a',), (1.0,))),
  (
    'rankings',
    {'prompt': 'q', 'completions': ['a', 'b', 'c'], 'ranks': [1, 0, 1]},
    ('q', ['b', 'a', 'c'], [0.0, -1.0, -1.0]),
  ),
  (
    'rankings',
    {'prompt': 'q', 'completions': ['a', 'b', 'c'], 'scores': [0.5, 7, -1]},
    ('q', ['b', 'a', 'c'], [7.0, 0.5, -1.0]),
  ),
  (
    'rankings',
    {
      'prompt': ASK,
      'completions': [{'rank': 0, 'completion': SAY}, {'rank': 1, 'completion': NO}],
    },
    (ASK, [SAY, NO], [0.0, -1.0]),
  ),
  (
    'rankings',
    {
      'context': ASK,
      'completions': [{'rank': 1, 'completion': NO}, {'rank': 0, 'completion': SAY}],
      'task_name': 'z',
    },
    (ASK, [SAY, NO], [0.0, -1.0]),
  ),
  (
    'ratings',
    {'messages': ASK, 'response': 'a', 'ratings': {'kind': 3}},
    (ASK, ('a',), (0.0,), {'rating/kind': 3.0, 'rated/kind': 1.0}),
  ),
  (
    'ratings',
    {'prompt': 'q', 'completion': 'a', 'ratings': {'kind': 3, 'true': None}},
    (
      'q',
      ('a',),
      (0.0,),
      {'rating/kind': 3.0, 'rating/true': 0.0, 'rated/kind': 1.0, 'rated/true': 0.0},
    ),
  ),
  (
    'principles',
    {'prompt': 'q', 'completion': 'yes', 'principle': 'be kind', 'fulfilment': 'No'},
    ([*ASK, *SAY, turn('be kind')], ('Yes', 'No'), (0.0, 1.0)),
  ),
  (
    'principles',
    {'context': ASK, 'response': 'yes', 'principle': 'be kind', 'fulfilment': 'Yes'},
    ([*ASK, *SAY, turn('be kind')], ('Yes', 'No'), (1.0, 0.0)),
  ),
  (
    'steps',
    {
      **{'question': 'q', 'gold': '3'},
      'steps': [{'text': 'a', 'label': 1}, {'text': 'b', 'p': 0.5}],
    },
    ('q', (chat.Steps(['a', 'b']),), (0.0,), {}, ([1.0, 0.5],)),
  ),
  (
    'steps_to_error',
    {
      'question': 'q',
      'steps': [{'text': x, 'label': y} for x, y in (('a', 1), ('b', -1), ('c', 1))],
    },
    ('q', (chat.Steps(['a', 'b']),), (0.0,), {}, ([1.0, -1.0],)),
  ),
  (
    'steps',
    {'prompt': 'q', 'completions': ['a', 'b'], 'labels': [True, -0.5]},
    ('q', (chat.Steps(['a', 'b']),), (0.0,), {}, ([1.0, -0.5],)),
  ),
  (
    'steps_to_error',
    {'prompt': 'q', 'completions': ['a', 'b', 'c'], 'labels': [True, -1, 1]},
    ('q', (chat.Steps(['a', 'b']),), (0.0,), {}, ([1.0, -1.0],)),
  ),
  (
    'rated_pairs',
    {'prompt': 'q', 'completions': ['a', 'b'], 'ratings': [{'kind': 3}, {'kind': 1}]},
    (
      'q',
      ['a', 'b'],
      (1.0, 0.0),
      {'rating/kind': [3.0, 1.0], 'rated/kind': [1.0, 1.0]},
    ),
  ),
  (
    'user_pairs',
    {
      **{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
      'context': [{'prompt': 'r', 'chosen': 'c', 'rejected': 'd'}],
    },
    ('q', [*'abcd'], (1.0, 0.0, 1.0, 0.0), {}, (), [*'qqrr']),
  ),
  (
    'personal_pairs',
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'user': 2},
    ('q', ('a', 'b'), (1.0, 0.0), {'user': 2.0}),
  ),
  (
    'personal_pairs',
    {
      **{'messages': ASK, 'chosen': 'a', 'rejected': 'b', 'margin': 1, 'tie': False},
      **{'user_id': 2, 'source': 'x', 'annotator': 'human', 'weight': 1},
    },
    (ASK, ('a', 'b'), (1.0, 0.0), {'margin': 1.0, 'tie': 0.0, 'user': 2.0}),
  ),
  (
    'contrastive_pairs',
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'prompts': ['r', 's']},
    (
      *('q', ('a', 'b'), (1.0, 0.0), {}, (), ()),
      Example('r', [*'abab'], [1.0, 0.0, 1.0, 0.0], prompts=[*'rrss']),
    ),
  ),
  (
    'prompt_pairs',
    {'prompts': ['q', 'r'], 'completion': 'a'},
    ('q', ('a', 'a'), (1.0, 0.0), {}, (), ['q', 'r']),
  ),
]


@pytest.mark.parametrize(('kind', 'row', 'want'), ROWS)
def test_rows(kind, row, want):
  got = KINDS[kind](json.loads(json.dumps(row)))
  assert got == Example(*want)


def test_steps_are_marked_at_their_ends():
  """AT-51: labels of the steps that are left after the cut, each at its newline."""
  tokenizer = pretrained.load('tiny').tokenizer
  row = {'prompt': 'q', 'completions': ['ab', 'c', 'd'], 'labels': [1, 0, True]}
  coder = chat.coder(tokenizer, pretrained.stop_ids(tokenizer))
  encode = examples.Encoder(coder, max_prompt=4, max_length=6)
  batch = encode([KINDS['steps'](row)]).batch
  assert tokenizer.decode(batch.completions[0, 0]) == 'ab\nc\nd'
  assert batch.mask.tolist() == [[[0, 0, 1, 0, 1, 0]]]
  assert batch.extra['step_label'].tolist() == [[[0, 0, 1, 0, 0, 0]]]
  whole = examples.Encoder(coder, max_prompt=4, max_length=9)([KINDS['steps'](row)])
  assert whole.batch.extra['step_label'].tolist() == [[[0, 0, 1, 0, 0, 0, 1, 0, 0]]]


def made_up():
  return ({'prompt': f'q{i}', 'completion': 'a'} for i in range(5))


def test_rows_of_an_iterator():
  found = files(path='python:test_data.made_up', kind='demonstrations', test_size=1)
  assert len(found.train) + len(found.test) == 5
  with pytest.raises(InputError, match=r"test_data has no 'made'.*made_up"):
    tables.open_table('python:test_data.made')


def test_every_kind_has_a_row():
  assert {kind for kind, _, _ in ROWS} == KINDS.keys()


@pytest.mark.parametrize(
  ('kind', 'row', 'words'),
  [
    ('pairs', {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, 'are the same'),
    ('pairs', {'prompt': 'q', 'chosen': 'z', 'rejected': 'z '}, 'are the same'),
    ('pairs', {'prompt': 'q', 'chosen': SAY, 'rejected': 'b'}, 'a string and a list'),
    (
      'pairs',
      {'prompt': 'other', 'chosen': ASK + SAY, 'rejected': ASK + NO},
      "'prompt' is not what",
    ),
    ('demonstrations', {'text': 'once', 'completion': 'a'}, 'keep one'),
    ('demonstrations', {'text': 'once', 'prompt': 'q'}, 'keep one'),
    ('demonstrations', {'messages': TALK, 'prompt': 'x'}, "'prompt' is not what 'mess"),
    (
      'pairs',
      {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'tie': 'false'},
      "'tie' is 'false'; true or false is due",
    ),
    (
      'pairs',
      {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'weight': 0.5},
      "'weight' is 0.5, and all pairs weigh the same",
    ),
    ('pairs', {'prompt': 'q', 'chosen': ' ', 'rejected': 'a'}, "'chosen' is empty"),
    ('pairs', {'prompt': 'q', 'chosen': 3, 'rejected': 'a'}, "'chosen' is of type int"),
    ('pairs', {'prompt': 'q', 'chosen': 'a'}, "'rejected' is missing .*chosen, prompt"),
    ('pairs', {'chosen': 'x a', 'rejected': 'y a'}, 'no common prompt'),
    ('pairs', {'chosen': 'x', 'rejected': 'x a'}, 'nothing after'),
    ('pairs', {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'margin': 'x'}, 'margin'),
    ('hh', {'chosen': 'hello', 'rejected': 'you'}, 'Human'),
    ('labels', {'prompt': 'q', 'completion': 'a', 'label': 1}, "'label' is 1; true or"),
    ('demonstrations', {'messages': [{'content': 'a'}]}, 'role, content'),
    ('demonstrations', {'messages': SAY}, r"roles are \['assistant'\]"),
    ('rankings', {'prompt': 'q', 'completions': ['a'], 'ranks': [0]}, 'at least two'),
    ('rankings', {'prompt': 'q', 'completions': ['a', 'b'], 'ranks': [0]}, '1 ranks'),
    ('rankings', {'prompt': 'q', 'completions': ['a'] * 2, 'scores': [0]}, '1 scores'),
    (
      'ratings',
      {'prompt': 'q', 'completion': 'a', 'ratings': {'k': 'x'}},
      "'k' is 'x'",
    ),
    ('ratings', {'prompt': 'q', 'completion': 'a', 'ratings': {}}, 'object of numbers'),
    ('steps', {'prompt': 'q', 'completions': ['a'], 'labels': []}, 'a list is due'),
    ('steps', {'prompt': 'q', 'completions': ['a'], 'labels': [1, 2]}, '1 steps and 2'),
    ('steps', {'prompt': 'q', 'completions': [' '], 'labels': [1]}, 'is empty'),
    (
      'steps',
      {'prompt': 'q', 'completions': ['a'], 'labels': ['x']},
      'a number is due',
    ),
    (
      'principles',
      {'prompt': 'q', 'completion': 'a', 'principle': 'p', 'fulfilment': 'maybe'},
      'Yes or No',
    ),
  ],
)
def test_rows_that_are_refused(kind, row, words):
  with pytest.raises(InputError, match=words):
    KINDS[kind](row)


TINY = pretrained.load('tiny')


# ---- Tables --------------------------------------------------------------------------

THREE = [{'prompt': f'q{i}', 'completion': f'a{i}'} for i in range(3)]


def lines(rows):
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def write_table(folder, ending):
  path = folder / f'rows{ending}'
  if ending == '.jsonl':
    path.write_bytes(lines(THREE[:1]) + b'\n \n' + lines(THREE[1:]))
  elif ending == '.jsonl.gz':
    path.write_bytes(gzip.compress(lines(THREE)))
  elif ending == '.json':
    path.write_text(json.dumps(THREE))
  else:
    parquet.write_table(pyarrow.Table.from_pylist(THREE), path)
  return str(path)


@pytest.mark.parametrize('ending', ['.jsonl', '.jsonl.gz', '.json', '.parquet'])
def test_tables_at_random_access(tmp_path, ending):
  table = tables.open_table(write_table(tmp_path, ending))
  assert len(table) == 3
  assert [table[i] for i in (2, 0, 1)] == [THREE[2], THREE[0], THREE[1]]


def test_tfds_without_tensorflow(tmp_path):
  """Prepared once as array_record, read at random."""
  rows = write_table(tmp_path, '.jsonl')
  made = prepare.write({'train': rows, 'test': rows}, str(tmp_path / 'tfds'))
  found = files(path=f'tfds:{made}:train', kind='demonstrations', test_size=1)
  said = {e.prompt: e.completions[0] for e in [*found.train, *found.test]}
  assert said == {row['prompt']: row['completion'] for row in THREE}
  with pytest.raises(InputError, match='is there already'):
    prepare.write({'train': rows}, str(tmp_path / 'tfds'))
  with pytest.raises(InputError, match="split is named 'a/b'"):
    prepare.write({'a/b': rows}, str(tmp_path / 'other'))
  assert not (tmp_path / 'other').exists()


def test_what_json_has_no_form_of_is_prepared_or_named(tmp_path):
  day = datetime.datetime(2024, 7, 26, 12)
  path = str(tmp_path / 'x.parquet')
  row = {'prompt': 'q', 'day': day, 'cost': decimal.Decimal('1.5')}
  parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  made = prepare.write({'train': path}, str(tmp_path / 'made'))
  found = tables.open_table(f'tfds:{made}:train')[0]
  assert found == {'prompt': 'q', 'day': '2024-07-26T12:00:00', 'cost': 1.5}
  parquet.write_table(pyarrow.Table.from_pylist([{'image': b'\xff'}]), path)
  with pytest.raises(InputError, match=r'x.parquet, row 0: bytes .* no form in JSON'):
    prepare.write({'train': path}, str(tmp_path / 'other'))


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (lines(THREE) + b'{"prompt": \n', r'line 4: no JSON: Expecting value, column 11'),
    (lines(THREE) + b'{"x": 1, "x": 2}\n', "line 4: an object has the key 'x' twice"),
    (lines(THREE) + b'[1]\n', 'line 4: list in place of an object'),
    (lines(THREE) + b'\xff\n', 'line 4: not UTF-8 at byte 0'),
    (
      lines(THREE) + b'\n' + lines([{'prompt': 'q'}]),
      "line 5: 'completion' is missing",
    ),
    (lines([{'prompt': 'q', 'completion': ''}]), "line 1: 'completion' is empty"),
    (lines([{'messages': [turn(3), *SAY]}]), "line 1: a message's 'content' is of typ"),
    (
      lines([{'messages': [*ASK, SAY[0] | {'weight': 0}, *ASK, *SAY]}]),
      "line 1: a message has a 'weight' that is not 1",
    ),
    (
      lines([{'prompt': 'q', 'completion': SAY}]),
      'line 1: the prompt is a string and the completion a list',
    ),
    (lines([{'prompt': 'q', 'completion': '\ud800'}]), 'line 1: half a character'),
    (b'', 'no rows'),
  ],
)
def test_bad_lines_are_named_before_training(tmp_path, content, words):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf'rows\.jsonl.*{words}'):
    files(path=str(path), kind='demonstrations', test_size=1)


def test_what_a_user_s_own_function_does_wrong():
  """It is named, with file and row."""
  path = 'python:test_data.made_up'
  load = lambda kind: files(path=path, kind=f'test_data.{kind}', test_size=1)
  with pytest.raises(InputError, match=r"row 0: .*wrong_key raised KeyError: 'x'"):
    load('wrong_key')
  with pytest.raises(InputError, match=r'row 0: .*gave dict; a .*Example is due'):
    load('no_example')
  with pytest.raises(InputError, match=r'test_data\.wrong_key raised TypeError'):
    tables.open_table('python:test_data.wrong_key')


def wrong_key(row):
  return row['x']


def no_example(row):
  return row


@pytest.mark.parametrize(
  ('method', 'kind', 'rows', 'words'),
  [
    (
      'dpo',
      'pairs',
      lambda i: {'chosen': 'a', 'rejected': 'b'} | ({'margin': 1} if i == 9 else {}),
      r"line 10: 2 completions and \['margin'\]",
    ),
    (
      'dpo',
      'rankings',
      lambda i: {'completions': ['a', 'b'], 'ranks': [0, 0 if i == 9 else 1]},
      'line 10: dpo: the first completion of a pair is the better one',
    ),
    (
      'sft',
      'labels',
      lambda i: {'completion': 'a', 'label': i > 5},
      r'line \d: sft: .* has reward -1\.0',
    ),
    (
      'sft',
      'demonstrations',
      lambda i: {'completion': 'a', 'prompt': 'q' * (9 if i == 9 else 1) + str(i)},
      r'line 10: A prompt of \d+ tokens does not fit',
    ),
  ],
)
def test_what_does_not_fit_the_method_is_refused_before_training(
  tmp_path, method, kind, rows, words
):
  path = write(tmp_path, [{'prompt': f'q{i}', **rows(i)} for i in range(19)])
  with pytest.raises(InputError, match=words):
    train.main(data_config(path, kind, method, test_size=5), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_plain_text_is_held_out_and_compared_by_itself(tmp_path):
  """There is no prompt to tell rows apart, and no words are no overlap."""
  path = write(tmp_path, [{'text': f'once upon a time {i}'} for i in range(6)])
  found = files(path=path, kind='demonstrations', test_size=2, contamination=4)
  assert (len(found.train), len(found.test)) == (4, 2)
  assert found.report[-1].startswith('4 training prompts share 4 words')
  assert contamination.report([['+ = ?'], ['...']], [['???']], 3).startswith('0 tra')


@pytest.mark.parametrize('form', ['array_record', 'parquet'])
def test_a_dataset_of_another_s_own_builder(tmp_path, form):
  """Texts as bytes, numpy's numbers and arrays, messages as an object of lists."""
  tfds = pytest.importorskip('tensorflow_datasets')
  row = {'prompt': 'q\u00e9', 'ranks': [1, 0], 'label': True, 'margin': 2.5}
  row |= {'completions': ['a', 'b'], 'messages': ASK + SAY}
  row |= {'lists': {'a': [1, 2], 'b': [3, 4]}, 'talks': [{'n': 1, 'said': ASK[0]}]}
  text = tfds.features.Text()
  one = {'role': text, 'content': text}
  features = tfds.features.FeaturesDict(
    {
      'prompt': text,
      'label': np.bool_,
      'margin': np.float32,
      'completions': tfds.features.Sequence(text),
      'ranks': tfds.features.Sequence(np.int64),
      'messages': tfds.features.Sequence(one),
      'lists': {k: tfds.features.Sequence(np.int64) for k in 'ab'},
      'talks': tfds.features.Sequence({'n': np.int64, 'said': one}),
    }
  )

  class Native(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': [(0, row)]}

    def _generate_examples(self, rows):
      yield from rows

  builder = Native(data_dir=str(tmp_path), file_format=form)
  builder.download_and_prepare()
  table = tables.open_table(f'tfds:{builder.data_dir}:train')
  assert table[0] == row
  assert KINDS['rankings'](table[0]).completions == ['b', 'a']
  with pytest.raises(InputError, match=r"no split 'dev'; there are \['train'\]"):
    tables.open_table(f'tfds:{builder.data_dir}:dev[:3]')


def test_what_save_to_disk_wrote(tmp_path):
  datasets = pytest.importorskip('datasets')
  rows = datasets.Dataset.from_list(THREE)
  rows.save_to_disk(tmp_path / 'one')
  datasets.DatasetDict({'dev': rows}).save_to_disk(tmp_path / 'split')
  for path in (f'hf:{tmp_path}/one', f'hf:{tmp_path}/split:dev'):
    assert [*tables.open_table(path)] == THREE
  found = [{'label': True, 'ids': [1, 2]}]
  made = datasets.Dataset.from_list(found).with_format('numpy')
  made.save_to_disk(tmp_path / 'tensors')
  assert [*tables.open_table(f'hf:{tmp_path}/tensors')] == found


CALLED = {'name': 'f', 'arguments': {'values': [1, 2]}}
CALL = {'role': 'assistant', 'content': '', 'tool_calls': [{'function': CALLED}]}


@pytest.mark.parametrize('ending', ['jsonl', 'json', 'parquet', 'hf'])
def test_an_object_of_lists_stays_one(tmp_path, ending):
  """A tool's arguments are no list of objects, wherever the row comes from."""
  row = {'messages': [*ASK, CALL], 'kwargs': {'words': ['a', 'b'], 'counts': [1, 2]}}
  path = tmp_path / f'rows.{ending}'
  if ending == 'parquet':
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  elif ending == 'hf':
    datasets = pytest.importorskip('datasets')
    datasets.Dataset.from_list([row]).save_to_disk(path)
  else:
    path.write_text(json.dumps(row if ending == 'jsonl' else [row]))
  found = tables.open_table(f'hf:{path}' if ending == 'hf' else str(path))
  assert found[0] == row


def test_what_arrow_fills_up_is_not_read(tmp_path):
  """Every object of a column has the fields of all; a rating that is null is said."""
  call = lambda **told: {'function': {'name': 'f', 'arguments': told}}
  talk = [*ASK, {'role': 'assistant', 'tool_calls': [call(x=1), call(y=2)]}]
  padded = [m | {'name': None} for m in talk]
  tools = [{'name': 'f', 'parameters': {'x': {'type': 'int'}}}, {'name': 'g'}]
  row = {'messages': talk, 'tools': tools, 'ratings': {'kind': 1, 'true': None}}
  path = str(tmp_path / 'rows.parquet')
  parquet.write_table(pyarrow.Table.from_pylist([row | {'messages': padded}]), path)
  assert tables.open_table(path)[0] == row


def test_a_category_of_parquet_is_text(tmp_path):
  """Each row group has a dictionary of its own."""
  column = pyarrow.array(['a', 'b', 'a']).dictionary_encode()
  path = str(tmp_path / 'rows.parquet')
  parquet.write_table(pyarrow.table({'prompt': column}), path, row_group_size=1)
  assert [row['prompt'] for row in tables.open_table(path)] == ['a', 'b', 'a']


def test_parquet_is_not_held_in_memory(tmp_path):
  table = pyarrow.table({'prompt': [f'{i}' * 1000 for i in range(2000)]})
  path = str(tmp_path / 'rows.parquet')
  parquet.write_table(table, path)
  before = pyarrow.total_allocated_bytes()
  found = tables.open_table(path)
  assert pyarrow.total_allocated_bytes() - before < table.nbytes / 10
  assert found[1999]['prompt'] == '1999' * 1000


def test_a_split_that_is_not_there(tmp_path):
  """Held-out rows are not silently those to train on; a slice is a slice."""
  datasets = pytest.importorskip('datasets')
  rows = datasets.Dataset.from_list(THREE)
  rows.save_to_disk(tmp_path / 'one')
  datasets.DatasetDict({'dev': rows, 'test': rows}).save_to_disk(tmp_path / 'two')
  read = lambda path: [*tables.open_table(f'hf:{tmp_path}/{path}')]
  assert read('one:train[1:]') == THREE[1:] and read('two:dev[:1]+test') == [
    *THREE[:1],
    *THREE,
  ]
  for path, there in (('one:test', "'train'"), ('two', "'dev', 'test'")):
    with pytest.raises(InputError, match=rf'Unknown split .*\[{there}\]'):
      read(path)


@pytest.mark.parametrize(
  ('path', 'words'),
  [
    ('twice.json', r"twice\.json: an object has the key 'x' twice"),
    ('cut.jsonl.gz', 'cannot be read: '),
    ('plain.jsonl.gz', 'cannot be read: Not a gzipped'),
    ('lines.json', 'an object a line it is a .jsonl file'),
    ('absent.jsonl', 'cannot be read'),
    ('absent.parquet', 'no such file'),
    ('rows.csv', 'of no known kind'),
    ('tfds:no_such_set', 'tfds:no_such_set'),
    ('broken.parquet', 'no readable parquet'),
    ('object.json', 'dict in place of a list'),
  ],
)
def test_paths_that_are_refused(tmp_path, monkeypatch, path, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cut.jsonl.gz').write_bytes(gzip.compress(lines(THREE))[:-9])
  (tmp_path / 'plain.jsonl.gz').write_bytes(lines(THREE))
  (tmp_path / 'lines.json').write_bytes(lines(THREE))
  (tmp_path / 'twice.json').write_text('[{"x": {"x": 1, "x": 2}}]')
  for name in ('rows.csv', 'broken.parquet', 'object.json'):
    (tmp_path / name).write_text('{}')
  with pytest.raises(InputError, match=words):
    tables.open_table(path)


# ---- files ---------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
  """12 rows of 4 prompts, 3 answers each."""
  rows = [{'question': f'q{i % 4}', 'answer': f'a{i}'} for i in range(12)]
  file = tmp_path / 'rows.jsonl'
  file.write_bytes(lines(rows))
  return str(file)


TEXT = 'prompt=question, completion=answer'
COLUMNS = {'prompt': 'question', 'completion': 'answer'}


def load(path, **options):
  return files(path=path, kind='demonstrations', columns=COLUMNS, **options)


def test_no_prompt_is_in_both_splits(path):
  found = load(path, test_size=4)
  train_set, test_set = ({e.prompt for e in rows} for rows in (found.train, found.test))
  assert not train_set & test_set
  assert train_set | test_set == {'q0', 'q1', 'q2', 'q3'}
  assert (len(found.train), len(found.test)) == (6, 6)  # 4 rows need two prompts of 3.
  again = load(path, test_size=4)
  assert [*again.test] == [*found.test]
  assert [*load(path, test_size=4, seed=2).test] != [*found.test]


def test_options(path):
  found = load(path, test_size=3, limit=8, as_chat=True)
  assert len(found.train) + len(found.test) == 8
  assert found.train[0].prompt[0]['role'] == 'user'
  with pytest.raises(InputError, match='would hold out every prompt'):
    load(path, test_size=12)
  for option in ('test_size', 'limit'):
    with pytest.raises(InputError, match=f'{option}=-3; give 0 or more'):
      load(path, **{option: -3})
  with pytest.raises(InputError, match="write 'prompt=question'"):
    files(path=path, kind='demonstrations', columns='question', test_size=3)
  named = files(path=path, kind='demonstrations', test_size=3, columns=TEXT)
  assert [*named.test] == [*load(path, test_size=3).test]
  with pytest.raises(InputError, match='no held-out rows'):
    load(path)
  with pytest.raises(InputError, match=r"kind='pear'.*Did you mean 'pairs'"):
    files(path=path, kind='pear', test_size=1)
  with pytest.raises(InputError, match=r"\['promtp'\] is no field of kind"):
    files(
      path=path, kind='demonstrations', columns=f'promtp=question,{TEXT}', test_size=1
    )
  with pytest.raises(InputError, match=r"line 1: no field 'title'"):
    files(path=path, columns={'prompt': 'title'}, test_size=1)


def test_prompts_that_are_held_out_too_are_reported(tmp_path):
  rows = [{'prompt': x, 'completion': 'a'} for x in 'pqr']
  path, other = write(tmp_path, rows), tmp_path / 'other.jsonl'
  other.write_bytes(lines([rows[1], {'prompt': 's', 'completion': 'a'}]))
  found = files(path=path, test_path=str(other), kind='demonstrations')
  assert found.report[0] == f'{path}: 1 training prompts are held out too.'
  assert len(found.train) == 3
  other.write_bytes(lines([{'prompt': 's', 'completion': 'a'}]))
  found = files(path=path, test_path=str(other), kind='demonstrations')
  assert len(found.report) == 1


def test_prompts_that_end_within_a_token_are_reported():
  """AT-42: said before training, and only where it is so."""
  tokenizer = pretrained.load('smollm2').tokenizer
  coder = chat.coder(tokenizer, pretrained.stop_ids(tokenizer))
  good = Example('two plus two is', (' four',), (1.0,))
  bad = good._replace(prompt='two plus two is ', completions=('four',))
  asked = Example([turn('two')], ('four',), (1.0,))
  assert examples.boundaries(coder, [good, asked]) == []
  (line,) = examples.boundaries(coder, [good, bad, asked])
  assert line.startswith('1 of the first 3 prompts end within a token')


ROW = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
STEP = {'prompt': 'q', 'completions': ['a', 'b']}


@pytest.mark.parametrize(
  ('method', 'kind', 'good', 'bad', 'words'),
  [
    ('dpo', 'pairs', ROW, ROW | {'chosen': 'a<eos>b'}, "stop token '<eos>'"),
    ('dpo', 'pairs', ROW | {'margin': 1}, ROW, 'the first one has'),
    (
      'prm',
      'steps',
      STEP | {'labels': [1, 0.5]},
      STEP | {'labels': [1, -1]},
      r"prm: a step has the label -1; with labels='soft' one is from 0 to 1",
    ),
    ('prm', 'steps', STEP | {'labels': [1, 0]}, STEP | {'labels': [5, 1]}, 'label 5'),
    (
      'multitask_ratings',
      'ratings',
      {'prompt': 'q', 'completion': 'a', 'ratings': {'share': 1}},
      {'prompt': 'q', 'completion': 'a', 'ratings': {'share': 5}},
      "'share' is rated 5; config.method has 2 classes from 0",
    ),
    (
      'prm(signed)',
      'steps',
      STEP | {'labels': [1, -1]},
      STEP | {'labels': [1, 0.5]},
      'label 0.5; .* -1, 0 or 1',
    ),
  ],
)
def test_what_cannot_be_encoded_or_is_unlike_the_rest_is_left_out_too(
  tmp_path, method, kind, good, bad, words
):
  rows = [row | {'prompt': f'q{i}'} for i, row in enumerate([good] * 3 + [bad, good])]
  path = write(tmp_path, rows)
  c = data_config(path, kind, method.partition('(')[0], test_path=path)
  if 'signed' in method:
    c.method.labels = 'signed'
  with pytest.raises(InputError, match=f'line 4: .*{words}'):
    feeds.load_data(c, TINY)
  c.data.bad_rows = 'drop'
  data, encode = feeds.load_data(c, TINY)
  assert [e.prompt[0]['content'] for e in data.train] == ['q0', 'q1', 'q2', 'q4']
  assert len(data.test) == 4 and encode([*data.train]).dropped == 0
  left = [line for line in data.report if 'left out' in line]
  assert left[0].startswith('1 of 5 training examples are left out')
  assert 'line 4: ' in left[0] and left[1].startswith('1 of 5 held-out')


def test_of_a_mixture_each_part_says_what_is_left_out(tmp_path):
  path = write(tmp_path, [ROW | {'prompt': f'q{i}'} for i in range(3)])
  (tmp_path / 'bad').mkdir()
  rows = [ROW | {'chosen': 'a<eos>b' if i else 'a'} for i in range(3)]
  other = write(tmp_path / 'bad', rows)
  part = lambda path, **o: dict(
    name='files', path=path, test_path=path, as_chat=True, **o
  )
  c = data_config(path, 'pairs', 'dpo')
  parts = {'a': part(path), 'b': part(other, bad_rows='drop')}
  c.data = dict(name='mixture', parts=parts)
  data, _ = feeds.load_data(c, TINY)
  assert data.parts == [(3, 1.0), (1, 1.0)] and len(data.train) == len(data.test) == 4
  c.data.parts.b.bad_rows = 'error'
  with pytest.raises(InputError, match=r'line 2: .*stop token'):
    feeds.load_data(c, TINY)


TOOLS = [{'type': 'function', 'function': {'name': 'add', 'description': 'sums'}}]
SHOWS = (
  '{% if tools %}{{ tools | tojson }}{% endif %}{{ mood or "" }}'
  '{% for m in messages %}{{ m.content }}\n{% endfor %}'
)


@pytest.mark.parametrize('tools', [TOOLS, json.dumps(TOOLS)], ids=['list', 'json'])
def test_tools_reach_the_template_and_the_digest(tmp_path, tools):
  tokenizer = pretrained.load('tiny').tokenizer
  tokenizer.chat_template = SHOWS
  coder = chat.coder(tokenizer, pretrained.stop_ids(tokenizer))
  encode = examples.Encoder(coder, max_prompt=200, max_length=9)

  def read(**more):
    path = write(tmp_path, [{'messages': TALK, **more}])
    found = files(path=path, test_path=path, kind='demonstrations')
    coded = encode.read(found.train[0])
    said = coder.decode(coded.completions[0].tokens)
    return tokenizer.decode(coded.prompt), said, found.digest

  options = {'chat_template_kwargs': {'mood': 'happy', 'other': None}}
  want = tokenizer.apply_chat_template(
    ASK, tools=TOOLS, mood='happy', tokenize=False, add_generation_prompt=True
  )
  assert 'sums' in want and 'happy' in want
  plain, both = read(), read(tools=tools, **options)
  assert both[:2] == (want, plain[1])
  assert read(tools=[]) == plain
  assert len({plain[2], both[2], read(**options)[2], read(tools=tools)[2]}) == 4
  tokenizer.chat_template = SHOWS.partition('endif %}')[2]
  with pytest.raises(InputError, match=r"line 1: .*does not show the tools.*'add'"):
    read(tools=tools)


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    ({'messages': TALK, 'tools': 'add'}, "'tools' is no JSON"),
    ({'messages': TALK, 'tools': ['add']}, "'tools' is a list of objects"),
    ({'messages': TALK, 'chat_template_kwargs': ['x']}, 'kwargs. is an object'),
    ({'prompt': 'q', 'completion': 'a', 'tools': TOOLS}, 'the prompt is plain text'),
  ],
)
def test_tools_that_are_refused(tmp_path, more, words):
  path = write(tmp_path, [more])
  with pytest.raises(InputError, match=f'line 1: .*{words}'):
    files(path=path, test_path=path, kind='demonstrations')


SILENT = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': ''}]


def test_rows_that_do_not_fit_are_left_out_where_that_is_asked(tmp_path):
  """Counted and the first named; the others are as they were."""
  good = [{'prompt': f'q{i}', 'completion': 'abc'} for i in range(6)]
  path = write(tmp_path, [good[0], {'prompt': 'q'}, {'messages': SILENT}, *good[1:]])
  read = lambda **o: files(path=path, kind='demonstrations', test_size=2, **o)
  with pytest.raises(InputError, match='line 2: '):
    read()
  found = read(bad_rows='drop')
  assert len(found.train) + len(found.test) == 6
  assert '2 rows are left out. First' in found.report[0] and 'line 2' in found.report[0]
  with pytest.raises(InputError, match="bad_rows='skip'"):
    read(bad_rows='skip')
  path = write(tmp_path, [{'messages': SILENT}])
  with pytest.raises(InputError, match='line 1: an assistant message is empty'):
    files(path=path, kind='demonstrations', test_size=1, bad_rows='drop')


@pytest.mark.slow
def test_a_hundred_thousand_rows_stream(tmp_path):
  """Memory grows by what says where rows stand, 50 MB for a file of 100 MB at most."""
  row = {'prompt': 'q' * 400, 'chosen': 'c' * 300, 'rejected': 'r' * 300}
  small = write(tmp_path, [row, row | {'prompt': 'x'}])
  path = tmp_path / 'many.jsonl'
  with path.open('w') as file:
    for i in range(100_000):
      file.write(json.dumps(row | {'prompt': f'{i} {row["prompt"]}'}) + '\n')
  assert path.stat().st_size > 100e6
  script = f"""
import pathlib
from jaxrl_llm.data.files import files
def status(key):
  return int(pathlib.Path('/proc/self/status').read_text().split(key)[1].split()[0])
files(path={small!r}, test_size=1)
pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak starts here.
before = status('VmRSS:')
found = files(path={str(path)!r}, test_size=1000)
assert len(found.train) + len(found.test) == 100_000
for i in range(0, len(found.train), 7):
  found.train[i]
print((status('VmHWM:') - before) / 1024)
"""
  out = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  )
  grown = float(out.stdout)
  print(f'{grown:.0f} MiB')
  assert grown < 50


def test_the_digest_is_of_every_row(path):
  first = load(path, test_size=3).digest
  assert load(path, test_size=3).digest == first
  with open(path, 'a') as file:
    file.write('{"question": "q0", "answer": "b"}\n')
  assert load(path, test_size=3).digest != first


def test_contamination():
  """Five words in a row, whatever case and punctuation."""
  held = ['How many eggs does Ann have?']
  rows = [
    'So: how MANY eggs does Ann sell',
    'How many eggs',
    'how many eggs does Bob have',
  ]
  rows, held = [[[x] for x in texts] for texts in (rows, held)]
  assert [[x] for x in contamination.shared(rows, held, 5)] == rows[:1]
  assert [[x] for x in contamination.shared(rows, held, 3)] == rows
  assert contamination.report(iter(rows), held, 5).startswith(
    '1 training prompts share 5 words in a row'
  )


LEAK = 'how many eggs does Ann have'


@pytest.mark.parametrize(
  ('kind', 'row'),
  [
    ('demonstrations', {'messages': [*ASK, *SAY, turn(LEAK), *SAY]}),
    ('demonstrations', {'messages': [*ASK, *SAY, turn(LEAK, 'tool'), *SAY]}),
    ('prompt_pairs', {'prompts': ['q', LEAK], 'completion': 'a'}),
    (
      'user_pairs',
      {
        **{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
        'context': [{'prompt': LEAK, 'chosen': 'c', 'rejected': 'd'}],
      },
    ),
  ],
)
def test_what_is_told_later_is_compared_too(kind, row):
  held = Example([turn(f'So: {LEAK}?')], ('a',), (1.0,))
  told = contamination.told([KINDS[kind](row)], [held], 6)
  assert told.startswith('1 training prompts share 6 words')
  assert contamination.told([held], [KINDS[kind](row)], 6).startswith('1 training')
  said = KINDS['demonstrations']({'messages': [*ASK, turn(LEAK, 'assistant')]})
  assert contamination.told([said], [held], 6).startswith('0 training')


def test_a_system_message_that_all_share_is_no_contamination():
  rule = turn('You answer in one short word, please', 'system')
  rows = [Example([rule, turn(x)], ('a',), (1.0,)) for x in (LEAK, 'and what else')]
  told = [contamination.told(rows[1:], [row], 6) for row in rows]
  assert told[0].startswith('0 training') and told[1].startswith('1 training')


def test_words_of_a_script_without_spaces():
  held = [['小明有三个苹果, 他吃了一个']]
  rows = [['请问: 小明有三个苹果他卖了'], ['我有三个苹果'], ['ไม่มี']]
  assert [*contamination.shared(rows, held, 7)] == [rows[0][0]]
  assert contamination.grams('a 苹果 b', 2) == {('a', '苹'), ('苹', '果'), ('果', 'b')}


# ---- GSM8K's model solutions ---------------------------------------------------------


def graded(question, *right):
  row = {'question': question, 'ground_truth': '#### 1'}
  for i, r in enumerate(right):
    row[f'model{i}'] = {'solution': f's{i}', 'is_correct': r}
  return row


def test_solutions_of_a_question_are_one_group(tmp_path):
  """The right ones first, a stable order; a question is on one side."""
  rows = [graded(f'q{i}', True, False, True, False) for i in range(6)]
  rows += [graded('easy', *[True] * 4), graded('hard', *[False] * 4)]
  path = write(tmp_path, rows)
  found = solutions.solutions(path=path, test_size=3)
  assert (len(found.train), len(found.test)) == (5, 3)
  asked = lambda part: {e.prompt[0]['content'] for e in part}
  assert not asked(found.train) & asked(found.test)
  every = {e.prompt[0]['content']: e for e in (*found.train, *found.test)}
  assert every['q0'].completions == ['s0', 's2', 's1', 's3']
  assert every['q0'].reward == [1.0, 1.0, -1.0, -1.0]
  assert every['hard'].reward == [-1.0] * 4
  both = solutions.solutions(path=path, contrast=True, test_size=2)
  assert asked(both.train) | asked(both.test) == {f'q{i}' for i in range(6)}
  assert '4 questions with 16 solutions (8 right; 16 pairs' in both.report[0]


def test_a_solution_that_is_not_graded(tmp_path):
  two = graded('a', True, True)
  path = write(tmp_path, [two, {'question': 'b', 'model': 'words'}])
  with pytest.raises(InputError, match=r"line 2: 'model' is no object"):
    solutions.solutions(path=path)
  with pytest.raises(InputError, match=r'line 1: 1 completions'):
    solutions.solutions(path=write(tmp_path, [graded('a', True)]))


# ---- Mixtures ------------------------------------------------------------------------


def test_a_mixture(tmp_path):
  """Parts one after the other, with their sizes and weights; held-out ones too."""
  one = write(tmp_path, [{'prompt': f'q{i}', 'completion': 'a'} for i in range(9)])
  part = dict(name='files', path=one, kind='demonstrations', test_size=2)
  toy_part = dict(name='letters', kind='demonstrations', size=5, test_size=1)
  found = mixture.mixture(parts={'a': part, 'b': toy_part | {'weight': 3}})
  assert found.parts == [(7, 1.0), (5, 3.0)]
  assert len(found.train) == 12 and len(found.test) == 3
  assert [e.completions[0] for e in found.train][:7] == ['a'] * 7
  assert found.train[7] == letters.letters(kind='demonstrations', size=5).train[0]
  both = {'a': part, 'b': part | {'seed': 1}}
  share = lambda line: int(line.partition(' training prompts share')[0].split()[-1])
  assert share(mixture.mixture(parts=both, contamination=1).report[-1]) > 0
  alone = mixture.mixture(parts={'a': part | {'contamination': 1}}).report[-1]
  assert share(alone) == 0
  other = mixture.mixture(parts={'a': part | {'seed': 1}, 'b': toy_part})
  assert other.digest == found.digest
  assert 'a: ' in found.report[0]


def test_a_mixture_of_pairs_with_and_without_margins(tmp_path):
  """What a policy has come to compare, with the rewards' margins, beside stored pairs:
  gshf_hybrid's. A margin that not all have is left out, and that is said.
  """
  rows = [{'prompt': f'q{i}', 'chosen': 'a', 'rejected': 'b'} for i in range(9)]
  table = write(tmp_path, [row | {'margin': 2.0} for row in rows])
  part = dict(name='files', path=table, kind='pairs', test_size=2)
  toy_part = dict(name='letters', kind='pairs', size=5, test_size=1)
  found = mixture.mixture(parts={'a': part, 'b': toy_part})
  for split in (found.train, found.test):
    assert len({fitting.describe(e) for e in split}) == 1
  assert "'margin' is left out of every pair, since ['b']" in found.report[-1]
  assert mixture.mixture(parts={'a': part}).train[0].extra == {'margin': 2.0}


@pytest.mark.parametrize(
  ('parts', 'message'),
  [
    ({}, 'config.data.parts is empty'),
    ({'a': {'path': 'x'}}, r'parts\.a has no name'),
    ({'a': {'name': 'letters', 'weight': 0}}, r'parts\.a\.weight=0'),
    ({'a': {'name': 'letters', 'weight': 'x'}}, r"parts\.a\.weight='x'"),
    ({'a': {'name': 'leters'}}, "Did you mean 'letters'"),
    ({'a': {'name': 'letters', 'sise': 3}}, "Did you mean 'size'"),
  ],
)
def test_a_wrong_mixture(parts, message):
  with pytest.raises(InputError, match=message):
    mixture.mixture(parts=parts)


# ---- Runs ----------------------------------------------------------------------------


def data_config(path, kind, method, **options):
  c = runs.config(method, steps=3, checkpoint=dict(every=1, keep=1))
  c.data = dict(name='files', path=path, kind=kind, as_chat=True, **options)
  c.source.update(prompts=4, max_prompt=8, max_length=6)
  return c


def write(folder, rows):
  file = folder / 'rows.jsonl'
  file.write_bytes(lines(rows))
  return str(file)


FEEDBACK = {
  'sft': ('demonstrations', lambda i: {'completion': 'abc'}),
  'dpo': ('pairs', lambda i: {'chosen': 'abc', 'rejected': 'ab'}),
  'kto': ('labels', lambda i: {'completion': 'abc', 'label': bool(i % 2)}),
  'bradley_terry': ('pairs', lambda i: {'chosen': 'abc', 'rejected': 'ab'}),
}


@pytest.mark.parametrize('method', FEEDBACK)
def test_a_run_on_a_file(tmp_path, method):
  kind, row = FEEDBACK[method]
  path = write(tmp_path, [{'prompt': f'q{i}', **row(i)} for i in range(19)])
  c = data_config(path, kind, method, test_size=5, contamination=2)
  held = train.main(c, str(tmp_path / 'run'))
  records = runs.records(tmp_path / 'run')
  assert [r['dropped'] for r in records if r['split'] == 'train'] == [0, 0, 0]
  assert np.isfinite(held['eval/loss'])
  if kind == 'pairs':  # Wilson, five of five or none of five.
    assert held['eval/low'] <= held['eval/accuracy'] <= held['eval/high']
    assert held['eval/longer'] == 1


@pytest.mark.parametrize('method', ['kto', 'bradley_terry'])
def test_a_run_on_solutions(tmp_path, method):
  """Of ten questions with three solutions, the right one the longest."""
  rows = [graded(f'q{i}', False, True, False) for i in range(10)]
  for row in rows:
    row['model1']['solution'] = 'abcd'
  c = runs.config(method, steps=2, plan=dict(pack=64))
  c.data = dict(name='solutions', path=write(tmp_path, rows), test_size=3)
  c.source.update(prompts=4, max_prompt=24, max_length=6)
  held = train.main(c, str(tmp_path / 'run'))
  assert np.isfinite(held['eval/loss'])
  assert held['eval/longer'] == 1
  if method == 'bradley_terry':  # Of three questions, however many comparisons.
    interval = accuracy.wilson(3 * held['eval/accuracy'], 3)
    np.testing.assert_allclose((held['eval/low'], held['eval/high']), interval)


def test_comparisons_of_a_group_count_as_one():
  """Two wins and a loss, a tie, nothing to compare, and a group that is not valid."""
  length = np.array([[9, 5, 7, 10], [4, 4, 4, 4], [1, 2, 3, 4], [9, 1, 1, 1]])
  reward = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
  found = stored.longer(length, reward, np.array([1.0, 1, 1, 0]))
  np.testing.assert_allclose(found, (2 / 3 + 1 / 2, 2.0), rtol=1e-6)
  pairs = np.array([[5, 3], [2, 2], [1, 8]]), np.zeros((3, 2)), np.ones(3)
  np.testing.assert_allclose(stored.longer(*pairs), (1.5, 3.0))


def test_the_interval_is_of_groups_that_compare():
  """Of 200 groups half have comparisons, of which six in ten are won."""
  found = stored.summary([{'accuracy': (0.1, 0.25)}, {'accuracy': (0.2, 0.25)}], 200)
  want = accuracy.wilson(60, 100)
  np.testing.assert_allclose((found['eval/low'], found['eval/high']), want, rtol=1e-6)


LONG = 'a' * 9  # With its end ten tokens, as prompt and as completion.


def loaded(folder, train_rows, test_rows, **options):
  """Demonstrations (prompt, completion): prompts of 8 tokens, completions of 6 fit."""
  for name, rows in (('train', train_rows), ('test', test_rows)):
    told = [{'prompt': p, 'completion': c} for p, c in rows]
    (folder / name).mkdir()
    options[name] = write(folder / name, told)
  paths = dict(test_path=options.pop('test'))
  c = data_config(options.pop('train'), 'demonstrations', 'sft', **paths, **options)
  return feeds.load_data(c, pretrained.load('tiny'))[0]


@pytest.mark.parametrize(
  ('train_rows', 'test_rows', 'words'),
  [
    (
      [(LONG, 'b'), (LONG + 'a', 'b')],
      [('a', 'b')],
      'all 2 training .*max_prompt=8: .* prompt .* has 10 tokens, the longest 11',
    ),
    (
      [('a', 'b')],
      [('a', LONG)],
      'all 1 held-out .*max_length=6: .* completion .* has 10 tokens, .* 10',
    ),
    ([(LONG, 'b'), ('a', LONG)], [('a', 'b')], 'max_prompt=8: .*max_length=6: '),
  ],
)
def test_data_of_which_nothing_is_left_are_refused(
  tmp_path, train_rows, test_rows, words
):
  policies = dict(long_prompt='drop', long_completion='drop')
  with pytest.raises(InputError, match=words):
    loaded(tmp_path, train_rows, test_rows, **policies)


def test_how_many_examples_are_too_long_is_said(tmp_path):
  rows = [(LONG, 'b'), (LONG, 'b'), ('a', LONG), ('a', 'b')]
  data = loaded(tmp_path, rows, rows[3:], long_prompt='drop')
  assert data.report[0].endswith('2 training prompts are held out too.')
  assert data.report[2:] == [
    'Of 4 training examples 2 are dropped for their length: 2 with a prompt over '
    "max_prompt=8, the longest 10 tokens (long_prompt='drop') and 1 with a completion "
    "over max_length=6, the longest 10 tokens (long_completion='cut').",
  ]


def same(one, other):
  """Records of two runs, but for shares of ties and of slots."""
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    kept = [k for k in a if k not in ('accuracy', 'filled')]
    assert [a[k] for k in kept] == pytest.approx([b[k] for k in kept], abs=5e-5)


def killed(c, folder, monkeypatch):
  """A run that ends after step 2 as if by Ctrl-C, twice."""
  one_step = train.one_step

  def step(run, state, meta):
    if meta['step'] == 2:
      raise KeyboardInterrupt
    return one_step(run, state, meta)

  with monkeypatch.context() as patch:
    patch.setattr(train, 'one_step', step)
    with pytest.raises(KeyboardInterrupt):
      train.main(c, folder)


def test_a_run_on_prompts_alone(tmp_path):
  """TRL's prompt-only format: the run's own reward is what is measured."""
  for name, asked in (('train', 'abc'), ('test', 'de')):
    rows = [{'prompt': [turn(x)]} for x in asked]
    (tmp_path / f'{name}.jsonl').write_bytes(lines(rows))
  paths = {f'{k}_path': f'{tmp_path}/{k}.jsonl' for k in ('train', 'test')}
  c = runs.config(steps=1)
  c.task = dict(name='questions', question='prompt', answer='', seed=0, **paths)
  held = train.main(c, str(tmp_path / 'run'))
  assert 0 <= held['eval/reward'] <= 2
  assert 'eval/accuracy' not in held
  c.rewards = dict(right=dict(name='checker'))
  with pytest.raises(InputError, match='no answers to check'):
    train.main(c, str(tmp_path / 'other'))


def test_changed_data_is_refused_at_resume(tmp_path, monkeypatch):
  """AT-52: not silently skipped, and the old data go on."""
  rows = [{'prompt': f'q{i}', 'completion': 'abc'} for i in range(19)]
  path = write(tmp_path, rows)
  c = data_config(path, 'demonstrations', 'sft', test_size=5)
  folder = str(tmp_path / 'run')
  killed(c, folder, monkeypatch)
  write(tmp_path, [*rows[:-1], {'prompt': 'q18', 'completion': 'abd'}])
  with pytest.raises(
    InputError, match='the data are not what this run had up to step 2'
  ):
    train.main(c, folder)
  write(tmp_path, rows)
  train.main(c, folder)
  steps = [r['step'] for r in runs.records(folder) if r['split'] == 'train']
  assert steps == [1, 2, 3]


@pytest.mark.parametrize('lora', [0, 2], ids=['full', 'lora'])
def test_the_reference_is_scored_once_and_kept(tmp_path, lora):
  """AT-30: no second model; loss log 2 at first; a live reference says the same."""
  rows = [
    {'prompt': f'q{i}', 'chosen': 'abc'[: 1 + i % 3], 'rejected': 'zy'}
    for i in range(19)
  ]
  path = write(tmp_path, rows)
  found = {}
  for cached in (False, True):
    c = data_config(path, 'pairs', 'dpo', test_size=5)
    c.source.cache_reference = cached
    c.model.lora.rank = lora
    folder = tmp_path / f'run{cached}'
    train.main(c, str(folder))
    found[cached] = runs.records(folder)
    run = runs.assembled(c)
    assert ('ref' in run.state.frozen) == (not cached and not lora)
  same(found[False], found[True])
  first = found[True][0]
  assert first['eval/loss'] == pytest.approx(np.log(2), abs=1e-6)
  assert first['eval/margin'] == pytest.approx(0, abs=1e-6)
  (kept,) = (tmp_path / 'runTrue' / 'reference').glob('*/test-*.npy')
  assert np.load(kept).shape == (5, 2, 6)


def test_the_reference_scores_what_will_be_drawn(tmp_path):
  """One step of four: the other rows of the file are holes."""
  rows = [{'prompt': f'q{i}', 'chosen': 'abc', 'rejected': 'zy'} for i in range(19)]
  c = data_config(write(tmp_path, rows), 'pairs', 'dpo', test_size=5)
  c.source.update(cache_reference=True, prompts=4)
  c.update(steps=1, evaluation=dict(every=1, batch=8))
  train.main(c, str(tmp_path / 'run'))
  (kept,) = (tmp_path / 'run' / 'reference').glob('*/train-*.npy')
  assert (np.load(kept) != 0).any((1, 2)).sum() == 4
  first = runs.records(tmp_path / 'run')
  assert [r['loss'] for r in first if 'loss' in r] == pytest.approx([np.log(2)])


def test_scores_are_read_again_at_resume(tmp_path, monkeypatch):
  rows = [{'prompt': f'q{i}', 'chosen': 'abc', 'rejected': 'zy'} for i in range(19)]
  c = data_config(write(tmp_path, rows), 'pairs', 'dpo', test_size=5)
  c.source.cache_reference = True
  monkeypatch.setattr(train.assemble, 'assemble', runs.assembled)
  train.main(c, str(tmp_path / 'whole'))
  folder = str(tmp_path / 'run')
  killed(c, folder, monkeypatch)
  monkeypatch.setattr(reference.Scores, 'write', None)
  train.main(c, folder)
  assert runs.records(tmp_path / 'run') == runs.records(tmp_path / 'whole')


def test_a_method_without_a_reference_to_keep(tmp_path):
  path = write(tmp_path, [{'prompt': 'q', 'completion': 'a', 'label': True}])
  for method in ('kto', 'sft'):
    c = data_config(path, 'labels', method)
    c.source.cache_reference = True
    with pytest.raises(InputError, match=f'cache_reference: {method} has no'):
      train.main(c, str(tmp_path / 'run'))


@pytest.mark.parametrize('option', ['pack', 'bucket'])
def test_layouts_change_no_number(tmp_path, option):
  """AT-44: rows packed, or as wide as they need: the run of padded rows."""
  rows = [
    {'prompt': 'q' * (1 + i % 5), 'chosen': 'abcde'[: 1 + i % 4], 'rejected': 'zy'}
    for i in range(24)
  ]
  path = write(tmp_path, rows)
  found = {}
  for on in (False, True):
    c = data_config(path, 'pairs', 'dpo', test_size=5)
    c.source.prompts = 8
    if option == 'pack':
      c.plan.update(pack=32 * on, microbatches=2)
    else:
      c.source.bucket = 3 if on else 6  # One bucket holds all: the same order.
    train.main(c, str(tmp_path / f'run{on}'))
    found[on] = runs.records(tmp_path / f'run{on}')
  same(found[False], found[True])


def test_packed_rows_are_as_wide_as_the_longest_group(tmp_path):
  """Of stored data, in steps of 64; one that is too long is found before training."""
  rows = [{'prompt': 'q' * (i + 1), 'completion': 'ab'} for i in range(9)]
  c = data_config(write(tmp_path, rows), 'demonstrations', 'sft', test_size=3)
  c.source.max_prompt = 64
  for pack, width in ((40, 40), (512, 64)):
    c.plan.pack = pack
    run = runs.assembled(c)
    assert run.source(run.state, 1).batch.layout.source.shape[-1] == width
  c.plan.pack = 8
  with pytest.raises(InputError, match=r'has \d+ tokens and config.plan.pack is 8'):
    train.main(c, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('method', ['sft', 'dpo'])
def test_held_out_metrics_do_not_depend_on_the_batch(tmp_path, method):
  """AT-59: unequal lengths, one row too long, the last batch filled up."""
  kind = {'sft': 'demonstrations', 'dpo': 'pairs'}[method]
  words = lambda i: {'completion': 'abcde'[: 1 + i % 5]}
  if method == 'dpo':
    words = lambda i: {'chosen': 'abcde'[: 1 + i % 5], 'rejected': 'vwxyz'[: 1 + i % 3]}
  rows = [{'prompt': 'q' if i % 5 else 'q' * 9, **words(i)} for i in range(30)]
  rows = [row | {'prompt': f'{i}{row["prompt"]}'} for i, row in enumerate(rows)]
  path, found = write(tmp_path, rows), []
  for batch in (3, 8):
    c = data_config(path, kind, method, test_size=11)
    c.data.long_prompt = 'drop'
    c.evaluation.batch = batch
    run = train.assemble.assemble(c)
    moved = jax.tree.map(
      lambda x: x + 0.01 * jnp.sin(jnp.arange(x.size)).reshape(x.shape),
      run.state.params,
    )
    found.append(run.evaluate(run.state.replace(params=moved)).metrics)
  assert found[0] == pytest.approx(found[1], rel=1e-5)
  assert found[0]['eval/dropped'] > 0
  if method == 'sft':
    assert found[0]['eval/loss'] == pytest.approx(found[0]['eval/nll'], rel=1e-6)
