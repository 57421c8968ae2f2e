"""Every claim's folder is complete, its verdict recomputed, its tables fresh."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLAIMS = sorted((ROOT / 'experiments/claims').glob('[0-9]*'))


def load(folder: Path):
  spec = importlib.util.spec_from_file_location(folder.name, folder / 'run.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module, json.loads((folder / 'result.json').read_text())


@pytest.mark.parametrize('folder', CLAIMS, ids=lambda p: p.name)
def test_a_claim_is_complete_and_its_verdict_follows(folder):
  names = {p.name for p in folder.iterdir()}
  assert {'claim.md', 'run.py', 'result.json', 'curve.csv', 'figure.png'} <= names
  module, result = load(folder)
  assert result['verdict'] == module.verdict(result)
  assert set(result['arms']) == set(module.ARMS)


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


def test_the_readme_shows_the_result():
  module, result = load(ROOT / 'experiments/claims/001_quickstart')
  text = (ROOT / 'README.md').read_text()
  shown = re.search(r'<!-- quickstart -->\n(.*?)\n<!-- /quickstart -->', text, re.S)
  assert shown.group(1) == module.table(result)
