"""What a run leaves on disk survives a kill, a resume and odd values."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image
from ml_collections import config_dict

from jaxrl_llm import figure, log
from jaxrl_llm.types import InputError

NAN = float('nan')


def settings(**kwargs):
  section = {'tensorboard': False, 'wandb': False, **kwargs}
  return config_dict.ConfigDict({'steps': 10, 'name': 'toy', 'log': section})


def test_jsonl_has_one_line_per_record(tmp_path):
  path = tmp_path / 'm.jsonl'
  sink = log.jsonl(path)
  sink.write(1, 'train', {'reward': 0.5, 'loss': NAN, 'max/ratio': float('inf')})
  sink.write(1, 'eval', {'eval/accuracy': 0.25})
  sink.close()
  # JSON has no NaN: a strict reader must get through.
  strict = lambda text: json.loads(text, parse_constant=lambda name: 1 / 0)
  assert [strict(line) for line in path.read_text().splitlines()] == [
    {'step': 1, 'split': 'train', 'reward': 0.5, 'loss': None, 'max/ratio': None},
    {'step': 1, 'split': 'eval', 'eval/accuracy': 0.25},
  ]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
  path = tmp_path / 'm.jsonl'
  one, two, three = ({'step': n, 'split': 'train'} for n in (1, 2, 3))
  path.write_text(f'{json.dumps(one)}\n{json.dumps(two)}\n{{"step": 3, "rew')
  assert log.read_lines(path) == [one, two]
  assert log.read_lines(tmp_path / 'none.jsonl') == []
  log.truncate_after(path, 9, 9)
  log.append(path, three)
  assert log.read_lines(path) == [one, two, three]


def test_truncate_after(tmp_path):
  """Stopped at step 4 before its evaluation: that one is to come, the step is not."""
  path = tmp_path / 'm.jsonl'
  for step in (2, 4, 5):
    log.append(path, {'step': step, 'split': 'train'})
    log.append(path, {'step': step, 'split': 'eval'})
  log.truncate_after(path, 4, 2)
  kept = [(r['step'], r['split']) for r in log.read_lines(path)]
  assert kept == [(2, 'train'), (2, 'eval'), (4, 'train')]


def test_a_resumed_run_has_no_record_twice(tmp_path, capsys):
  """Killed after step 5 with a checkpoint of step 3: as if never interrupted."""

  def run(folder, first, last):
    sinks = log.open_sinks(folder, settings(), first, first)
    for step in range(first + 1, last + 1):
      sinks.write(step, 'train', {'reward': step / 10})
      if step % 2 == 0:
        sinks.write(step, 'eval', {'eval/accuracy': step / 100})
        sinks.table(step, 'eval', [{'prompt': f'p{step}', 'reward': 0.5}])
    sinks.close()

  for name, spans in {'whole': [(0, 8)], 'killed': [(0, 5), (3, 8)]}.items():
    (tmp_path / name).mkdir()
    for first, last in spans:
      run(tmp_path / name, first, last)
      with (tmp_path / name / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 9, "cut')
  for name in ('metrics.jsonl', 'samples.jsonl'):
    whole, killed = ((tmp_path / run / name) for run in ('whole', 'killed'))
    assert killed.read_text() == whole.read_text()
  # 8 steps of training, evaluations and samples at 2, 4, 6 and 8.
  assert len(log.read_lines(tmp_path / 'killed/metrics.jsonl')) == 12
  samples = log.read_lines(tmp_path / 'killed/samples.jsonl')
  assert [(s['step'], s['prompt']) for s in samples] == [
    (2, 'p2'),
    (4, 'p4'),
    (6, 'p6'),
    (8, 'p8'),
  ]


@pytest.mark.parametrize('broken', ['write_text', 'replace'])
def test_write_json_is_whole_or_not_at_all(tmp_path, monkeypatch, broken):
  path = tmp_path / 'run.json'
  log.write_json(path, {'a': 1})

  def killed(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Path if broken == 'write_text' else os, broken, killed)
    with pytest.raises(KeyboardInterrupt):
      log.write_json(path, {'a': 2})
    with pytest.raises(KeyboardInterrupt):
      log.write_json(tmp_path / 'new.json', {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}
  assert not (tmp_path / 'new.json').exists()
  log.write_json(path, {'a': 3})
  assert json.loads(path.read_text()) == {'a': 3}


def test_numbers_of_arrays_are_numbers_in_a_file(tmp_path):
  path = tmp_path / 'x.json'
  log.write_json(path, {'n': np.int64(3), 'x': np.arange(2.0), 'y': jnp.float32(0.5)})
  assert json.loads(path.read_text()) == {'n': 3, 'x': [0.0, 1.0], 'y': 0.5}
  log.write_json(path, {'where': tmp_path})
  assert json.loads(path.read_text()) == {'where': str(tmp_path)}


def test_truncation_that_is_killed_loses_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'm.jsonl'
  log.append(path, {'step': 1, 'split': 'train'})
  log.append(path, {'step': 2, 'split': 'train'})
  before = path.read_text()

  def killed(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    log.truncate_after(path, 1, 1)
  assert path.read_text() == before


def test_console_without_a_terminal(capsys):
  screen = log.console(10, 4)
  found = {'reward': 0.25, 'kl_ref': NAN, 'tokens_per_second': 512.0, 'z0': 1.0}
  screen.write(5, 'train', found)
  screen.write(5, 'eval', {'reward': 9.0})
  screen.say('hello\nworld')
  screen.close()
  out, err = capsys.readouterr()
  assert out.splitlines() == [
    'step 5/10  reward 0.25  kl nan  tok/s 512',
    'hello',
    'world',
  ]
  assert err == ''


def test_time_left(capsys, monkeypatch):
  # The first step is not timed; the next two take 30 s each, and 7 are left: 210 s.
  clock = {}
  monkeypatch.setattr(log, 'time', SimpleNamespace(monotonic=lambda: clock['now']))
  screen = log.console(10, 0)
  for step, clock['now'] in ((1, 100.0), (2, 130.0), (3, 160.0)):
    screen.write(step, 'train', {})
  last = capsys.readouterr().out.splitlines()[-1]
  assert last == 'step 3/10  left 03:30'


def test_console_on_a_terminal(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  screen = log.console(10, 4)
  screen.write(5, 'train', {'reward': 0.25, 'kl_ref': 0.001, 'grad_norm/policy': 7.0})
  screen.close()
  last = terminal.getvalue().rstrip().split('\r')[-1]
  assert '5/10' in last
  assert 'reward 0.25' in last
  assert 'kl 0.001' in last
  assert 'grad' not in last


def test_sample_table():
  rows = [
    {'prompt': '2+2\n=', 'completion': '<answer>4</answer>', 'reward': 1.0},
    {'prompt': 'x' * 20, 'completion': 'bell \a', 'reward': NAN},
    {'prompt': 'beyond the limit', 'completion': '', 'reward': 0.0},
  ]
  assert log.sample_table(rows, limit=2, width=18).splitlines() == [
    'prompt              completion          reward',
    '------------------  ------------------  ------',
    r'2+2\n=              <answer>4</answer>  1.00',
    'xxxxxxxxxxxxxxxxx…  ' + r'bell \x07' + ' ' * 11 + 'nan',
  ]
  assert log.sample_table([]) == ''


def test_tensorboard(tmp_path):
  """The numbers come back from the event file, and TensorFlow is not needed."""
  from tensorboardX.proto import event_pb2

  sink = log.tensorboard(tmp_path, 7)
  sink.write(8, 'train', {'reward': 0.5})
  sink.close()
  (path,) = tmp_path.iterdir()
  data, events = path.read_bytes(), []
  while data:  # A record: length (8 bytes), its crc (4), the event, its crc (4).
    size = int.from_bytes(data[:8], 'little')
    events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
  assert values == [(8, 'train/reward', 0.5)]
  assert 8 in [e.step for e in events if e.HasField('session_log')]  # Hides 8 onwards.
  assert 'tensorflow' not in sys.modules


def test_wandb_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match=r'pip install .*\[wandb\]'):
    log.open_sinks(tmp_path, settings(wandb=True), 0, 0)


def test_wandb_gets_every_record(tmp_path, monkeypatch):
  got = []
  run = SimpleNamespace(
    log=lambda found, step: got.append((step, found)),
    finish=lambda: got.append('finished'),
  )
  service = SimpleNamespace(init=lambda project, name, id, resume, config, dir: run)
  monkeypatch.setitem(sys.modules, 'wandb', service)
  sink = log.wandb('toy', {}, tmp_path)
  sink.write(3, 'train', {'reward': 0.5})
  sink.close()
  assert got == [(3, {'train/reward': 0.5}), 'finished']


def test_run_record(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['train.py', '--config=x'])
  record = json.loads(json.dumps(log.run_record(settings())))
  assert record['config']['steps'] == 10
  assert record['command'] == ['train.py', '--config=x']
  assert record['versions']['jax'] == __import__('jax').__version__
  assert len(record['devices']) == 8
  assert record['devices'][0].startswith('cpu')
  assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', record['started'])


def test_commit_of_a_checkout(tmp_path, monkeypatch):
  package = tmp_path / 'jaxrl_llm'
  package.mkdir()
  monkeypatch.setattr(log, '__file__', str(package / 'log.py'))
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  assert log.commit() == {'commit': None, 'dirty': None}  # No checkout.
  git = lambda *words: subprocess.run(
    ['git', '-c', 'user.name=n', '-c', 'user.email=e', *words],
    cwd=tmp_path,
    check=True,
    capture_output=True,
    text=True,
  )
  git('init')
  assert log.commit() == {'commit': None, 'dirty': None}  # No commit yet.
  (package / 'log.py').write_text('')
  git('add', '.')
  git('commit', '-m', 'one')
  head = git('rev-parse', 'HEAD').stdout.strip()
  assert log.commit() == {'commit': head, 'dirty': False}
  (package / 'log.py').write_text('x = 1')
  assert log.commit() == {'commit': head, 'dirty': True}
  monkeypatch.setenv('PATH', '')
  assert log.commit() == {'commit': None, 'dirty': None}  # No git.


def test_figure(tmp_path):
  """A panel for each of held-out accuracy, reward, KL and length: 4 x 3.6 inches."""
  path, out = tmp_path / 'm.jsonl', tmp_path / 'f.png'
  sink = log.jsonl(path)
  for step in range(1, 31):
    metrics = {'reward': step / 30, 'kl_ref': NAN if step == 3 else 0.01 * step}
    sink.write(step, 'train', {**metrics, 'length': 40.0, 'loss': 0.1})
    if step % 10 == 0:
      held = {'eval/accuracy': 0.5, 'eval/low': 0.4, 'eval/high': 0.6}
      sink.write(step, 'eval', held)
  figure.figure(path, out)
  height, width, _ = image.imread(out).shape
  assert (height, width) == (450, 2160)  # 3 x 14.4 inches at 150 dots.
  log.truncate_after(path, 0, 0)
  out.unlink()
  figure.figure(path, out)
  assert not out.exists()  # Nothing to draw.
