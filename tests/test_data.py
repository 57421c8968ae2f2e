"""Data sets in: every format's rows as examples; errors name file and line."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
import runs
from pyarrow import parquet

from jaxrl_llm import train
from jaxrl_llm.data import contamination, tables
from jaxrl_llm.data.examples import Example
from jaxrl_llm.data.files import files
from jaxrl_llm.data.kinds import KINDS
from jaxrl_llm.data.prepare import prepare
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
    'hh',
    {
      'chosen': '\n\nHuman: q\n\nAssistant: yes',
      'rejected': '\n\nHuman: q\n\nAssistant: no',
    },
    (ASK, (SAY, NO), (1.0, 0.0)),
  ),
  ('labels', {'prompt': 'q', 'completion': 'a', 'label': True}, ('q', ('a',), (1.0,))),
  ('labels', {'prompt': ASK, 'completion': NO, 'label': False}, (ASK, (NO,), (-1.0,))),
  (
    'rankings',
    {'prompt': 'q', 'completions': ['a', 'b', 'c'], 'ranks': [1, 0, 1]},
    ('q', ['a', 'b', 'c'], [-1.0, 0.0, -1.0]),
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
    ([*ASK, *SAY, turn('be kind')], ('No',), (-1.0,)),
  ),
]


@pytest.mark.parametrize(('kind', 'row', 'want'), ROWS)
def test_rows(kind, row, want):
  got = KINDS[kind](json.loads(json.dumps(row)))
  assert got == Example(*want)


def test_every_kind_has_a_row():
  assert {kind for kind, _, _ in ROWS} == KINDS.keys()


@pytest.mark.parametrize(
  ('kind', 'row', 'words'),
  [
    ('pairs', {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, 'are the same'),
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
    (
      'ratings',
      {'prompt': 'q', 'completion': 'a', 'ratings': {'k': 'x'}},
      "'k' is 'x'",
    ),
    ('ratings', {'prompt': 'q', 'completion': 'a', 'ratings': {}}, 'object of numbers'),
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
  made = prepare({'train': rows, 'test': rows}, str(tmp_path / 'tfds'))
  found = files(path=f'tfds:{made}:train', kind='demonstrations', test_size=1)
  said = {e.prompt: e.completions[0] for e in [*found.train, *found.test]}
  assert said == {row['prompt']: row['completion'] for row in THREE}
  with pytest.raises(InputError, match='is there already'):
    prepare({'train': rows}, str(tmp_path / 'tfds'))


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (lines(THREE) + b'{"prompt": \n', r'line 4: no JSON'),
    (lines(THREE) + b'[1]\n', 'line 4: list in place of an object'),
    (lines(THREE) + b'\xff\n', 'line 4: not UTF-8 at byte 0'),
    (
      lines(THREE) + b'\n' + lines([{'prompt': 'q'}]),
      "line 5: 'completion' is missing",
    ),
    (lines([{'prompt': 'q', 'completion': ''}]), "line 1: 'completion' is empty"),
    (b'', 'no rows'),
  ],
)
def test_bad_lines_are_named_before_training(tmp_path, content, words):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf'rows\.jsonl.*{words}'):
    files(path=str(path), kind='demonstrations', test_size=1)


@pytest.mark.parametrize(
  ('path', 'words'),
  [
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
  assert [*load(path, test_size=4, seed=1).test] != [*found.test]


def test_options(path):
  found = load(path, test_size=3, limit=8, as_chat=True)
  assert len(found.train) + len(found.test) == 8
  assert found.train[0].prompt[0]['role'] == 'user'
  with pytest.raises(InputError, match='would hold out every prompt'):
    load(path, test_size=12)
  with pytest.raises(InputError, match='no held-out rows'):
    load(path)
  with pytest.raises(InputError, match=r"kind='pear'.*Did you mean 'pairs'"):
    files(path=path, kind='pear', test_size=1)
  with pytest.raises(InputError, match=r"line 1: no field 'title'"):
    files(path=path, columns={'prompt': 'title'}, test_size=1)


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
  assert contamination.shared(rows, held, 5) == [0]
  assert contamination.shared(rows, held, 3) == [0, 1, 2]
  assert '1 of 3 training prompts share 5 words' in contamination.report(rows, held, 5)


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


def test_changed_data_is_refused_at_resume(tmp_path, monkeypatch):
  """AT-52: not silently skipped, and the old data go on."""
  rows = [{'prompt': f'q{i}', 'completion': 'abc'} for i in range(19)]
  path = write(tmp_path, rows)
  c = data_config(path, 'demonstrations', 'sft', test_size=5)
  one_step, folder = train.one_step, str(tmp_path / 'run')

  def killed(run, state, meta):
    if meta['step'] == 2:
      raise KeyboardInterrupt
    return one_step(run, state, meta)

  with monkeypatch.context() as patch:
    patch.setattr(train, 'one_step', killed)
    with pytest.raises(KeyboardInterrupt):
      train.main(c, folder)
  write(tmp_path, [*rows[:-1], {'prompt': 'q18', 'completion': 'abd'}])
  with pytest.raises(InputError, match='not those of this run up to step 2'):
    train.main(c, folder)
  write(tmp_path, rows)
  train.main(c, folder)
  steps = [r['step'] for r in runs.records(folder) if r['split'] == 'train']
  assert steps == [1, 2, 3]
