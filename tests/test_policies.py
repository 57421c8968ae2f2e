"""What policies prefer and say, beside the model that they started as."""

import json

import numpy as np
import pytest
import runs
from test_scripts import script

from jaxrl_llm import log, train
from jaxrl_llm.evaluate import accuracy
from jaxrl_llm.types import InputError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'dpo'
  train.main(runs.config('dpo', steps=30), str(folder))
  return folder


def test_a_table_of_runs(run, tmp_path, capsys):
  out, how = tmp_path / 'found.json', ['--samples=8', '--max_length=6', '--batch=4']
  script('compare_policies').main([str(run), *how, f'--out={out}'])
  held = log.read_lines(run / 'metrics.jsonl')
  held = [r for r in held if r['split'] == 'eval'][-1]
  found = json.loads(out.read_text())
  ratio, kl = 'prefers chosen, sum log(pi / ref)', 'KL to reference, nats'
  assert found['before'][ratio][0] == 0.5  # A tie with itself in every pair.
  low, high = found['before'][kl][1:]
  assert abs(low) < 1e-3 and abs(high) < 1e-3
  # By the sum of log(pi / ref): what dpo itself says of its held-out pairs.
  shown = ('eval/accuracy', 'eval/low', 'eval/high')
  np.testing.assert_allclose(found['dpo'][ratio], [held[k] for k in shown], atol=1e-6)
  assert held['eval/accuracy'] > 0.5
  assert found['dpo'][kl][0] > 0.1
  text = capsys.readouterr().out
  assert '| before | 50.0 [' in text and '| dpo |' in text


def test_preferences_by_hand():
  nats = np.array([[-1.0, -2.0], [-3.0, -3.0], [-2.0, -1.0]])
  np.testing.assert_array_equal(accuracy.ahead(nats), [1.0, 0.5, 0.0])


def test_runs_of_other_kinds_are_refused(run):
  script_of = script('compare_policies')
  with pytest.raises(InputError, match='holds no run'):
    script_of.main([str(run.parent)])
  with pytest.raises(InputError, match='did not learn from pairs'):
    script_of.main([str(runs.finished()), str(run)])
