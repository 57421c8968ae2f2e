"""Weights merged, references that are not the policy's birth, and those that move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from ml_collections import config_dict
from test_contract import start
from test_identities import close, update
from test_scripts import script

from configs import pipelines
from jaxrl_llm import assemble, build, controllers, pipeline, restored
from jaxrl_llm.models import merging, pretrained
from jaxrl_llm.types import InputError


def tree(*x):
  return {'embed': jnp.array(x, jnp.float32)}


def same(got, want, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


def test_average_by_hand():
  trees = [tree(1, 0), tree(0, 2), tree(5, 4)]
  same(merging.average(trees), tree(2, 2))
  same(merging.average(trees, shares=(3, 1, 0)), tree(0.75, 0.5))
  same(merging.average(trees[:2], shares=(1.0, 0.0)), trees[0])
  for shares in ((0.5,), (1.0, -1.0, 0.0)):
    with pytest.raises(InputError, match='one for each'):
      merging.average(trees, shares=shares)


def test_task_vectors_by_hand():
  """The base + twice the first change + half of the second."""
  trees = [tree(1, 1), tree(2, 1), tree(1, 3)]
  same(merging.task_vectors(trees, scales=(2.0, 0.5)), tree(3, 2))
  same(merging.task_vectors(trees[:2], scales=(1.0,)), trees[1])
  same(merging.task_vectors(trees, scales=(0.0, 0.0)), trees[0])
  with pytest.raises(InputError, match='it takes 2 models, not 3'):
    merging.task_vectors(trees, scales=(1.0,))


def test_slerp_by_hand():
  """From (1, 0) to (0, 1): an angle of 90 degrees in shares; from (2, 0) to (0, 2) the
  lengths stay; what is parallel is averaged; both ends are where they are.
  """
  for share in (0.0, 1 / 3, 1.0):
    got = merging.slerp([tree(2, 0), tree(0, 2)], share=share)
    same(got, tree(2 * np.cos(share * np.pi / 2), 2 * np.sin(share * np.pi / 2)))
  same(merging.slerp([tree(1, 1), tree(3, 3)], share=0.25), tree(1.5, 1.5))
  same(merging.slerp([tree(0, 0), tree(3, 1)]), tree(1.5, 0.5))
  with pytest.raises(InputError, match='takes 2 models'):
    merging.slerp([tree(1)])


def test_slerp_turns_each_layer_on_its_own():
  """One layer by 90 degrees and one not at all."""
  layers = lambda *x: {'layers': {'q': jnp.array(x, jnp.float32)}}
  got = merging.slerp([layers([1, 0], [3, 0]), layers([0, 1], [3, 0])])
  same(got, layers([0.5**0.5, 0.5**0.5], [3, 0]))


def test_only_what_is_alike_is_merged():
  with pytest.raises(InputError, match=r'differ in embed: \(2,\) and \(3,\)'):
    merging.average([tree(1, 2), tree(1, 2, 3)])
  with pytest.raises(InputError, match='differ in head: None'):
    merging.extrapolate([tree(1), tree(1) | {'head': jnp.ones(1)}], alpha=1.0)


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_a_step_beyond_on_a_table_is_one_of_policies(alpha):
  """softmax(new + alpha (new - old)) is new (new / old)^alpha / Z."""
  rng = np.random.default_rng(0)
  new, old = (tree(*rng.normal(size=6)) for _ in range(2))
  got = jax.nn.softmax(merging.extrapolate([new, old], alpha=alpha)['embed'])
  p, q = (np.asarray(jax.nn.softmax(x['embed'])) for x in (new, old))
  want = p * (p / q) ** alpha
  close(got, want / want.sum())


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.5])
def test_rounds_with_momentum_by_hand(alpha):
  """Exact rounds, log pi <- log pi + r: with momentum round t adds r (1 + alpha + ... +
  alpha^t), in the end r / (1 - alpha).
  """
  gain = jnp.array([1.0, 0.3, -0.2])
  theta = before = tree(0, 0, 0)
  for _ in range(12):
    after = {'embed': theta['embed'] + gain}
    theta, before = merging.extrapolate([after, before], alpha=alpha), after
  want = sum((1 - alpha ** (t + 1)) / (1 - alpha) for t in range(1, 13))
  close(theta['embed'], want * gain, 1e-4)


# ---- By name -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The policy of a finished run, as a folder."""
  path = tmp_path_factory.mktemp('model') / 'model'
  restored.export(restored.policy(str(runs.finished())), path)
  return str(path)


def test_a_merged_model_loads_as_any(folder, tmp_path):
  """'tiny' and what a run made of it, three to one; and so does the script's folder."""
  call = f"average(models=('tiny', '{folder}'), shares=(0.75, 0.25))"
  got = pretrained.load(call)
  parts = [pretrained.load(name).params() for name in ('tiny', folder)]
  want = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, *parts)
  assert abs(parts[0]['embed'] - parts[1]['embed']).max() > 1e-4
  same(got.params(), want)
  script('merge').main([call, str(tmp_path / 'merged')])
  same(pretrained.load(str(tmp_path / 'merged')).params(), want)


def test_a_merged_model_by_a_wrong_name():
  for call, message in (
    ("averag(models=('tiny',))", "Did you mean 'average'"),
    ('average(shares=(1.0,))', r'give models=\(...\)'),
    ("average(models=('tiny',), share=1.0)", "no option 'share'"),
    ("task_vectors(models=('tiny',))", 'needs scales'),
    ("average(models=('huge',))", "no model 'huge'"),
    ("average(models=('tiny',)", 'write'),
  ):
    with pytest.raises(InputError, match=message):
      pretrained.load(call)


def test_the_reference_is_a_soup(folder):
  """SALSA: half of the policy's birth and half of another model. The first step's KL is
  to it, and is not 0; to the birth it is.
  """
  call = f"average(models=('tiny', '{folder}'), shares=(0.5, 0.5))"
  run = runs.assembled(runs.config('ppo', model=dict(ref=call)))
  same(run.state.frozen['ref'], pretrained.load(call).params(), 0)
  batch = run.source(run.state, 0).batch
  birth = jax.tree.map(jnp.copy, run.state.params['policy'])
  alone = jax.tree.map(jnp.copy, run.state).replace(frozen={'ref': birth})
  assert float(run.update(run.state, batch)[1]['kl_ref']) > 1e-6
  assert float(run.update(alone, batch)[1]['kl_ref']) == pytest.approx(0.0, abs=1e-9)


def test_a_stored_reference_is_the_birth(folder):
  c = runs.config('dpo', model=dict(ref=folder), source=dict(cache_reference=True))
  with pytest.raises(InputError, match='the policy at its birth'):
    assemble.assemble(c)


def test_stages_in_a_call():
  stages = pipelines.salsa()
  c = config_dict.ConfigDict(dict(stages=stages, order=tuple(stages)))
  pipeline.check(c)
  got = pipeline.placed(c.stages.ppo, 'w').model.ref
  assert got == "average(models=('w/sft/model', 'w/other/model'), shares=(0.5, 0.5))"
  c.order = ('sft', 'ppo')
  with pytest.raises(InputError, match="'stage:other/model'"):
    pipeline.check(c)


# ---- Those that move -----------------------------------------------------------------


@pytest.mark.parametrize('share', [1.0, 0.6])
def test_the_reference_moves_every_so_many_updates(share):
  """TR-DPO: after the second and fourth of four updates, by a share; between, not."""
  m = controllers.refreshed(build.method('dpo'), every=2, share=share)
  state = start('dpo').replace(extra={'ref_moves': jnp.float32(0)})
  ref = state.frozen['ref']
  for i in range(1, 5):
    state, _ = update(m, toy.batch(i), state)
    if i % 2 == 0:
      ref = share * state.params['policy'] + (1 - share) * ref
    close(state.frozen['ref'], ref)
  assert abs(ref - start('dpo').frozen['ref']).max() > 1e-2


def test_a_reference_that_is_not_there_does_not_move():
  with pytest.raises(InputError, match='simpo may have none'):
    assemble.assemble(runs.config('simpo', plan=dict(refresh=2)))
  c = runs.config('dpo', plan=dict(refresh=2))
  c.model.lora.update(rank=2)
  with pytest.raises(InputError, match='With LoRA'):
    assemble.assemble(c)
