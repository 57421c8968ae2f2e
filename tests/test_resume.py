"""A run killed anywhere and started again is the run that nothing disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

from jaxrl_llm import assemble, checkpoint, train
from jaxrl_llm.models import pretrained, weights
from jaxrl_llm.types import InputError

PLANS = {
  'grpo': {},
  'ppo': dict(plan=dict(epochs=2, minibatches=2)),
  'dpo': dict(plan=dict(minibatches=2)),
  'dapo': dict(source=dict(name='until_mixed', limit=2)),
  'ppo lora': dict(model=dict(lora=dict(rank=2, alpha=4.0, targets='q|v'))),
}


class Killed(BaseException):
  """What no one catches."""


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch):
  monkeypatch.setattr(assemble, 'assemble', runs.assembled)


def outcome(folder, c):
  """All of a run that must not depend on where it was killed."""
  state, meta = checkpoint.restore(folder, runs.assembled(c).state)
  data = state.replace(key=jax.random.key_data(state.key))
  leaves = jax.tree_util.tree_leaves_with_path(data)
  return {
    'state': {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in leaves},
    'meta': meta['step'],
    'rollouts': meta['rollouts'],
    'held_out': meta['held_out'],
    'metrics': runs.records(folder),
    'samples': runs.records(folder, 'samples.jsonl'),
  }


def killed_at(monkeypatch, module, name, count):
  """Makes the `count`-th call of module.name from now on die."""
  calls, function = [], getattr(module, name)

  def dying(*args, **kwargs):
    calls.append(name)
    if len(calls) == count:
      raise Killed(name)
    return function(*args, **kwargs)

  monkeypatch.setattr(module, name, dying)


SLOW = pytest.param('dapo', marks=pytest.mark.slow)


@pytest.fixture(params=['grpo', 'ppo', 'ppo lora', 'dpo', SLOW])
def plan(request, tmp_path):
  c = runs.config(request.param.split()[0], **PLANS[request.param])
  train.main(c, str(tmp_path / 'whole'))
  return c, outcome(tmp_path / 'whole', c)


def test_killed_at_every_step(plan, tmp_path):
  """AT-52, AT-53, AT-56: dies before step 1, 2 ... 6; two lives are enough whatever was
  saved before. The first has saved nothing: the same seed gives the same run.
  """
  c, whole = plan
  assert whole['meta'] == 6
  steps = [r['step'] for r in whole['metrics'] if r['split'] == 'train']
  assert steps == [1, 2, 3, 4, 5, 6]
  for count in range(1, 7):
    folder = tmp_path / f'killed{count}'
    with pytest.MonkeyPatch.context() as patch:
      killed_at(patch, train, 'one_step', count)
      with pytest.raises(Killed):
        train.main(c, str(folder))
    train.main(c, str(folder))
    assert outcome(folder, c) == whole


REPLAYED = dict(replay=4, replay_size=8)
ENTROPY = dict(entropy_coef=0.01, entropy_target=3.0, entropy_delta=0.01)
CARRIED = {  # Sections of a config, and options of the method.
  'ppo kl_target': ({}, dict(kl_target=0.1)),
  'ppo reward_scale': (dict(plan=dict(reward_scale='norm')), {}),
  'grpo entropy_target': (dict(plan=ENTROPY), {}),
  'grpo refresh': (dict(plan=dict(refresh=2, refresh_share=0.5)), {}),
  'grpo pool': (dict(source=dict(pool=16)), {}),
  'grpo replay': (dict(source=REPLAYED, plan=dict(importance='token')), {}),
  'grpo ahead': (dict(source=dict(ahead=True), plan=dict(importance='token')), {}),
  'dpo refresh': (dict(plan=dict(refresh=2)), {}),
  'tr_dpo': ({}, dict(every=2)),
  'grpo_care': ({}, dict(every=2)),
  **dict.fromkeys(('bco', 'prompt_gdro', 'rollout_gdro'), ({}, {})),
  **dict.fromkeys(('safe', 'safe_rlhf', 'hc_rlhf'), ({}, {})),
}


@pytest.mark.slow
@pytest.mark.parametrize('what', CARRIED)
def test_what_a_run_carries_besides_its_parameters_survives(tmp_path, what):
  """Controllers, moving averages, adversaries, queues: dies before step 4 of 6."""
  sections, options = CARRIED[what]
  c = runs.config(what.split()[0], **sections)
  c.method.update(options)
  train.main(c, str(tmp_path / 'whole'))
  with pytest.MonkeyPatch.context() as patch:
    killed_at(patch, train, 'one_step', 4)
    with pytest.raises(Killed):
      train.main(c, str(tmp_path / 'killed'))
  train.main(c, str(tmp_path / 'killed'))
  assert outcome(tmp_path / 'killed', c) == outcome(tmp_path / 'whole', c)
  born = runs.assembled(c).state
  end = checkpoint.restore(tmp_path / 'whole', born)[0]
  carried = lambda state: jax.tree.leaves((state.frozen, state.extra))
  same = map(np.array_equal, carried(end), carried(born))
  assert what == 'grpo ahead' or not all(same)


@pytest.mark.parametrize(
  ('module', 'name', 'count'),
  [
    (train, 'evaluate', 1),
    (train, 'evaluate', 2),
    (train, 'evaluate', 3),
    (checkpoint, 'save', 1),
    (checkpoint, 'save', 3),
    (train, 'finish', 1),
  ],
)
def test_killed_while_evaluating_saving_or_drawing(tmp_path, module, name, count):
  c = runs.config()
  whole = outcome(runs.finished(), c)
  with pytest.MonkeyPatch.context() as patch:
    killed_at(patch, module, name, count)
    with pytest.raises(Killed):
      train.main(c, str(tmp_path / 'run'))
  train.main(c, str(tmp_path / 'run'))
  assert outcome(tmp_path / 'run', c)['metrics'] == whole['metrics']
  assert outcome(tmp_path / 'run', c)['state'] == whole['state']


def interrupt_at(monkeypatch, module, name, count, times=1, number=signal.SIGINT):
  """Sends a signal, `times` times, in the middle of the `count`-th call."""
  calls, function = [], getattr(module, name)

  def interrupted(*args, **kwargs):
    calls.append(name)
    if len(calls) == count:
      for _ in range(times):
        os.kill(os.getpid(), number)
    return function(*args, **kwargs)

  monkeypatch.setattr(module, name, interrupted)


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(tmp_path, capfd):
  """AT-55: the step that a run goes on from is said."""
  c = runs.config()
  with pytest.MonkeyPatch.context() as patch:
    interrupt_at(patch, train, 'one_step', 3)
    train.main(c, str(tmp_path))
  assert checkpoint.steps(tmp_path) == [3]
  out, err = capfd.readouterr()
  assert 'Stopped and saved at step 3. The same command goes on.' in out
  assert 'Stopping after this step; once more to stop at once.' in err
  train.main(c, str(tmp_path))
  assert 'step 3 of 6' in capfd.readouterr().out
  assert outcome(tmp_path, c) == outcome(runs.finished(), c)


@pytest.mark.parametrize(('count', 'saved'), [(1, []), (2, [3]), (3, [6])])
def test_ctrl_c_while_evaluating_ends_it_and_it_is_done_again(tmp_path, count, saved):
  """Evaluations come at steps 0, 3 and 6."""
  c = runs.config()
  run = runs.assembled(c)
  calls = []

  def evaluate(state):
    calls.append(1)
    if len(calls) == count:
      os.kill(os.getpid(), signal.SIGINT)
      pytest.fail('The signal did not end the evaluation.')
    return run.evaluate(state)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(assemble, 'assemble', lambda _: run._replace(evaluate=evaluate))
    train.main(c, str(tmp_path))
  assert checkpoint.steps(tmp_path) == saved
  train.main(c, str(tmp_path))
  assert outcome(tmp_path, c) == outcome(runs.finished(), c)


def test_ctrl_c_twice_stops_at_once(tmp_path):
  c, before = runs.config(), signal.getsignal(signal.SIGINT)
  with pytest.MonkeyPatch.context() as patch:
    interrupt_at(patch, train, 'one_step', 4, times=2)
    with pytest.raises(KeyboardInterrupt):
      train.main(c, str(tmp_path))
  assert signal.getsignal(signal.SIGINT) is before
  assert checkpoint.steps(tmp_path) == [2]
  train.main(c, str(tmp_path))
  assert outcome(tmp_path, c) == outcome(runs.finished(), c)


@pytest.mark.parametrize(
  ('module', 'name', 'count', 'saved'),
  [(train, 'one_step', 3, 3), (checkpoint, 'save', 1, 2), (train, 'evaluate', 2, 3)],
)
def test_a_terminal_signal_sent_twice_is_one_request(
  tmp_path, module, name, count, saved
):
  """As `timeout` sends it: to the process, and to its group."""
  c = runs.config()
  with pytest.MonkeyPatch.context() as patch:
    interrupt_at(patch, module, name, count, times=2, number=signal.SIGTERM)
    train.main(c, str(tmp_path))
  assert checkpoint.steps(tmp_path)[-1] == saved
  train.main(c, str(tmp_path))
  assert outcome(tmp_path, c) == outcome(runs.finished(), c)


def test_a_later_terminal_signal_stops_at_once(monkeypatch):
  monkeypatch.setattr(train, 'SAME_REQUEST', 0.0)
  with train.stop_on_signal(), pytest.raises(KeyboardInterrupt):
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGTERM)


def test_a_complete_run_says_so_and_computes_nothing(monkeypatch, tmp_path, capsys):
  folder, c = runs.finished(), runs.config()
  before = (folder / 'metrics.jsonl').read_text()
  monkeypatch.setattr(assemble, 'assemble', lambda _: pytest.fail('It assembled.'))
  (folder / 'figure.png').unlink()
  held_out = train.main(c, str(folder))
  said = capsys.readouterr().out
  assert f'{folder} is complete: 6 steps are done. Nothing to do.' in said
  assert (folder / 'metrics.jsonl').read_text() == before
  assert (folder / 'figure.png').stat().st_size > 10_000
  assert held_out['eval/accuracy'] == runs.records(folder)[-1]['eval/accuracy']


PROGRAM = """
import os, signal, sys, runs
from jaxrl_llm import train
folder, die = sys.argv[1], int(sys.argv[2])
step = train.one_step
def one_step(run, state, meta):
  if meta['step'] == die:
    os.kill(os.getpid(), signal.SIGKILL)
  return step(run, state, meta)
train.one_step = one_step
train.main(runs.config(), folder)
"""


def test_sigkill_in_a_process_of_its_own(tmp_path):
  """Nothing is shared but the folder; every part is assembled anew."""

  def life(die):
    return subprocess.run(
      [sys.executable, '-c', PROGRAM, str(tmp_path / 'run'), str(die)],
      env=runs.environment(),
      capture_output=True,
      text=True,
      timeout=200,
    )

  assert life(5).returncode == -signal.SIGKILL
  assert checkpoint.steps(tmp_path / 'run') == [4]
  second = life(99)
  assert second.returncode == 0, second.stderr[-3000:]
  assert 'step 4 of 6' in second.stdout
  c = runs.config()
  assert outcome(tmp_path / 'run', c) == outcome(runs.finished(), c)


def test_the_record_names_the_config_and_the_versions():
  record = json.loads((runs.finished() / 'run.json').read_text())
  assert record['config']['source']['group'] == 4
  assert record['versions']['jax'] == jax.__version__
  assert record['devices'][0].startswith('cpu')


@pytest.mark.parametrize('what', ['weights', 'template'])
def test_another_model_under_the_same_name_is_refused(tmp_path, what, monkeypatch):
  """A resumed LoRA run would go on over another base."""
  monkeypatch.setattr(assemble, 'assemble', runs._assemble)
  folder, model = str(tmp_path / 'run'), pretrained.load('tiny')
  here = str(tmp_path / 'model')
  weights.save(here, model.fields, model.params(), tokenizer=model.tokenizer)
  options = dict(name=here, lora=dict(rank=2, alpha=4.0, targets='q'))
  c = runs.config('dpo', steps=4, model=options)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    killed_at(patch, train, 'one_step', 4)
    train.main(c, folder)
  shutil.rmtree(here)
  tree = model.params()
  if what == 'weights':
    tree = jax.tree.map(lambda x: 1.5 * x, tree)
  else:
    model.tokenizer.chat_template = ' ' + model.tokenizer.chat_template
  weights.save(here, model.fields, tree, tokenizer=model.tokenizer)
  with pytest.raises(InputError, match='the model or its chat template is not what'):
    train.main(c, folder)
