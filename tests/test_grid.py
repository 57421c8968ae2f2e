"""Many runs: what is swapped, what is compared, and what is said of it."""

import subprocess
import sys

import numpy as np
import pytest
import runs

from jaxrl_llm import build, compare, grid, train
from jaxrl_llm.types import InputError


def test_arms_are_every_combination():
  found = grid.arms(
    ['method.beta=0,0.04', 'method.advantage=group_norm(ddof=1,eps=0.1)']
  )
  one = 'group_norm(ddof=1,eps=0.1)'
  assert found == [
    {'method.beta': '0', 'method.advantage': one},
    {'method.beta': '0.04', 'method.advantage': one},
  ]
  assert grid.arms(['config.steps=3,[1,2]'])[1] == {'steps': '[1,2]'}
  for wrong in ('method.beta', 'method.beta=', '=1'):
    with pytest.raises(InputError, match='path=value'):
      grid.arms([wrong])


@pytest.mark.parametrize(
  ('values', 'found'),
  [
    ('((0,1.0),(100,0.5)),()', ['((0,1.0),(100,0.5))', '()']),
    ("average(models=('a','b'),shares=(0.5,0.5)),", None),
    ('[a-d]{2,3},b', ['[a-d]{2,3}', 'b']),
    ("'a,b', c", ["'a,b'", 'c']),
    ('0, 0.1', ['0', '0.1']),
  ],
)
def test_a_comma_in_brackets_or_quotes_is_no_separator(values, found):
  found = found or [values[:-1], '']
  assert [one['x'] for one in grid.arms([f'x={values}'])] == found


def test_a_bracket_stays_open():
  with pytest.raises(InputError, match='is open'):
    grid.arms(['x=f(a,b'])


def test_a_text_may_stand_in_quotes():
  c = runs.config('grpo')
  assert grid.changed(c, {'source.steps': "'a,b'"}).source.steps == 'a,b'


def test_mistakes_of_every_arm_show_before_any_runs():
  c = runs.config('grpo')
  for swap in ('method.advantage=group_norm,groupnorm', 'method.beta=0,-1'):
    with pytest.raises(InputError, match=r'groupnorm|beta=-1'):
      grid.every(c, grid.arms([swap]))


def test_an_arm_is_without_what_its_method_does_not_read():
  c = runs.config('remax')
  first, second = grid.every(c, grid.arms(['method.name=remax,rloo']))
  assert (first.source.greedy, second.source.greedy) == (True, False)
  c = runs.config('grpo', model=dict(ref='tiny'))
  first, second = grid.every(c, grid.arms(['method.beta=0.04,0']))
  assert (first.model.ref, second.model.ref) == ('tiny', '')
  c.source.steps = 'a'  # A mistake of the config's own stays one.
  with pytest.raises(InputError, match=r'source\.steps is set'):
    grid.every(c, grid.arms(['method.beta=0.04,0']))


def test_a_change_keeps_types_and_the_config():
  c = runs.config('grpo')
  got = grid.changed(c, {'method.beta': '0', 'steps': '3', 'model.lora.targets': '7'})
  assert (got.method.beta, got.steps, got.model.lora.targets) == (0.0, 3, '7')
  assert isinstance(got.method.beta, float)
  assert (c.method.beta, c.steps) == (0.04, 6)


@pytest.mark.parametrize(
  ('path', 'text', 'said'),
  [
    ('method.betta', '1', 'no such entry'),
    ('steps.more', '1', 'no such entry'),
    ('nothing.at.all', '1', 'no such entry'),
    ('method', '1', 'config.method'),
    ('steps', 'many', 'config.steps=many'),
    ('method.beta', 'group_norm', 'config.method.beta=group_norm'),
  ],
)
def test_a_change_that_does_not_fit(path, text, said):
  with pytest.raises(InputError, match=said):
    grid.changed(runs.config('grpo'), {path: text})


def test_another_method_has_its_own_options_and_the_shared_ones():
  c = runs.config('grpo')
  c.method.clip_low = 0.1
  got = grid.changed(c, {'method.clip_high': '0.3', 'method.name': 'dr_grpo'}).method
  assert got.to_dict() == {
    'name': 'dr_grpo',
    'max_length': 4,
    'clip_low': 0.1,
    'clip_high': 0.3,
  }


def test_a_default_of_the_first_method_is_none_of_the_second():
  """grpo's normalisation and clips would make rloo, gspo and dapo another algorithm."""
  c = runs.config('grpo')
  for name in ('rloo', 'gspo', 'two_grpo'):
    got = grid.changed(c, {'method.name': name}).method.to_dict()
    assert got == build.defaults(name).to_dict()
  assert grid.changed(c, {'method.name': 'dapo'}).method.clip_high == 0.28


def test_the_same_arm_twice_is_refused():
  with pytest.raises(InputError, match='each value once'):
    grid.arms(['method.beta=0,0,0.04'])


def test_the_bootstrap():
  """Of equal numbers a point; of (0, 1) a quarter of the resamples is at each end."""
  assert grid.bootstrap([2.0] * 5) == (2.0, 2.0)
  assert grid.bootstrap([0.0, 1.0]) == (0.0, 1.0)
  values = np.random.default_rng(0).normal(3.0, 2.0, 50)
  low, high = grid.bootstrap(values)
  half = 1.96 * values.std() / np.sqrt(50)
  assert (low, high) == pytest.approx(
    (values.mean() - half, values.mean() + half), abs=0.06
  )
  assert grid.bootstrap(values) == (low, high)


def test_arms_are_compared_seed_by_seed():
  record = lambda x: {'step': 2, 'rollouts': 8.0, 'tokens': 10.0, 'eval/accuracy': x}
  curves = {
    'a': [[record(0.1)], [record(0.5)]],
    'b': [[record(0.2)], [record(0.6)]],
  }
  found = compare.compared(curves, 'eval/accuracy')
  assert found['a']['difference_interval'] == (0.0, 0.0)
  assert found['b']['values'] == [0.2, 0.6]
  # Seeds differ by 0.4, arms by 0.1 on each: the pairing sees that alone.
  assert found['b']['difference_interval'] == pytest.approx((0.1, 0.1))
  line = compare.table(found, 'eval/accuracy').splitlines()[-1]
  assert line.startswith(
    '| b | 0.400 [0.200, 0.600] | 0.100 [0.100, 0.100] | 2 | 2 | 8'
  )
  alone = compare.compared({'a': curves['a'][:1]}, 'eval/accuracy')
  assert alone['a']['interval'] is None
  with pytest.raises(InputError, match='eval/accuracy'):
    compare.check(curves, 'eval/loss')


def test_a_stopped_run_stops_the_grid(tmp_path, monkeypatch):
  c = runs.config('grpo')
  monkeypatch.setattr(train, 'main', lambda *_: None)
  with pytest.raises(InputError, match='was stopped'):
    grid.run(c, tmp_path)


def test_an_ablation_from_end_to_end(tmp_path, monkeypatch):
  """Two arms, two seeds; what is done is not done again."""
  monkeypatch.setattr(train.assemble, 'assemble', runs.assembled)
  c = runs.config('grpo', steps=2, evaluation=dict(every=2))
  overrides = grid.arms(['method.beta=0.04,0.5'])
  curves = {}
  for one in overrides:
    found = []
    for seed in range(2):
      arm = grid.changed(c, one)
      arm.seed = seed
      found.append(grid.run(arm, tmp_path / grid.label(one) / str(seed)))
    curves[grid.label(one)] = found
  assert [r['step'] for r in curves['beta=0.5'][1]] == [0, 2]
  assert curves['beta=0.5'][1][-1]['rollouts'] == 2 * 8 * 4
  result = compare.compared(curves, 'eval/accuracy')
  compare.figure(curves, result, 'eval/accuracy', tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size > 5000
  before = (tmp_path / 'beta=0.5/1/metrics.jsonl').read_bytes()
  arm = grid.changed(c, overrides[1])
  arm.seed = 1
  again = grid.run(arm, tmp_path / 'beta=0.5/1')
  assert again == curves['beta=0.5'][1]
  assert (tmp_path / 'beta=0.5/1/metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('name', ['ablate', 'sweep'])
def test_the_scripts_say_what_they_want(name):
  run = subprocess.run(
    [sys.executable, f'experiments/{name}.py', '--noallocator'],
    cwd=runs.ROOT,
    env={'PYTHONPATH': '.', 'PATH': '/usr/bin', 'HOME': '/tmp'},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 2
  assert 'Give --config=FILE' in run.stderr
