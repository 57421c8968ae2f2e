"""Every config trains, every method of the toy too, and every metric is explained."""

import importlib.util
import json
import pkgutil
import re

import jax.numpy as jnp
import pytest
import runs
import toy

from jaxrl_llm import asking, assemble, build, glossary, log, methods, sharding, train
from jaxrl_llm.models import pretrained
from jaxrl_llm.rollout import stops
from jaxrl_llm.types import InputError

# Those of one stage; test_pipeline.py has the others.
CONFIGS = sorted((runs.ROOT / 'configs').glob('[a-z]*.py'))
CONFIGS.remove(runs.ROOT / 'configs/pipelines.py')
METHODS = [m.name for m in pkgutil.iter_modules(methods.__path__)]
# Two roles, two streams, no policy, another model, greedy completions, episodes, costs.
QUICK = ('ppo', 'kto', 'bradley_terry', 'rto', 'remax', 'refuel', 'safe_rlhf')


def loaded(path):
  spec = importlib.util.spec_from_file_location(f'configs_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_plain_data_and_names_a_method(path):
  c = loaded(path).get_config()
  kept = json.loads(train.canonical(c))  # As run.json has it.
  assert train.differences(kept, json.loads(json.dumps(c.to_dict()))) == []
  options = c.method.to_dict()
  built = build.method(options.pop('name'), **options)
  assert built.needs
  assert loaded(path).__doc__.strip().endswith('.')
  for part in ('task', 'data'):
    if part in c:
      build.find(f'jaxrl_llm.{part.replace("task", "tasks")}', c[part].name, part)


def test_how_many_methods_there_are():
  assert len(METHODS) == 91
  assert set(QUICK) < set(METHODS)


@pytest.mark.parametrize(
  'name',
  [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_a_method_trains_and_its_metrics_are_explained(name, tmp_path):
  c = runs.config(name, steps=2, evaluation=dict(every=2))
  train.main(c, str(tmp_path))
  records = log.read_lines(tmp_path / 'metrics.jsonl')
  assert [(r['step'], r['split']) for r in records] == [
    (0, 'eval'),
    (1, 'train'),
    (2, 'train'),
    (2, 'eval'),
  ]
  names = {k for r in records for k in r} - {'step', 'split'}
  assert {'loss', 'tokens_per_second', 'skipped', 'seconds/update'} < names
  assert all(v is not None for r in records for v in r.values()), records
  assert records[2]['applied'] == 2
  if 'max/mismatch' in names:  # AT-34: the sampler has the step's parameters.
    assert max(r['max/mismatch'] for r in records[1:3]) < 1e-4
  for metric in names:
    assert glossary.explain(metric).endswith('.')


def test_a_start_that_is_not_evaluated(tmp_path):
  c = runs.config('dpo', steps=2, evaluation=dict(every=1, at_start=False))
  train.main(c, str(tmp_path))
  records = log.read_lines(tmp_path / 'metrics.jsonl')
  assert [r['step'] for r in records if r['split'] == 'eval'] == [1, 2]


def test_the_longest_prefix_explains():
  assert glossary.explain('eval/accuracy').startswith('Share of held-out answers')
  assert glossary.explain('eval/margin') == glossary.GLOSSARY['eval/']
  assert glossary.explain('lr/critic') == glossary.GLOSSARY['lr/']
  with pytest.raises(KeyError, match='unheard'):
    glossary.explain('unheard')


def test_no_word_of_the_glossary_is_stale():
  """Each name stands in quotes somewhere in the package, or what follows eval/ does."""
  sources = [p for p in (runs.ROOT / 'jaxrl_llm').rglob('*.py')]
  text = '\n'.join(p.read_text() for p in sources if p.name != 'glossary.py')
  said = lambda name: re.search(rf"['\"]{name}", text)
  written = lambda name: said(name) or said(name.removeprefix('eval/'))
  gone = [n for n in glossary.GLOSSARY if not written(n)]
  assert [n for n in gone if n not in ('lr/', 'grad_norm/', 'reward/', 'eval/')] == []


def test_the_readme_has_the_glossary():
  text = (runs.ROOT / 'README.md').read_text()
  block = re.search(r'<!-- glossary -->\n(.*?)\n<!-- /glossary -->', text, re.S)
  assert block.group(1) == glossary.table(), 'Run: python -m jaxrl_llm.glossary'


def test_the_tiny_model_is_tiny():
  """104 x 64 embedding + 2 x (2 x 64 + 64 x (64 + 32 + 32 + 64) + 3 x 64 x 128) + 64.

  = 6656 + 2 x (128 + 12288 + 24576) + 64 = 80704.
  """
  params = pretrained.load('tiny').params()
  assert sum(x.size for x in runs.jax.tree.leaves(params)) == 80704


def test_held_out_questions_need_not_divide_over_the_devices():
  c = runs.config(mesh=dict(fsdp=8), evaluation=dict(batch=5))
  run = assemble.assemble(c)
  assert len(run.evaluate(run.state).samples) == c.task.test_size


def test_an_option_of_an_option_is_a_flag_away():
  """(1, 0, 0, 0): the sample's standard deviation is 1/2, so 3/4 becomes 3/2."""
  method = build.method('grpo', advantage='group_norm(ddof=1, eps=0.0)')
  batch = toy.batch(g=4).replace(reward=jnp.eye(toy.B, 4).at[0].set(jnp.eye(4)[0]))
  got = method.prepare(None, batch)[1].advantage[0, :, 0]
  assert got.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_minibatches_train_through_the_real_assembly(tmp_path):
  """The state is donated: nothing may hold on to the first one's arrays."""
  c = runs.config(steps=3, plan=dict(minibatches=2, epochs=2))
  train.main(c, str(tmp_path))
  records = log.read_lines(tmp_path / 'metrics.jsonl')
  assert [r['applied'] for r in records if r['split'] == 'train'] == [4, 8, 12]


def test_sampling_options_reach_the_sampler():
  """Truncation shows in a metric, stop strings in the text."""
  cut = dict(top_p=0.5, slots=2, stop_strings=('b',))
  run = runs.assembled(runs.config(source=cut))
  drawn = run.source(run.state, 0)
  assert 0.5 <= drawn.metrics['kept_mass'] < 0.9
  texts = [s['completion'] for s in drawn.samples]
  assert any('b' in t for t in texts)
  assert all(t.find('b') in (-1, len(t) - 1) for t in texts)


SOURCES = {
  'on_policy': {},
  'filter': dict(filter='best_random'),
  'replay': dict(replay=2, replay_size=8),
  'ahead': dict(ahead=True),
}


@pytest.mark.parametrize('name', SOURCES)
def test_truncated_sampling_is_of_the_policy_that_learns(name):
  """AT-32: in a run too sampler and trainer agree, so that either may correct the
  other; and of the whole distribution they would not.
  """
  source = dict(top_p=0.5, temperature=1.2) | SOURCES[name]
  run = runs.assembled(runs.config(source=source, plan=dict(importance='token')))
  state, meta = run.state, {'step': 0, 'rollouts': 0.0}
  for i in range(2):
    state, metrics, _ = train.one_step(run, state, meta)
    assert metrics['mismatch'] < 1e-5 and metrics['kept_mass'] < 0.9
    assert i or abs(metrics['kl_ref']) < 1e-6  # The reference is cut as the policy is.


def test_pairs_are_of_the_whole_distribution():
  """AT-32: whatever the sampler left out; their agreement is said, not corrected."""
  make = lambda **plan: runs.assembled(
    runs.config(source=dict(top_p=0.5, pair='best_worst'), plan=plan)
  )
  run = make()
  assert run.source(run.state, 0).batch.keep_within is None
  metrics = train.one_step(run, run.state, {'step': 0, 'rollouts': 0.0})[1]
  assert metrics['mismatch'] < 1e-5
  with pytest.raises(InputError, match='no pairs'):
    make(importance='token')


@pytest.mark.parametrize(
  ('string', 'match'), [('', 'not empty'), (3, 'one is text'), ('a<eos>', 'alone')]
)
def test_stop_strings_that_no_text_has_are_refused(string, match):
  with pytest.raises(InputError, match=f'stop_strings.*{match}'):
    runs.assembled(runs.config(source=dict(stop_strings=(string,))))


def test_a_stop_string_may_be_a_special_token():
  """Which text does not show: it ends completions as a token."""
  c, model = (
    runs.config(source=dict(stop_strings=('b', '<unk>'))),
    pretrained.load('tiny'),
  )
  unk = model.tokenizer.unk_token_id
  assert stops.parted(c.source.stop_strings, model.tokenizer) == (('b',), (unk,))
  for options in asking.sampling(c, None, model, None, None, 6)[1:]:
    want = [*pretrained.stop_ids(model.tokenizer), unk]
    assert options(2).stop_ids.tolist() == [want, want]


def test_what_was_compiled_once_is_not_compiled_again():
  """Fifty steps of prompts and completions of many lengths: only new shapes compile."""
  run = runs.assembled(runs.config(source=dict(max_prompt=16, max_length=8)))
  state, seen, compiled = run.state, set(), {}
  for step in range(50):
    with runs.compilations() as found:
      drawn = run.source(state, step)
      state, _ = run.update(state, sharding.put_batch(drawn.batch, run.mesh))
    shape = (drawn.batch.prompts.shape, drawn.batch.completions.shape)
    if shape in seen and step > 1:
      compiled[step] = found
    seen.add(shape)
  assert 1 <= len(seen) <= 16 and len(compiled) > 30
  assert not any(compiled.values())
