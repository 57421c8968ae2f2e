"""What the documents show runs, and their tables are fresh."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import nbformat
import pytest
import test_contract
import toy
from nbclient import NotebookClient

from jaxrl_llm import build, default_config, forward
from jaxrl_llm.models.families import FAMILIES
from jaxrl_llm.step import make_update_step

ROOT = Path(__file__).parents[1]
METHODS = sorted(p for p in (ROOT / 'jaxrl_llm/methods').glob('[a-z]*.py'))


def test_the_tour_runs_at_toy_size(monkeypatch):
  monkeypatch.setenv('JAXRL_LLM_SMOKE', '1')
  notebook = nbformat.read(ROOT / 'notebooks/00_tour.ipynb', 4)
  NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': ROOT}}
  ).execute()
  printed = ''.join(str(c.get('outputs')) for c in notebook.cells)
  assert 'eval/accuracy' in printed
  assert 'def grpo(' in printed


def variant() -> str:
  """CONTRIBUTING.md's worked example."""
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  block = re.search(r'<!-- variant -->\n```python\n(.*?)```', text, re.S)
  return block.group(1)


def code_lines(source: str) -> int:
  """Lines that are neither blank, comment nor docstring."""
  tree = ast.parse(source)
  kept = {n.lineno for n in ast.walk(tree) if hasattr(n, 'lineno')}
  docs = [
    n.body[0]
    for n in ast.walk(tree)
    if isinstance(n, (ast.Module, ast.FunctionDef)) and ast.get_docstring(n)
  ]
  return len(kept - {i for d in docs for i in range(d.lineno, d.end_lineno + 1)})


def test_the_variant_takes_under_twenty_lines():
  assert code_lines(variant()) < 20


def test_the_variant_trains_as_it_says(tmp_path, monkeypatch):
  """By hand: rewards (1, 4, 2), mean 7/3, range 3."""
  (tmp_path / 'my_variant.py').write_text(variant())
  monkeypatch.syspath_prepend(tmp_path)
  method = build.method('my_variant.range_grpo', beta=0.0)
  batch = toy.batch(g=3)
  reward = jax.numpy.broadcast_to(jax.numpy.array([[1.0, 4.0, 2.0]]), (toy.B, 3))
  batch = batch.replace(reward=reward)
  got = method.prepare(toy.state(), batch)[1].advantage[0, :, 0]
  assert got.tolist() == pytest.approx([-4 / 9, 5 / 9, -1 / 9], abs=1e-5)
  _, metrics = make_update_step(toy.forward, toy.SGD, method)(toy.state(), batch)
  assert float(metrics['ratio']) == pytest.approx(1.0)
  swapped = build.method('grpo', advantage='my_variant.group_range')
  again = swapped.prepare(toy.state(), batch)[1].advantage[0, :, 0]
  assert again.tolist() == pytest.approx(got.tolist())


def verdicts() -> dict[str, list[str]]:
  """Of each method the verdicts of claims about it (their METHODS), as links."""
  found = {path.stem: [] for path in METHODS}
  for folder in sorted((ROOT / 'experiments/claims').glob('[0-9]*')):
    named = re.search(r'^METHODS = (.*)$', (folder / 'claim.py').read_text(), re.M)
    said = json.loads((folder / 'result.json').read_text())['verdict']
    for name in found.keys() & {*ast.literal_eval(named.group(1))}:
      found[name].append(f'[{said}](experiments/claims/{folder.name}/claim.md)')
  return found


def networks(name: str) -> str:
  """What a method learns from, and the networks beside the policy that it needs."""
  roles = forward.networks(test_contract.method(name))
  trained, frozen = (sorted(roles[k] - {'policy'}) for k in ('params', 'frozen'))
  data = default_config.KINDS.get(name, 'fresh answers').replace('_', ' ')
  trained = [] if roles['params'] == {*trained} and len(trained) == 1 else trained
  return ', '.join([data, *(f'`{r}`' for r in (*trained, *frozen))])


def method_table() -> str:
  """The README's table of methods, from their headers and needs, and their claims'
  records.
  """
  columns = ('method', 'paper', 'differs from', 'needs', 'claims')
  rows, found = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|'], verdicts()
  for path in METHODS:
    header = ast.get_docstring(ast.parse(path.read_text()))
    words = ' '.join(header.split('\n\n')[0].split()).rstrip('.')
    differs = re.search(r'[Dd]iffers from (.*?)\.( |$)', ' '.join(header.split()))
    cells = [
      f'[`{path.stem}`](jaxrl_llm/methods/{path.name})',
      words,
      differs[1].replace('|', '\\|') if differs else '',
      networks(path.stem),
      ', '.join(found[path.stem]),
    ]
    rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join(rows)


def test_the_method_table_is_fresh():
  text = (ROOT / 'README.md').read_text()
  shown = re.search(r'<!-- methods -->\n(.*?)\n<!-- /methods -->', text, re.S).group(1)
  assert shown == method_table()


def family_table() -> str:
  """The README's table of model families, from the table that loads them."""
  rows = ['| model_type | models | beside Llama |', '|---|---|---|']
  for name, family in FAMILIES.items():
    rows.append(f'| `{name}` | {family.models} | {family.differs} |')
  return '\n'.join(rows)


def test_the_family_table_is_fresh():
  text = (ROOT / 'README.md').read_text()
  shown = re.search(r'<!-- families -->\n(.*?)\n<!-- /families -->', text, re.S).group(
    1
  )
  assert shown == family_table()


@pytest.mark.parametrize('path', METHODS, ids=lambda p: p.stem)
def test_a_method_file_is_one_function_of_its_name(path):
  tree = ast.parse(path.read_text())
  names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
  assert path.stem in names
  assert code_lines(path.read_text()) <= 60
  assert 'mean(' not in re.sub(
    r'(seq|token|group|metrics)[._]mean\(', '', path.read_text()
  )


def test_nothing_imports_torch_or_tensorflow():
  names = [
    '.'.join(p.relative_to(ROOT).with_suffix('').parts)
    for p in (ROOT / 'jaxrl_llm').rglob('*.py')
    if p.stem != '__init__'
  ]
  program = (
    'import importlib, sys\n'
    f'for name in {names!r}: importlib.import_module(name)\n'
    "from jaxrl_llm.models import pretrained; pretrained.load('tiny')\n"
    "print(sorted({m.partition('.')[0] for m in sys.modules}))"
  )
  run = [sys.executable, '-c', program]
  loaded = subprocess.check_output(run, cwd=ROOT, text=True)
  assert "'jax'" in loaded
  assert "'torch'" not in loaded
  assert "'tensorflow'" not in loaded


if __name__ == '__main__':
  print(method_table())


def test_every_folder_of_the_package_is_installed():
  """find_packages leaves out a folder without __init__.py, and says nothing."""
  folders = {p.parent for p in (ROOT / 'jaxrl_llm').rglob('*.py')}
  assert [f for f in sorted(folders) if not (f / '__init__.py').exists()] == []
