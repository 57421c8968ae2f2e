"""A user's mistake: exit status 2 and one message with thing, place and remedy."""

import dataclasses
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest
import runs
from absl import flags
from ml_collections import config_dict

from configs import toy
from jaxrl_llm import (
  asking,
  build,
  checkpoint,
  log,
  ranges,
  sections,
  selection,
  train,
  unread,
  wrapped,
)
from jaxrl_llm import methods as methods_package
from jaxrl_llm.models import config_json, pretrained, weights
from jaxrl_llm.ops import links, sequences
from jaxrl_llm.types import InputError

spec = importlib.util.spec_from_file_location(
  'experiments_train', runs.ROOT / 'experiments/train.py'
)
command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command)

TOY = f'--config={runs.ROOT}/configs/toy.py'
ANSWERED = {'calls': 0}


def called(argv):
  """Exit status of the command in this process; absl's flags are set back after it."""
  values = flags.FLAGS
  known = dict(values.__dict__['__flags'])
  argv = ['train.py', '--noallocator', *argv]
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, 'argv', argv)  # Where config flags look for overrides.
      return command.run(argv)
  finally:
    values.__dict__['__flags'] = known
    values.unparse_flags()


def message(capsys, argv, folder):
  """The one line that a refused command says; nothing is left behind."""
  status = called([*argv, f'--workdir={folder}'])
  err = capsys.readouterr().err
  assert status == 2
  assert err.startswith('error: ')
  assert 'Traceback' not in err
  assert not folder.exists()
  return err


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    ([TOY + ':grop'], ["'grop'", 'jaxrl_llm.methods', "Did you mean 'grpo'?"]),
    (['--config=no.py'], ['--config: cannot read no.py', 'configs/']),
    (['--config=no.py:dpo', '--config.steps=1'], ['cannot read no.py']),
    (['--config=no.py', '--config.steps=1'], ['cannot read no.py']),
    ([TOY + ':dpo', '--config.data.path=x'], ["'path'", 'no such entry']),
    ([TOY, '--config.model.lora.rank=-1'], ['config.model.lora.rank=-1']),
    (
      [TOY, '--config.model.lora.rank=1', '--config.model.lora.targets=('],
      ['config.model.lora.targets', 'regular expression'],
    ),
    (
      [f'--config={runs.ROOT}/configs/data.py:dpo', '--config.model.name=tiny'],
      ['config.data (files)', 'path is not set'],
    ),
    ([], ['--config=configs/quickstart.py']),
    (
      ['--config=configs/toy.py:dpo', '--config.data.kind=labels'],
      ['groups of two', '1 completions'],
    ),
    (
      ['--config=configs/toy.py:kto', '--config.data.kind=pairs'],
      ['kto', '+1', '0.0'],
    ),
    (
      ['--config=configs/toy.py:sft', '--config.data.kind=pairs'],
      ['sft', 'groups of one'],
    ),
    (
      [TOY, '--config.method.aggregate=constant_length'],
      ['config.method.aggregate', 'constant_length(length=...)'],
    ),
    (
      [TOY, '--config.method.advantage=group_norm(dof=1)'],
      ['config.method.advantage', 'ddof'],
    ),
    ([TOY, '--config.method.kl=log_ratio'], ['zero expected gradient']),
    ([TOY, '--config.source.temperature=0'], ['config.source.temperature', 'above 0']),
    ([TOY, '--config.method.bta=1'], ['bta']),
    ([TOY, '--config.method.beta=abc'], ['config.method.beta', 'abc']),
    ([TOY, '--config.steps=1.5'], ['config.steps', '1.5']),
    ([TOY, '--cnofig.steps=1'], ['cnofig.steps']),
    ([TOY, 'stray'], ["['stray']"]),
    ([TOY, '--config.method.kl=k1'], ["kl='k1'", "Use kl='k2' or 'k3'"]),
    ([TOY, '--config.method.kl=k9'], ['config.method.kl', "'k9'", "'k3'"]),
    ([TOY, '--config.method.kl=nowhere.k3'], ['config.method.kl', "'nowhere'"]),
    ([TOY + ':kto', '--config.method.baseline=x'], ["'mismatched' or 'batch'", "'x'"]),
    ([TOY, '--config.model.name=gpt9'], ["'gpt9'", "'smollm2'"]),
    ([TOY, '--config.model.dtype=int8'], ['config.model.dtype', "'int8'", 'bfloat16']),
    ([TOY, '--config.source.cache=int4'], ['config.source.cache', "'int8'"]),
    (
      [TOY, '--config.source.cache=int8'],
      ["cache='int8'", "config.plan.importance='token'", 'trust_sampler'],
    ),
    ([TOY, '--config.model.remat=al'], ['config.model.remat', "'al'"]),
    ([TOY, '--config.source.name=off'], ['config.source.name', "'off'", 'until_mixed']),
    (
      [TOY, '--config.task.name=leters'],
      ['config.task.name', "Did you mean 'letters'"],
    ),
    ([TOY, '--config.task.alphabet=a'], ["alphabet 'a'", 'at least two letters']),
    (
      [TOY + ':dpo', '--config.data.name=nothing'],
      ["['files', 'letters', 'mixture', 'solutions']"],
    ),
    ([TOY + ':dpo', '--config.data.kind=pear'], ["'pairs'", "'pear'"]),
    ([TOY + ':dpo', '--config.data.size=8'], ['8 rows', 'config.source.prompts']),
    (
      [TOY, '--config.rewards.letter.name=chek'],
      ['config.rewards.letter', "'checker'"],
    ),
    ([TOY, '--config.source.prompts=20'], ['config.source.prompts', '20', '8 devices']),
    ([TOY, '--config.mesh.data=9'], ['config.mesh', '8 devices']),
    (
      [TOY, '--config.plan.minibatches=3'],
      ['16 prompts', '3 minibatches', 'config.plan'],
    ),
    ([TOY, '--config.plan.epochs=0'], ['config.plan.epochs=0']),
    ([TOY, '--config.steps=0'], ['config.steps=0']),
    ([TOY, '--config.checkpoint.keep=0'], ['config.checkpoint.keep=0']),
    (
      [TOY, '--config.optimizer.policy.name=adamx'],
      ['config.optimizer.policy', "'adamx'", "'adam"],
    ),
    (
      [TOY, '--config.optimizer.policy.decay=cosin'],
      ['config.optimizer', "Did you mean 'cosine'"],
    ),
    (
      [TOY, '--config.source.group=1'],
      ['at least two completions', 'config.source.group'],
    ),
    (
      [TOY, '--config.source.max_prompt=2'],
      ['prompt of 4 tokens', 'config.source.max_prompt'],
    ),
    (
      [TOY, '--config.source.max_length=9000'],
      ['max_prompt + max_length = 9016', 'window', '2048'],
    ),
  ],
)
def test_flags(capsys, tmp_path, argv, words):
  said = message(capsys, argv, tmp_path / 'run')
  assert [w for w in words if w not in said] == [], said


@pytest.mark.parametrize(
  ('section', 'options', 'words'),
  [
    ('method', dict(beta='abc'), ['config.method (grpo)', "beta='abc'", 'float']),
    ('method', dict(kl_weighted=1), ['kl_weighted=1', 'bool']),
    ('method', dict(bta=0.1), ["no option 'bta'", "Did you mean 'beta'"]),
    ('method', dict(advantage=3), ['config.method.advantage=3', 'name']),
    (
      'method',
      dict(advantage=dict(name='group_norm', ddof='one')),
      ['config.method.advantage', "ddof='one'", 'int'],
    ),
    (
      'method',
      dict(advantage=dict(name='group_norm', dof=1)),
      ['config.method.advantage', "no option 'dof'", "Did you mean 'ddof'"],
    ),
    ('method', dict(advantage='runs.of_prompts'), ['Batch.advantage', '(16, 1)']),
    ('method', dict(aggregate='runs.of_prompts'), ['config.method.aggregate', '(16,)']),
    ('task', dict(lenght=3), ['config.task (letters)', "Did you mean 'length'"]),
    ('rewards', dict(reward=dict(name='checker')), ["column 'reward'", 'rename']),
    ('rewards', dict(other=1.0), ['config.rewards.other=1.0', 'name=']),
    ('rewards', dict(letter=dict(name='checker', weight=float('nan'))), ['weight']),
    ('optimizer', dict(policy=dict(name='adamw', options={})), ['learning_rate']),
    ('model', dict(name=None), ['config.model', "['name']"]),
  ],
)
def test_configs(tmp_path, section, options, words):
  """Mistakes in a config file, which no flag parser has seen."""
  c = toy.get_config().to_dict()
  c[section] = {**c[section], **options}
  said = refused(config_dict.ConfigDict(c), tmp_path / 'run')
  assert [w for w in words if w not in said] == [], said


def refused(c, folder):
  with pytest.raises(InputError) as found:
    train.main(c, str(folder))
  assert not folder.exists()
  return str(found.value)


def test_a_section_that_is_missing(tmp_path):
  for name in ('task', 'optimizer', 'source'):
    c = toy.get_config().to_dict()
    del c[name]
    said = refused(config_dict.ConfigDict(c), tmp_path / 'run')
    assert f'config.{name} is missing' in said
  c = runs.config(source=dict(name='until_mixed'))
  del c.source['limit']
  assert "config.source lacks ['limit']" in refused(c, tmp_path / 'run')


def test_a_role_without_an_optimizer(tmp_path):
  c = runs.config('ppo')
  del c.optimizer['critic']
  said = refused(c, tmp_path / 'run')
  assert "trains ['critic', 'policy']; config.optimizer lacks ['critic']" in said


# ---- Models --------------------------------------------------------------------------


def saved_model(folder, **changes):
  config = dataclasses.replace(pretrained.TINY, **changes)
  params = pretrained.random_params(config)
  fields = config_json.llama(config)
  weights.save(folder, fields, params, tokenizer=pretrained.load('tiny').tokenizer)
  return folder


def test_no_tokenizer(capsys, tmp_path):
  folder = saved_model(tmp_path / 'model')
  (folder / 'tokenizer.json').unlink()
  said = message(capsys, [TOY, f'--config.model.name={folder}'], tmp_path / 'run')
  assert f'{folder} has no tokenizer' in said
  assert 'tokenizer.save_pretrained' in said


def test_a_vocabulary_larger_than_the_embedding(tmp_path):
  folder = saved_model(tmp_path / 'model', vocab=96)
  said = refused(runs.config(model=dict(name=str(folder))), tmp_path / 'run')
  due = f'{folder}: the tokenizer has 104 tokens, the embedding only 96 rows. Use the'
  assert said.startswith(due)


# ---- Rewards -------------------------------------------------------------------------


def raises():
  def reward(sample):
    raise ValueError('boom')

  return reward


def nan():
  return lambda sample: np.float32('nan')


def none():
  return lambda sample: None


def late():
  """Good for the samples of the first two steps (8 prompts x 4), then None."""

  def reward(sample):
    ANSWERED['calls'] += 1
    return 1.0 if ANSWERED['calls'] <= 64 else None

  return reward


@pytest.mark.parametrize(
  ('name', 'words'),
  [('raises', 'ValueError: boom'), ('nan', 'returned nan'), ('none', 'returned None')],
)
def test_rewards(monkeypatch, tmp_path, name, words):
  monkeypatch.setattr(asking.held_out, 'make_held_out', lambda *a, **k: None)
  c = runs.config(evaluation=dict(every=0))
  c.rewards = dict(mine=dict(name=f'test_bad_input.{name}'))
  said = refused(c, tmp_path / 'run')
  assert re.search(r"reward 'mine', record \d+, completion", said)
  assert words in said


def test_a_reward_that_fails_later_loses_no_step(tmp_path):
  """Its steps are saved, and the same command goes on once the function is mended."""
  ANSWERED['calls'] = 0
  c = runs.config(evaluation=dict(every=0), checkpoint=dict(every=100))
  c.rewards = dict(mine=dict(name='test_bad_input.late'))
  with pytest.raises(InputError, match="reward 'mine'"):
    train.main(c, str(tmp_path))
  assert checkpoint.steps(tmp_path) == [2]
  ANSWERED['calls'] = -1000
  train.main(c, str(tmp_path))
  assert [r['step'] for r in runs.records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_the_corrected_command_may_have_the_same_folder(tmp_path):
  """A refused command claims nothing, even one that fails in its first step."""
  c = runs.config(steps=1, evaluation=dict(every=0))
  c.rewards = dict(mine=dict(name='test_bad_input.none'))
  refused(c, tmp_path / 'run')
  c.rewards = dict(mine=dict(name='test_bad_input.late'))
  ANSWERED['calls'] = 0
  train.main(c, str(tmp_path / 'run'))
  assert checkpoint.steps(tmp_path / 'run') == [1]


# ---- Folders -------------------------------------------------------------------------


def test_a_workdir_of_another_config(capsys):
  folder = runs.finished()
  before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
  other = [TOY, '--config.method.beta=0.5', f'--workdir={folder}']
  assert called(other) == 2
  said = capsys.readouterr().err
  assert f'{folder} holds a run of another config' in said
  assert 'method.beta (0.04 there, 0.5 here)' in said
  assert 'Give another --workdir' in said
  assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before


@pytest.mark.parametrize(
  ('method', 'option', 'words'),
  [
    ('grpo', dict(clip_high=-1.0), r'\(grpo\): clip_high=-1\.0; give at least 0'),
    ('dpo', dict(beta=-0.1), r'beta=-0\.1; give at least 0'),
    ('cispo', dict(ratio_max=-5.0), 'give more than 0'),
    ('gmpo', dict(log_clip=-0.4), 'give at least 0'),
    ('ppo', dict(lam=2.0), 'give at least 0 and at most 1'),
    ('online_ipo', dict(tau=0.0), r'tau=0\.0; give more than 0'),
    ('nash_md', dict(tau=-1.0), 'give at least 0'),
    ('prompt_gdro', dict(ema=5.0), 'at most 1'),
    ('prompt_gdro', dict(count=0), 'count=0; give at least 1'),
    ('ma_rlhf', dict(n=0), 'n=0; give at least 1'),
    ('rloo', dict(beta=float('nan')), 'beta=nan'),
  ],
)
def test_numbers_out_of_range(method, option, words):
  with pytest.raises(InputError, match=words):
    build.method(method, **option)


def test_numbers_in_their_ranges():
  """The ends that mean something; and no entry is of an option that nobody has."""
  assert build.method('nash_md', tau=0.0) and build.method('slic', lam=2.0)
  methods = [m.name for m in pkgutil.iter_modules(methods_package.__path__)]
  for name in ranges.OF:
    own, _, key = name.rpartition('.')
    if own and own not in methods:  # What an option names.
      assert key in build.signature(getattr(links, own))
      continue
    found = [own] if own else methods
    assert any(key in build.defaults(m) for m in found), name


@pytest.mark.parametrize(
  ('section', 'option', 'words'),
  [
    ('source', dict(hints_after=2.0), r'source\.hints_after=2\.0.*at most 1'),
    ('plan', dict(kl_cov_coef=-1.0), r'plan\.kl_cov_coef=-1\.0'),
  ],
)
def test_numbers_of_sections_out_of_range(section, option, words):
  with pytest.raises(InputError, match=words):
    sections.check(runs.config(**{section: option}))


@pytest.mark.parametrize(
  ('path', 'value', 'name', 'reader'),
  [
    ('source.steps', 'a', 'grpo', 'grpo_process'),
    ('source.answer', 'whole', 'grpo', 'grpo_care'),
    ('source.greedy', True, 'rloo', 'remax'),
    ('source.anchor', True, 'ppo', 'pairwise_ppo'),
    ('source.mixture', 0.5, 'two_grpo', 'nash_md'),
    ('source.verdict', True, 'grpo', 'rlbff_generative'),
    ('source.accuracy', 'letter', 'grpo', 'prime'),
    ('judge', {'name': 'better'}, 'grpo', 'think_rm_pairwise'),
    ('model.dpo', 'tiny', 'ppo', 'rto'),
    ('model.teacher', 'tiny', 'grpo', 'gkd'),
    ('model.ref', 'tiny', 'dapo', 'grpo'),
  ],
)
def test_what_the_method_does_not_read_is_refused(path, value, name, reader):
  for method in (name, reader):
    c = toy.get_config(method)
    section, _, key = path.rpartition('.')
    (c[section] if section else c)[key] = value
    if method == reader:
      wrapped.make_method(c)
      continue
    with pytest.raises(InputError, match=f'config.{path} is set.*{name}'):
      wrapped.make_method(c)


def test_a_limit_is_of_draws_until_groups_are_mixed():
  c = toy.get_config('grpo')
  c.source.limit = 9
  (line,) = unread.idle(c)
  assert 'config.source.limit is set' in line and "'until_mixed'" in line
  c.source.name = 'until_mixed'
  assert not unread.idle(c)


def test_what_is_right_is_asked_for_by_sources_too():
  for asked in (dict(name='until_mixed'), dict(hints=2), dict(pool=32)):
    c = toy.get_config('grpo')
    c.source.update(accuracy='letter', **asked)
    assert not wrapped.make_method(c).reads


@pytest.mark.parametrize('name', ['dpo', 'simpo', 'sft', 'bradley_terry'])
@pytest.mark.parametrize(
  ('option', 'value'), [('reward_scale', 'norm'), ('reward_bound', 2.0)]
)
def test_rewards_to_scale_where_their_size_is_not_read(name, option, value):
  """exo reads it where it has a temperature."""
  c = toy.get_config(name)
  c.plan[option] = value
  with pytest.raises(InputError, match=rf'plan\.{option} is set .*: {name} learns the'):
    wrapped.make_method(c)
  c = toy.get_config('exo')
  c.plan[option], c.method.temperature = value, 0.5
  wrapped.make_method(c)


@pytest.mark.parametrize('main', unread.UNDER)
def test_an_option_under_one_that_is_off_is_said(main):
  """And no more: a config's part is left out by one flag."""
  for path in unread.UNDER[main]:
    c = toy.get_config('grpo')
    section, _, key = path.rpartition('.')
    at = unread.get(c, section)
    at[key] = (7, 8) if isinstance(at[key], tuple) else at[key] + 1
    (line,) = unread.idle(c)
    assert f'config.{path} is set' in line and f'config.{main} is off' in line
    unread.reset(c, path)
    assert not unread.idle(c)


def test_a_saved_config_has_lists_for_tuples(tmp_path):
  c = toy.get_config('grpo')
  log.write_json(tmp_path / 'c.json', c.to_dict())
  saved = config_dict.ConfigDict(json.loads((tmp_path / 'c.json').read_text()))
  assert not unread.idle(saved)


def test_a_band_of_covariances_the_wrong_way_round():
  with pytest.raises(InputError, match=r'clip_cov_low=5\.0 is above'):
    selection.with_clip_cov(build.method('grpo'), share=0.1, low=5.0, high=1.0)
  with pytest.raises(InputError, match=r'kl_cov=-1\.0'):
    selection.with_kl_cov(build.method('grpo'), share=-1.0, coef=0.1)


def test_pairs_of_eight_say_what_to_set():
  with pytest.raises(InputError, match=r'have 8 .*config\.source\.group=2'):
    sequences.margin(np.ones((1, 8)))


def test_a_workdir_with_other_files(capsys, tmp_path):
  (tmp_path / 'thesis.tex').write_text('Introduction.')
  assert called([TOY, f'--workdir={tmp_path}']) == 2
  assert 'holds no run' in capsys.readouterr().err
  assert called([TOY, f'--workdir={tmp_path}/thesis.tex']) == 2
  assert 'is not an empty folder' in capsys.readouterr().err
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_a_mistake_leaves_other_files_alone(tmp_path):
  """What a user put beside a run that never saved stays."""
  (tmp_path / 'run').mkdir()
  c = runs.config(evaluation=dict(every=0))
  c.rewards = dict(mine=dict(name='test_bad_input.beside'))
  ANSWERED['beside'] = tmp_path / 'run' / 'notes.txt'
  with pytest.raises(InputError):
    train.main(c, str(tmp_path / 'run'))
  assert os.listdir(tmp_path / 'run') == ['notes.txt']


def beside():
  def reward(sample):
    ANSWERED['beside'].write_text('mine')

  return reward


@pytest.mark.parametrize('script', ['generate', 'export'])
def test_no_run_to_sample_or_export(tmp_path, script):
  extra = ['--prompt=a'] if script == 'generate' else [f'{tmp_path}/out']
  path = f'{runs.ROOT}/experiments/{script}.py'
  done = subprocess.run(
    [sys.executable, path, str(tmp_path), *extra],
    env=runs.environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr == f'error: {tmp_path} holds no run (no run.json).\n'


def test_in_a_process_of_its_own(tmp_path):
  """As a user types it: nothing before the message, nothing left behind."""
  done = subprocess.run(
    [sys.executable, 'experiments/train.py', '--config=configs/toy.py:grop'],
    cwd=runs.ROOT,
    env=runs.environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.splitlines()[0].startswith("error: method: no 'grop'")
  assert len(done.stderr.splitlines()) == 1
  assert json.dumps(done.stdout) == '""'
