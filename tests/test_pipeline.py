"""Stages one after another, and what hands over between them."""

import shutil

import jax
import numpy as np
import pytest
import runs
from ml_collections import config_dict

from configs import pipelines
from jaxrl_llm import collect, log, pipeline, restored
from jaxrl_llm.data.letters import letters
from jaxrl_llm.models import pretrained
from jaxrl_llm.rewards import combine
from jaxrl_llm.rewards.learned import learned
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.sources import Drawn
from jaxrl_llm.tasks import letters as letters_task
from jaxrl_llm.tasks.records import Record, chat
from jaxrl_llm.types import InputError, make_batch


def recipe(**stages):
  c = config_dict.ConfigDict(dict(name='recipe'))
  c.stages, c.order = stages, tuple(stages)
  return c


def two():
  """Demonstrations, and GRPO from there."""
  second = runs.config('grpo', steps=2, model=dict(name='stage:first/model'))
  return recipe(first=runs.config('sft', steps=2), second=second)


def sample(prompt, completion, truncated=False):
  record = Record(0, chat(prompt), '', {})
  return Sample(prompt, completion, len(completion), truncated, record)


# ---- Stages --------------------------------------------------------------------------


def test_a_stage_begins_where_the_one_before_ended(tmp_path, capsys):
  found = pipeline.main(two(), str(tmp_path))
  assert list(found) == ['first', 'second']
  want = restored.policy(str(tmp_path / 'first')).params
  got = pretrained.load(str(tmp_path / 'first/model')).params()
  jax.tree.map(np.testing.assert_array_equal, got, want)
  named = log.json.loads((tmp_path / 'second/run.json').read_text())
  assert named['config']['model']['name'] == f'{tmp_path}/first/model'
  # The same command again does nothing and says the same.
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npy')}
  capsys.readouterr()
  assert pipeline.main(two(), str(tmp_path)) == found
  assert capsys.readouterr().out.count('is complete') == 2
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npy')} == before


def test_a_stage_made_of_what_has_changed_is_refused(tmp_path):
  pipeline.main(two(), str(tmp_path))
  shutil.rmtree(tmp_path / 'first')
  other = two()
  other.stages.first.seed = 7
  with pytest.raises(InputError, match=r"second was made of .* \['first'\]. Remove"):
    pipeline.main(other, str(tmp_path))
  shutil.rmtree(tmp_path / 'second')
  assert list(pipeline.main(other, str(tmp_path))) == ['first', 'second']


def test_a_stage_that_was_stopped_holds_up_the_next(tmp_path, monkeypatch):
  first = two()
  monkeypatch.setattr(pipeline.train, 'main', lambda *args, **kwargs: {'eval/loss': 1})
  monkeypatch.setattr(pipeline.checkpoint, 'read_meta', lambda folder: {'step': 1})
  assert pipeline.main(first, str(tmp_path)) == {'first': {'eval/loss': 1}}


@pytest.mark.parametrize(
  'order, message',
  [
    (('second', 'first'), r"stages\.second reads 'stage:first/model', and before it"),
    (('second',), r'come \[\]'),
    (('first', 'third'), "no stage 'third'; there are"),
  ],
)
def test_stages_in_an_order_that_cannot_be(order, message, tmp_path):
  c = two()
  c.order = order
  with pytest.raises(InputError, match=message):
    pipeline.main(c, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_mistake_in_a_late_stage_comes_before_the_first_runs(tmp_path):
  c = two()
  c.stages.second.method.name = 'grop'
  with pytest.raises(InputError, match="Did you mean 'grpo'"):
    pipeline.main(c, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', pipelines.RECIPES)
def test_recipes_fit_together(name):
  c = pipelines.get_config(name)
  pipeline.check(c)
  assert set(c.order) == set(c.stages)
  assert f'- {name}: ' in pipelines.__doc__


@pytest.mark.slow
@pytest.mark.parametrize('name', pipelines.RECIPES)
def test_a_recipe_runs_to_its_end(name, tmp_path):
  """As it stands: each stage takes what the ones before it have kept."""
  c = pipelines.get_config(name)
  assert list(pipeline.main(c, str(tmp_path))) == list(c.order)


def test_a_policy_grades_itself():
  """In each round the model that answers is the one that is asked."""
  c = pipelines.get_config('self_rewarding')
  for name in ('pairs_1', 'pairs_2'):
    pairs, dpo = c.stages[name], c.stages[name.replace('pairs', 'dpo')]
    assert pairs.rewards.grade.by.model == pairs.model.name == dpo.model.name
    assert dpo.model.ref == ''  # Its own birth, the round before.
  assert c.stages.pairs_2.model.name == 'stage:dpo_1/model'


def test_a_stage_reshapes_what_another_kept(tmp_path, capsys):
  """Once; and a call that is wrong is refused before any stage runs."""
  table = tmp_path / 'pairs.jsonl'
  row = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
  log.write_lines(table, [row | {'margin': m} for m in (1.0, 3.0, 2.0)])
  told = lambda call, path: config_dict.ConfigDict(dict(reshape=call, table=path))
  c = recipe(hard=told('hard', str(table)), flip=told('flipped(share=1.0)', ''))
  c.stages.flip.table = 'stage:hard/kept.jsonl'
  assert pipeline.main(c, str(tmp_path)) == {'hard': {'kept': 2}, 'flip': {'kept': 2}}
  found = log.read_lines(tmp_path / 'flip/kept.jsonl')
  assert [(r['chosen'], r['margin']) for r in found] == [('b', 1), ('b', 2)]
  capsys.readouterr()
  pipeline.main(c, str(tmp_path))
  assert 'rows, of' not in capsys.readouterr().out
  c.stages.flip.reshape = 'flipped(share=0.0)'  # The rows there are of another call.
  with pytest.raises(InputError, match=r"flip was made of .* \['reshape'\]"):
    pipeline.main(c, str(tmp_path))
  c.stages.hard.reshape = 'hrd'
  with pytest.raises(InputError, match="Did you mean 'hard'"):
    pipeline.check(c)


# ---- A reward model's score ----------------------------------------------------------


def test_learned_scores_as_its_run_did():
  """The held-out margin of the run, from text by way of the reward."""
  folder = runs.finished('bradley_terry')
  c = restored.network(str(folder), 'reward').config
  pairs = letters(kind='pairs', size=20, test_size=8).test
  score = learned(run=str(folder), batch=3).score
  side = lambda i: score(
    [sample(e.prompt[-1]['content'], e.completions[i]) for e in pairs]
  )
  told = [r for r in log.read_lines(folder / 'metrics.jsonl') if r['split'] == 'eval']
  assert c.data.size == 20
  np.testing.assert_allclose(
    (side(0) - side(1)).mean(), told[-1]['eval/margin'], atol=1e-5
  )


def test_learned_hears_what_follows():
  score = learned(run=str(runs.finished('bradley_terry')), missing=-7.0).score
  said = learned(
    run=str(runs.finished('bradley_terry')), missing=-7.0, after='</think>'
  ).score
  plain = score([sample('abc', 'cc'), sample('abc', 'c', True), sample('abc', ' ')])
  heard = said(
    [sample('abc', 'x</think> cc'), sample('abc', 'cc'), sample('abc', 'a</think>')]
  )
  assert plain[0] == heard[0]
  assert [*plain[1:], *heard[1:]] == [-7.0] * 4


def test_learned_takes_a_reward_model():
  with pytest.raises(InputError, match=r"trains \['policy'\] and no reward"):
    learned(run=str(runs.finished('grpo')))


def test_a_batched_reward_answers_for_every_sample():
  both = [sample('a', 'b'), sample('a', 'c')]
  weighted = lambda values: combine.weighted({'x': (2.0, Batched(lambda s: values))})
  np.testing.assert_array_equal(weighted([1.0, -0.5])(both)[0], [2.0, -1.0])
  with pytest.raises(InputError, match="'x': it returned 1 numbers for 2 samples"):
    weighted([1.0])(both)
  with pytest.raises(
    InputError, match="'x', record 0, completion 'c': it returned nan"
  ):
    weighted([1.0, float('nan')])(both)


# ---- Rejection sampling --------------------------------------------------------------


def drawn(said, prompts, cut=()):
  """Texts with rewards, as many of each prompt; those at `cut` did not end."""
  shape = (len(prompts), len(said) // len(prompts))
  truncated = np.isin(np.arange(len(said)), cut).reshape(shape)
  batch = make_batch(
    np.zeros((len(prompts), 1), np.int32),
    np.ones(len(prompts), np.int32),
    np.zeros((*shape, 1), np.int32),
    np.ones(shape, np.int32),
  ).replace(
    prompt_id=np.array(prompts), reward=np.zeros(shape), truncated=truncated * 1
  )
  return Drawn(batch, {}, [{'completion': t, 'reward': r} for t, r in said])


def test_the_best_that_ended_are_kept_by_hand():
  task = letters_task.letters()
  said = [('a', 0.5), ('b', 1.0), ('b', 1.0), ('c', 2.0)]  # The last one did not end.
  said += [('d', 0.4), (' ', 3.0), ('e', 0.3), ('f', 0.2)]
  found = drawn(said, (5, 3), cut=(3,))
  keep = lambda least, each: [
    (row['prompt'], row['completion'])
    for row in collect.kept(found, task, least=least, each=each)
  ]
  asked = {i: task.train(i).messages for i in (3, 5)}
  assert keep(0.5, 1) == [(asked[5], 'b')]
  assert keep(0.3, 2) == [(asked[5], t) for t in 'ba'] + [(asked[3], t) for t in 'de']


def test_texts_that_differ_in_the_space_around_them_are_one():
  """A table takes them for one: a pair of them stopped the stage that read it."""
  task, rng = letters_task.letters(), np.random.default_rng(0)
  pairs = lambda *said: [
    *collect.paired(drawn(said, (0,)), task, rng, pair='best_worst')
  ]
  assert not pairs(('a', 1.0), ('\na', 0.5), ('a ', 0.0))
  (row,) = pairs(('a', 1.0), ('\na', 0.5), ('b', 0.7))
  assert (row['chosen'], row['rejected']) == ('a', 'b')


def collecting(**options):
  c = runs.config('grpo', steps=3)
  c.collect = dict(least=-1.0, each=2) | options
  return c


def test_collecting_goes_on_where_it_stopped(tmp_path):
  whole, halved = tmp_path / 'whole', tmp_path / 'halved'
  size = collect.main(collecting(), str(whole))
  assert size['sampled'] == 3 * 8 * 4
  rows = log.read_lines(whole / 'kept.jsonl')
  assert size['kept'] == len(rows) > 0
  collect.main(collecting(), str(halved))
  (halved / 'kept.jsonl').unlink()
  lines = (halved / 'steps.jsonl').read_text().splitlines(keepends=True)
  (halved / 'steps.jsonl').write_text(lines[0] + lines[1][:7])  # Killed in the middle.
  collect.main(collecting(), str(halved))
  assert log.read_lines(halved / 'kept.jsonl') == rows


def test_collecting_nothing_is_an_error(tmp_path):
  with pytest.raises(InputError, match=r'nothing is kept.*9\.0'):
    collect.main(collecting(least=9.0), str(tmp_path / 'run'))
