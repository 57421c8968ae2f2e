"""Trees of completions: what branches, what is pruned, and what the rows say."""

import types as simple

import jax
import numpy as np
import pytest
import runs
import test_rollout as plain
from test_rollout import B, G, T, V, close

from jaxrl_llm import asking, assemble, sharding, types
from jaxrl_llm.rollout import draw, trees
from jaxrl_llm.types import InputError

ALWAYS = dict(absolute=0.0, relative=1.1)
IDS = np.arange(B, dtype=np.int32)


def grow(share=1.0, temperature=1.0, stop_ids=(plain.NEVER,), **growth):
  """A rollout of the four prompts of test_rollout, eight rows each."""
  sample = trees.make_trees(
    plain.DECODER,
    plain.sampler(group=1),
    group=G,
    max_length=T,
    growth=trees.Growth(**growth),
    share=lambda step: share,
  )
  how = dict(max_length=T, stop_ids=stop_ids, temperature=temperature)
  args = (plain.prompts(), plain.LENGTHS, IDS, draw.options(B, **how))
  return sample(plain.params(), *args, jax.random.key(0), 3)


def likeliest(said):
  """The tokens that may follow, the likeliest first: said [B, n] to [B, V]."""
  each = np.repeat(said[:, None], V, 1)
  new = np.tile(np.arange(V)[None, :, None], (B, 1, 1))
  tokens = np.concatenate([each, new], -1).astype(np.int32)
  tokens = np.pad(tokens, [(0, 0), (0, 0), (0, T - tokens.shape[-1])])
  full = np.full((B, V), T, np.int32)
  batch = types.make_batch(plain.prompts(), plain.LENGTHS, tokens, full)
  return np.argsort(-plain.scorer()(plain.params(), batch)[..., said.shape[1]], 1)


@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_the_rows_log_probs_are_the_trainers(temperature):
  """Of what was forced, what was drawn later, and what fills the places left."""
  rollout = grow(0.5, temperature, (0,), absolute=0.1, relative=0.3, looks=(2,))
  batch = plain.to_batch(rollout)
  close(plain.scorer()(plain.params(), batch) * batch.mask, rollout.behavior_logp, 1e-5)
  assert (rollout.length >= 1).all()
  last = np.take_along_axis(rollout.tokens, rollout.length[..., None] - 1, 2)[..., 0]
  np.testing.assert_array_equal(rollout.stop_reason, last == 0)


def test_a_tree_that_always_branches():
  """Four of eight: a, b; then a and b with their likeliest, and with their next."""
  rollout = grow(0.5, **ALWAYS)
  first = likeliest(np.zeros((B, 0), int))
  for row, (one, two) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
    start = first[:, one, None]
    np.testing.assert_array_equal(rollout.tokens[:, row, 0], start[:, 0])
    np.testing.assert_array_equal(rollout.tokens[:, row, 1], likeliest(start)[:, two])
  # The other four are what the ordinary sampler draws.
  ids = (IDS[:, None] * G + np.arange(4, 8)).ravel().astype(np.int32)
  which = np.repeat(IDS, 4)
  args = (plain.prompts()[which], plain.LENGTHS[which], ids)
  how = draw.options(16, max_length=T, stop_ids=(plain.NEVER,))
  key = jax.random.fold_in(jax.random.key(0), trees.SALT)
  due = plain.sampler(group=1)(plain.params(), *args, how, key, 3)
  np.testing.assert_array_equal(rollout.tokens[:, 4:].reshape(16, T), due.tokens[:, 0])


def test_a_tree_that_never_branches_is_greedy():
  """As far as `until`; what comes then is drawn."""
  greedy = plain.sample(temperature=0.0).tokens[:, 0]
  np.testing.assert_array_equal(grow(absolute=1.0).tokens[:, 0], greedy)
  short = grow(absolute=1.0, until=2).tokens[:, 0]
  np.testing.assert_array_equal(short[:, :2], greedy[:, :2])
  assert (short[:, 2:] != greedy[:, 2:]).any()


def test_what_is_pruned_by_hand():
  """At 6, looks 4 after births at 2: one edit in four is under .4, two are not."""
  taken = np.array([[True, True, True, True, False]])
  tree = trees.Tree(
    np.array([[-1, 0, 1, 0, -1]]), np.array([[0, 2, 3, 2, 0]]), taken.copy()
  )
  said = [
    [1, 2, 3, 4, 5, 6],
    [1, 2, 9, 4, 5, 6],
    [1, 2, 9, 7, 7, 7],
    [1, 2, 9, 9, 5, 6],
  ]
  rows = simple.SimpleNamespace(
    alive=taken, tokens=np.array([[*said, [0] * 6]]), length=np.array([[6] * 4 + [0]])
  )
  growth = trees.Growth(looks=(4,), edit=0.4)
  assert not trees.pruned(tree, rows, np.array([True]), growth, 5)
  assert not trees.pruned(tree, rows, np.array([False]), growth, 6)
  assert trees.pruned(tree, rows, np.array([True]), growth, 6)
  # The grandchild goes with its parent.
  assert tree.taken.tolist() == [[True, False, False, True, False]]
  # Its place is the next one's.
  fits = np.array([[True, False, False, False, False]])
  prob = np.tile([0.4, 0.3], (1, 5, 1))
  source, rank = trees.branched(tree, fits, prob, trees.Growth(), 7, 4)
  assert (source[0].tolist(), rank[0].tolist()) == ([0, 0, 2, 3, 4], [0, 1, 0, 0, 0])
  assert (tree.parent[0, 1], tree.birth[0, 1]) == (0, 7)


@pytest.mark.parametrize(
  'prob, most, want',
  [
    ([0.4, 0.3], 4, 2),
    ([0.4, 0.24], 4, 1),  # Not likely enough.
    ([0.5, 0.34], 4, 1),  # Too far behind.
    ([0.4, 0.3], 1, 1),  # Full.
  ],
)
def test_what_branches_by_hand(prob, most, want):
  tree = trees.Tree(*(np.array([[x, x]]) for x in (-1, 0)), np.array([[True, False]]))
  alive = np.array([[True, False]])
  trees.branched(tree, alive, np.tile(prob, (1, 2, 1)), trees.Growth(), 0, most)
  assert tree.taken.sum() == want


def test_measures_by_hand():
  """kitten and sitting: three edits; ittn in common; an end of none."""
  assert trees.table('kitten', 'sitting') == (3, 4)
  alike = lambda one, other, **how: trees.alike(
    [*one], [*other], trees.Growth(**{'edit': 0.0} | how)
  )
  assert alike('kitten', 'sitting', edit=0.43)
  assert not alike('kitten', 'sitting', edit=3 / 7)
  assert alike('abcd', 'xbcd', suffix=0.74) and not alike('abcd', 'xbcd', suffix=0.75)
  assert alike('kitten', 'sitting', rouge=0.61)
  assert not alike('kitten', 'sitting', rouge=0.62)
  assert not alike('abcd', 'abcd')
  assert alike('abcd', 'abcd', suffix=0.99)


def test_the_share_by_step():
  schedule = ((0, 1.0), (10, 0.5))
  assert [trees.share_at(schedule, s) for s in (0, 9, 10, 99)] == [1, 1, 0.5, 0.5]
  assert trees.share_at(((5, 1.0),), 4) == 0


def test_a_run_grows_its_groups():
  tree = dict(share=((0, 1.0), (1, 0.5)), **ALWAYS)
  run = runs.assembled(runs.config(source=dict(tree=tree)))
  state = run.state
  for step, forced in enumerate((4, 2)):
    drawn = run.source(state, step)
    ids = drawn.batch.completions
    # All in two tokens, or two in one: no two of the forced are alike.
    wide = 2 if forced == 4 else 1
    assert all(len({*map(tuple, g[:forced, :wide].tolist())}) == forced for g in ids)
    state, found = run.update(state, sharding.put_batch(drawn.batch, run.mesh))
    assert float(found['max/mismatch']) < 1e-4


def test_trees_refuse():
  tree = dict(share=((0, 1.0),))
  for other in (dict(top_p=0.9), dict(slots=4), dict(tree=dict(share=((0, 1.5),)))):
    with pytest.raises(InputError, match='takes shares from 0 to 1'):
      assemble.assemble(runs.config(source=dict(tree=tree) | other))
  with pytest.raises(InputError, match='episodes grows no trees'):
    asking.refuse_told(runs.config(source=dict(tree=tree)), 'episodes')
