"""Every claim's folder is complete, its verdict recomputed, its tables fresh."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import verdicts

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location(
  'claims_run', ROOT / 'experiments/claims/run.py'
)
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)
METHODS = set((ROOT / 'jaxrl_llm/methods').glob('*.py'))
CLAIMS = sorted((ROOT / 'experiments/claims').glob('[0-9]*'))


def load(folder: Path):
  return runner.load(folder), json.loads((folder / 'result.json').read_text())


QUICK = [p for p in CLAIMS if '\ndef run(' in (p / 'claim.py').read_text()]
TRAINED = [p for p in CLAIMS if p not in QUICK]
every = lambda folders: pytest.mark.parametrize('folder', folders, ids=lambda p: p.name)


@every(CLAIMS)
def test_a_claim_is_complete(folder):
  names = {p.name for p in folder.iterdir()}
  assert {'claim.md', 'claim.py', 'result.json', 'curve.csv', 'figure.png'} <= names
  claim, result = load(folder)
  text = (folder / 'claim.md').read_text()
  parts = ('**Claim**', '**Setting**', '**What would count against it**')
  assert [text.count(part) for part in parts] == [1, 1, 1]
  assert f'\n**Verdict**: {result["verdict"]}' in text
  assert {
    ROOT / f'jaxrl_llm/methods/{name}.py'
    for name in claim.METHODS
    if name.isidentifier()
  } <= METHODS


@every(TRAINED)
def test_the_verdict_on_runs_follows_from_their_records(folder):
  claim, result = load(folder)
  assert result['verdict'] == claim.verdict(result)
  assert set(result['arms']) == set(claim.ARMS)
  assert shown(ROOT / 'README.md', folder.name.split('_', 1)[1]) == claim.table(result)


@every(QUICK)
def test_the_verdict_on_paired_seeds_follows_from_their_records(folder):
  claim, result = load(folder)
  again = runner.judged(claim, result)
  assert again['verdict'] == result['verdict']
  assert list(again['parts']) == list(result['parts'])
  for part, x in result['parts'].items():
    assert again['parts'][part]['interval'] == pytest.approx(x['interval'], abs=1e-6)
  assert shown(folder / 'claim.md', 'table') == verdicts.table(result, claim.METRICS)
  seeds = {len(x['last']) for x in result['arms'].values()}
  assert len(seeds) == 1
  assert min(seeds) >= 5
  assert not result['dirty']


def test_the_table_of_verdicts_is_fresh():
  rows = [
    verdicts.row(p, claim.METHODS, result['verdict'])
    for p in CLAIMS
    for claim, result in [load(p)]
  ]
  page = ROOT / 'experiments/claims/README.md'
  assert shown(page, 'claims') == verdicts.index(rows)


def shown(path: Path, mark: str) -> str:
  """What stands between the marks of that name."""
  found = re.search(
    rf'<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->', path.read_text(), re.S
  )
  return found.group(1)


def test_the_rule_of_verdicts():
  """All intervals above 0, the first one below, some above with all means, the rest."""
  part = lambda low, high: {'mean': (low + high) / 2, 'interval': [low, high]}
  judge = lambda *ends: verdicts.verdict({str(i): part(*e) for i, e in enumerate(ends)})
  assert judge((0.1, 0.3), (0.1, 0.2)) == 'reproduced'
  assert judge((-0.3, -0.1), (0.1, 0.2)) == 'contradicted'
  assert judge((-0.1, 0.3), (0.1, 0.2)) == 'direction only'
  assert judge((-0.1, 0.3), (-0.1, 0.2)) == 'not reproduced'  # No interval above 0.
  assert judge((0.1, 0.3), (-0.2, -0.1)) == 'not reproduced'


def test_what_is_recorded_of_an_arm():
  """By hand: two seeds, three records; the mean leaves the first out."""
  run = lambda *values: [{'x': v} for v in values]
  result = {'arms': verdicts.arms({'a': [run(9.0, 1.0, 2.0), run(9.0, 3.0, 5.0)]})}
  told = verdicts.told(result)
  assert told.first['a']['x'].tolist() == [9.0, 9.0]
  assert told.last['a']['x'].tolist() == [2.0, 5.0]
  assert told.mean['a']['x'].tolist() == [1.5, 4.0]
  assert verdicts.judged({'p': np.full(5, 0.25)}) == {
    'p': {'mean': 0.25, 'interval': [0.25, 0.25]}
  }


def test_the_small_worlds_sampler_says_what_its_trainer_says():
  """Log-probs agree, and a stop ends a completion; with a first token that is given,
  seen throughout and not chosen.
  """
  net = small.Net(vocab=5, prompt=2, length=7, memory=2, first=True, stop=0, width=8)
  params = small.init(net, jax.random.key(0), net.vocab)
  params['out'] = jax.random.normal(jax.random.key(1), params['out'].shape)
  prompts = jax.random.randint(jax.random.key(2), (16, 2), 0, 5)
  given = jnp.full((16, 4), 3)
  batch = small.sample(net, params, jax.random.key(3), prompts, 4, given=given)
  out = small.make_forward(net)({'policy': params}, {}, batch, ('logp', 'entropy'))
  gap = jnp.abs(out.logp - batch.behavior_logp) * batch.mask
  assert float(gap.max()) < 1e-5
  tokens, length = np.asarray(batch.completions), np.asarray(batch.length)
  assert (tokens[..., 0] == 3).all() and (np.asarray(batch.mask)[..., 0] == 0).all()
  for row, size, cut in zip(
    tokens.reshape(-1, 7), length.ravel(), np.asarray(batch.truncated).ravel()
  ):
    stops = np.flatnonzero(row == 0)
    assert size == (stops[0] + 1 if len(stops) else 7)
    assert cut == (0.0 if len(stops) else 1.0)
    assert (row[size:] == 0).all()


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
  """A reward model no better than length, chance, or a loss that rose, is told."""
  claim, _ = load(ROOT / 'experiments/claims/002_real_data')
  arm = lambda low, loss: {
    'before': {'eval/loss': 1.0},
    'after': {'eval/low': low, 'eval/longer': 0.3, 'eval/loss': loss},
  }
  judge = lambda low, loss: claim.holds(
    {'arms': {name: arm(low, loss) for name in claim.ARMS}}
  )
  assert judge(0.71, 0.9) == {'bt': True, 'dpo': True, 'sft': True, 'kto': True}
  assert judge(0.69, 1.1) == {'bt': False, 'dpo': True, 'sft': False, 'kto': True}
  assert judge(0.49, 0.9) == {'bt': False, 'dpo': False, 'sft': True, 'kto': False}


def test_the_runner_runs_arms_in_its_own_process(tmp_path, monkeypatch):
  """Without --only; records and tables are written, and tables again from records."""
  folder = tmp_path / '000_quick'
  folder.mkdir()
  (folder / 'claim.py').write_text(QUICK_TOY)
  (folder / 'claim.md').write_text('# It holds\n<!-- table -->\nold\n<!-- /table -->\n')
  page = tmp_path / 'README.md'
  page.write_text('<!-- claims -->\n<!-- /claims -->\n')
  monkeypatch.setattr(runner, 'HERE', tmp_path)
  monkeypatch.setattr(sys, 'argv', ['run.py'])
  runner.main()
  result = json.loads((folder / 'result.json').read_text())
  assert result['parts']['b over a']['interval'] == [0.5, 0.5]
  assert result['verdict'] == 'reproduced'
  row = '| [It holds](000_quick/claim.md) | `grpo` | reproduced |'
  assert shown(page, 'claims').split('\n')[2:] == [row]
  table = shown(folder / 'claim.md', 'table')
  assert '| b over a | 0.500 | [0.500, 0.500] |' in table
  assert '| b | 1.500 (0.000) | 5 | 2 | 8 | 16 |' in table
  lines = (folder / 'curve.csv').read_text().split('\n')
  assert lines[:2] == ['arm,seed,step,rollouts,tokens,x', 'a,0,0,8,16,1']
  page.write_text('<!-- claims -->\nstale\n<!-- /claims -->\n')
  monkeypatch.setattr(sys, 'argv', ['run.py', '--tables'])
  runner.main()
  assert shown(page, 'claims').split('\n')[2:] == [row]


QUICK_TOY = """
METHODS, METRICS = ('grpo',), ('x',)
def run():
  record = lambda step, x: {'step': step, 'rollouts': 8.0, 'tokens': 16.0, 'x': x}
  arm = lambda x: [[record(0, x), record(2, x)]] * 5
  return {'a': arm(1.0), 'b': arm(1.5)}
parts = lambda told: {'b over a': told.last['b']['x'] - told.last['a']['x']}
"""


def test_the_runner_runs_an_arm(tmp_path, monkeypatch):
  """Flags filled in; result and curve written from the run's own records."""
  folder = tmp_path / '000_toy'
  folder.mkdir()
  (folder / 'claim.py').write_text(TOY)
  (tmp_path / 'ask.py').write_text(ASK)
  monkeypatch.setattr(runner, 'HERE', tmp_path)
  flags = ['run.py', '--only=000_toy', f'--workdir={tmp_path}/runs', '--put', 'n=2']
  flags.append(f'ask={tmp_path}/ask.py')
  monkeypatch.setattr(sys, 'argv', flags)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  runner.main()
  result = json.loads((folder / 'result.json').read_text())
  assert result['verdict'] == 'none' and result['arms']['a']['steps'] == 2
  assert result['measured'] == {'steps': ['a', 'b']}
  assert (folder / 'curve.csv').read_text().startswith('arm,step,split,loss\na,0,eval')
  assert (folder / 'figure.png').exists()
  rows = (folder / 'curve.csv').read_text()
  result['arms']['a']['steps'] = 99  # A record of another day.
  (folder / 'result.json').write_text(json.dumps(result))
  (tmp_path / 'runs/000_toy/a').rename(tmp_path / 'gone')  # Nor is its folder here.
  (tmp_path / 'runs/000_toy/steps.json').unlink()
  monkeypatch.setattr(sys, 'argv', [*flags, '--arms', 'b'])
  runner.main()
  again = json.loads((folder / 'result.json').read_text())
  assert [again['arms'][arm]['steps'] for arm in 'ab'] == [99, 2]
  assert again['measured'] == result['measured']
  assert (folder / 'curve.csv').read_text() == rows


TOY = """
ARMS = {
  a: ['--config=configs/toy.py:sft', '--config.steps={n}', f'--config.seed={i}']
  for i, a in enumerate('ab')
}
MEASURES = {'steps': ['{ask}', '{root}']}
HELD_OUT, CURVE, FIGURE = ('eval/loss',), ('loss',), 'a'
verdict = lambda result: 'none'
table = lambda result: ''
"""
ASK = """
import json, sys
from pathlib import Path
root, out = sys.argv[1], sys.argv[2].removeprefix('--out=')
arms = sorted(x.parent.name for x in Path(root).glob('*/run.json'))
Path(out).write_text(json.dumps(arms))
"""
