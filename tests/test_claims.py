"""Every claim's folder is complete, its verdict recomputed, its tables fresh."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location(
  'claims_run', ROOT / 'experiments/claims/run.py'
)
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)
CLAIMS = sorted((ROOT / 'experiments/claims').glob('[0-9]*'))


def load(folder: Path):
  return runner.load(folder), json.loads((folder / 'result.json').read_text())


@pytest.mark.parametrize('folder', CLAIMS, ids=lambda p: p.name)
def test_a_claim_is_complete_and_its_verdict_follows(folder):
  names = {p.name for p in folder.iterdir()}
  assert {'claim.md', 'claim.py', 'result.json', 'curve.csv', 'figure.png'} <= names
  claim, result = load(folder)
  assert result['verdict'] == claim.verdict(result)
  assert set(result['arms']) == set(claim.ARMS)
  text = (ROOT / 'README.md').read_text()
  name = folder.name.split('_', 1)[1]
  shown = re.search(rf'<!-- {name} -->\n(.*?)\n<!-- /{name} -->', text, re.S)
  assert shown.group(1) == claim.table(result)


def test_a_verdict_can_fail():
  """Overlapping intervals on one of two seeds."""
  module, _ = load(ROOT / 'experiments/claims/001_quickstart')
  arm = lambda low: {'before': {'eval/high': 0.3}, 'after': {'eval/low': low}}
  judge = lambda *lows: module.verdict(
    {'arms': {f'seed{i}': arm(low) for i, low in enumerate(lows)}}
  )
  assert judge(0.5, 0.4) == 'reproduced'
  assert judge(0.5, 0.2) == 'direction only'
  assert judge(0.1, 0.2) == 'not reproduced'


def test_what_the_real_data_must_show():
  """A reward model no better than length, or a loss that rose, is told."""
  claim, _ = load(ROOT / 'experiments/claims/002_real_data')
  arm = lambda low, loss: {
    'before': {'eval/loss': 1.0},
    'after': {'eval/low': low, 'eval/longer': 0.3, 'eval/loss': loss},
  }
  judge = lambda low, loss: claim.holds(
    {'arms': {name: arm(low, loss) for name in claim.ARMS}}
  )
  assert judge(0.71, 0.9) == {'bt': True, 'dpo': True, 'sft': True, 'kto': True}
  assert judge(0.69, 1.1) == {'bt': False, 'dpo': True, 'sft': False, 'kto': False}


def test_the_runner_runs_an_arm(tmp_path, monkeypatch):
  """Flags filled in; result and curve written from the run's own records."""
  folder = tmp_path / '000_toy'
  folder.mkdir()
  (folder / 'claim.py').write_text(TOY)
  monkeypatch.setattr(runner, 'HERE', tmp_path)
  flags = ['run.py', '--only=000_toy', f'--workdir={tmp_path}/runs', '--put', 'n=2']
  monkeypatch.setattr(sys, 'argv', flags)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  runner.main()
  result = json.loads((folder / 'result.json').read_text())
  assert result['verdict'] == 'none' and result['arms']['a']['steps'] == 2
  assert (folder / 'curve.csv').read_text().startswith('arm,step,split,loss\na,0,eval')
  assert (folder / 'figure.png').exists()
  rows = (folder / 'curve.csv').read_text()
  result['arms']['a']['steps'] = 99  # A record of another day.
  (folder / 'result.json').write_text(json.dumps(result))
  monkeypatch.setattr(sys, 'argv', [*flags, '--arms', 'b'])
  runner.main()
  again = json.loads((folder / 'result.json').read_text())
  assert [again['arms'][arm]['steps'] for arm in 'ab'] == [99, 2]
  assert (folder / 'curve.csv').read_text() == rows


TOY = """
ARMS = {
  a: ['--config=configs/toy.py:sft', '--config.steps={n}', f'--config.seed={i}']
  for i, a in enumerate('ab')
}
HELD_OUT, CURVE, FIGURE = ('eval/loss',), ('loss',), 'a'
verdict = lambda result: 'none'
table = lambda result: ''
"""
