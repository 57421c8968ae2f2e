"""A finished run can be sampled and exported, and the export is the policy itself."""

import argparse
import importlib
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
import runs

from jaxrl_llm import checkpoint, command, restored, train
from jaxrl_llm.models import weights
from jaxrl_llm.types import InputError


def script(name):
  path = runs.ROOT / f'experiments/{name}.py'
  spec = importlib.util.spec_from_file_location(f'experiments_{name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'model'
  script('export').main([str(runs.finished()), str(folder)])
  return folder


def test_an_export_loads_back_bit_for_bit(exported):
  config, params = weights.load(exported)
  policy = restored.policy(str(runs.finished()))
  same = jax.tree.map(
    lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
    params,
    dict(policy.params),
  )
  assert all(jax.tree.leaves(same))
  assert config.width == policy.decoder.config.width == 64
  # It is the trained policy: that of the last checkpoint, and not the first weights.
  born = runs.assembled(runs.config()).state
  last, meta = checkpoint.restore(runs.finished(), born)
  assert meta['step'] == 6
  trained = np.asarray(last.params['policy']['embed'])
  np.testing.assert_array_equal(params['embed'], trained)
  assert (params['embed'] != np.asarray(born.params['policy']['embed'])).mean() > 0.5


def test_an_export_is_a_model_to_start_from(exported, tmp_path):
  c = runs.config(steps=1, model=dict(name=str(exported)), evaluation=dict(every=0))
  start = runs.assembled(c).state.params['policy']['embed']
  np.testing.assert_array_equal(start, weights.load(exported)[1]['embed'])


def test_an_export_over_something_is_refused(exported):
  with pytest.raises(InputError, match='exists already'):
    script('export').main([str(runs.finished()), str(exported)])


def test_a_policy_needs_neither_the_devices_nor_the_task_of_its_run(tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(runs.finished(), folder)
  record = json.loads((folder / 'run.json').read_text())
  record['config'] |= {'mesh': dict(data=64, fsdp=64, tensor=1), 'task': {}}
  (folder / 'run.json').write_text(json.dumps(record))
  there, here = restored.policy(str(runs.finished())), restored.policy(str(folder))
  for a, b in zip(*(jax.tree.leaves(p.params) for p in (there, here)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parity
def test_transformers_loads_an_export(exported):
  torch = pytest.importorskip('torch')
  from transformers import AutoModelForCausalLM, AutoTokenizer

  model = AutoModelForCausalLM.from_pretrained(exported)
  tokenizer = AutoTokenizer.from_pretrained(exported)
  policy = restored.policy(str(runs.finished()))
  ids = tokenizer.apply_chat_template(
    [{'role': 'user', 'content': 'abc'}], add_generation_prompt=True, return_dict=False
  )
  assert tokenizer.decode(ids) == 'abc\n'
  with torch.no_grad():
    theirs = model(torch.tensor([ids])).logits[0, -1].numpy()
  sampled = generated(['--prompt=abc', '--max_length=1'], capture=True)
  assert sampled == tokenizer.decode([int(theirs.argmax())], skip_special_tokens=True)
  assert len(theirs) == policy.decoder.config.vocab


def generated(argv, capture=False):
  import contextlib
  import io

  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    script('generate').main([str(runs.finished()), *argv])
  return out.getvalue().removesuffix('\n') if capture else out.getvalue()


def test_greedy_samples_agree_and_seeds_repeat():
  """Two greedy samples are one; a seed gives the same at any time, another does not."""
  greedy = generated(['--prompt=abc', '--samples=2', '--max_length=5'])
  half = len(greedy) // 2
  assert greedy[:half] == greedy[half:]
  warm = ['--prompt=abc', '--samples=3', '--max_length=8', '--temperature=1']
  assert generated([*warm, '--seed=1']) == generated([*warm, '--seed=1'])
  assert generated([*warm, '--seed=1']) != generated([*warm, '--seed=2'])


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['--prompt=abc', '--max_length=3000'], 'need 3004 positions; the model has 2048'),
    (['--prompt=abc', '--max_length=0'], 'max_length=0'),
    (['--prompt=abc', '--samples=0'], 'samples=0'),
    (['--prompt=abc', '--temperature=-1'], 'temperature=-1'),
  ],
)
def test_generate_refuses(argv, words):
  with pytest.raises(InputError, match=words):
    generated(argv)


def test_a_reward_model_has_no_policy(tmp_path):
  c = runs.config('bradley_terry', steps=1, evaluation=dict(every=0))
  train.main(c, str(tmp_path))
  with pytest.raises(InputError, match=r"trains \['reward'\] and no policy"):
    restored.policy(str(tmp_path))


def test_a_run_without_a_checkpoint(tmp_path):
  (tmp_path / 'run.json').write_bytes((runs.finished() / 'run.json').read_bytes())
  with pytest.raises(InputError, match='has no checkpoint yet'):
    restored.policy(str(tmp_path))


def test_a_benchmark_wants_equal_losses(monkeypatch, capsys):
  """Two rounds by hand; the second round's losses count too."""
  monkeypatch.syspath_prepend(runs.ROOT / 'experiments/benchmarks')
  versus = importlib.import_module('versus')
  one = dict(step=2.0, rollout=0.5, update=1.5, tokens=100, peak_gib=3.0, loss=0.5)
  rounds = [[one, one], [one, one | dict(loss=0.50002)]]
  found = {
    'ours': rounds,
    'trl': [[x | dict(step=4.0) for x in r] for r in rounds[::-1]],
  }
  versus.report(found, argparse.Namespace(work='dpo'))
  said = capsys.readouterr().out
  assert 'ours: step 2.00, rollout 0.50, update 1.50 s, 100 tokens a step, 50 a' in said
  assert 'trl / ours, round by round: 2.00, 2.00' in said and '2.0e-05' in said
  found['trl'][1][1]['loss'] = 0.6
  with pytest.raises(SystemExit, match='not the same work'):
    versus.report(found, argparse.Namespace(work='dpo'))


def test_a_script_starts_again_as_it_was_started(monkeypatch):
  """The interpreter's own options are kept, and the second start is the last."""
  again = []
  for name in command.GLIBC:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(command.os, 'execve', lambda *args: again.append(args))
  monkeypatch.setattr(command.platform, 'libc_ver', lambda: ('glibc', '2.36'))
  monkeypatch.setattr(command.sys, 'orig_argv', ['python', '-u', 'train.py', '--x=1'])
  command.restart()
  ((path, argv, env),) = again
  assert argv == [path, '-u', 'train.py', '--x=1'] and env[command.GUARD] == '1'
  monkeypatch.setenv(command.GUARD, '1')
  command.restart()
  assert len(again) == 1
