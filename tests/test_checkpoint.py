"""A checkpoint comes back bit for bit, or says which one is damaged."""

import itertools
import logging
import os
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxrl_llm import checkpoint
from jaxrl_llm.types import InputError, State


def make_state(step, *, value=1.0, width=16):
  # From NumPy, which compiles nothing: the killed processes below start from here.
  w = value * np.arange(8 * width, dtype=np.float32).reshape(8, width)
  params = {'policy': {'w': w, 'b/c.d': np.full((3,), value, jnp.bfloat16)}}
  adam = optax.ScaleByAdamState(np.int32(step), params, params)
  state = State(
    step=np.int32(step),
    applied=np.int32(step),
    skipped=np.int32(0),
    params=params,
    opt_state=(adam, optax.EmptyState()),
    frozen={},
    extra={'beta': np.float32(np.nan), 'flag': np.array([True, False])},
    key=np.array([7, step], np.uint32),
  )
  state = jax.tree.map(jnp.asarray, state)
  return state.replace(key=jax.random.wrap_key_data(state.key))


def placed(state, count):
  """The state on `count` devices: `w` split over them, the rest on each."""
  mesh = jax.make_mesh(
    (count,),
    ('fsdp',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  split = jax.NamedSharding(mesh, jax.P('fsdp'))
  everywhere = jax.NamedSharding(mesh, jax.P())
  put = lambda x: jax.device_put(x, split if x.shape[:1] == (8,) else everywhere)
  return jax.tree.map(put, state)


def bits(tree):
  """Leaves as (dtype, bytes), so that NaN equals NaN and -0 is not 0."""

  def one(x):
    typed = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(x) if typed else x)
    return str(x.dtype), data.shape, data.tobytes()

  return jax.tree.map(one, tree)


def test_a_part_alone(tmp_path):
  """One role's parameters, whatever else the state holds."""
  state = make_state(3)
  checkpoint.save(tmp_path, state, {'a': 1}, keep=1)
  part = {'params': {'policy': state.params['policy']}}
  found, meta = checkpoint.restore(tmp_path, part)
  assert bits(found) == bits(part)
  assert meta == {'a': 1}
  with pytest.raises(InputError, match='params/critic is absent in the checkpoint'):
    checkpoint.restore(tmp_path, {'params': {'critic': jnp.ones(1)}})


def test_none_before_the_first(tmp_path):
  assert checkpoint.restore(tmp_path, make_state(0)) is None
  assert checkpoint.read_meta(tmp_path) is None
  assert checkpoint.steps(tmp_path) == []
  assert os.listdir(tmp_path) == []  # Looking creates nothing.


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_saved_on_8_devices_restored_on(tmp_path, count):
  """AT-57: the same bits, wherever they lie."""
  saved = placed(make_state(3), 8)
  checkpoint.save(tmp_path, saved, {'order': [2, 0, 1], 'epoch': 1}, keep=1)
  target = placed(make_state(0, value=0.0), count)
  state, meta = checkpoint.restore(tmp_path, target)
  assert bits(state) == bits(saved)
  assert jax.tree.structure(state) == jax.tree.structure(saved)
  assert meta == {'order': [2, 0, 1], 'epoch': 1}
  for leaf, due in zip(jax.tree.leaves(state), jax.tree.leaves(target)):
    assert leaf.sharding == due.sharding
  w = state.params['policy']['w']
  assert w.addressable_shards[0].data.shape == (8 // count, 16)


def test_digests_keep_no_host_copy():
  w = placed(make_state(3), 8).params['policy']['w']
  checkpoint._digest(w)
  assert w._npy_value is None
  # The same bytes on one device have the same digest.
  assert checkpoint._digest(w) == checkpoint._digest(np.asarray(w))


def test_shapes_alone_are_a_target(tmp_path):
  saved = make_state(3)
  checkpoint.save(tmp_path, saved, {}, keep=1)
  shapes = jax.eval_shape(lambda: saved)
  state, _ = checkpoint.restore(tmp_path, shapes)
  assert bits(state) == bits(saved)
  assert state.params['policy']['w'].devices() == {jax.devices()[0]}


def test_keeps_the_newest_and_lists_them(tmp_path):
  for step in (1, 2, 3, 10):
    checkpoint.save(tmp_path, make_state(step), {'at': step}, keep=3)
  assert checkpoint.steps(tmp_path) == [2, 3, 10]
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['10', '2', '3']
  assert checkpoint.read_meta(tmp_path) == {'at': 10}
  assert checkpoint.read_meta(tmp_path, 2) == {'at': 2}
  state, meta = checkpoint.restore(tmp_path, make_state(0), step=3)
  assert (int(state.step), meta) == (3, {'at': 3})


def test_going_on_from_an_earlier_step_drops_the_later_ones(tmp_path):
  for step in (1, 2, 3):
    checkpoint.save(tmp_path, make_state(step), {}, keep=3)
  state, _ = checkpoint.restore(tmp_path, make_state(0), step=1)
  checkpoint.save(tmp_path, state.replace(step=jnp.int32(2)), {}, keep=3)
  assert checkpoint.steps(tmp_path) == [1, 2]


def test_a_step_that_is_not_there(tmp_path):
  """AT-55: what is asked for is there, or it is an error."""
  for step in (2, 4):
    checkpoint.save(tmp_path, make_state(step), {}, keep=2)
  with pytest.raises(InputError, match=r'step 3 .*There are: \[2, 4\]'):
    checkpoint.restore(tmp_path, make_state(0), step=3)
  with pytest.raises(InputError, match=r'There are: \[2, 4\]'):
    checkpoint.read_meta(tmp_path, 3)
  with pytest.raises(InputError, match='There are: none'):
    checkpoint.restore(tmp_path / 'other', make_state(0), step=3)


def test_a_state_of_another_shape(tmp_path):
  checkpoint.save(tmp_path, make_state(1, width=16), {}, keep=1)
  due = r'policy/w is float32\[8, 16\] in the checkpoint, and float32\[8, 4\] here'
  with pytest.raises(InputError, match='params/' + due):
    checkpoint.restore(tmp_path, make_state(0, width=4))
  with pytest.raises(InputError, match=r'frozen/ref is absent .* and int32\[\] here'):
    checkpoint.restore(tmp_path, make_state(0).replace(frozen={'ref': jnp.int32(0)}))
  with pytest.raises(InputError, match=r'extra/beta is float32\[\] .* absent here'):
    checkpoint.restore(tmp_path, make_state(0).replace(extra={'flag': jnp.ones(2) > 0}))
  with pytest.raises(InputError, match=r'step is int32\[\] .* float32\[\] here'):
    checkpoint.restore(tmp_path, make_state(0).replace(step=jnp.float32(0)))
  other = make_state(0).replace(key=jax.random.key(0, impl='rbg'))
  with pytest.raises(InputError, match=r'key is key<fry>\[\] .* key<rbg>\[\] here'):
    checkpoint.restore(tmp_path, other)


def test_other_values_under_the_same_record(tmp_path, caplog):
  """The digests are of the values: a readable but different state is not taken."""
  checkpoint.save(tmp_path, make_state(1), {}, keep=2)
  checkpoint.save(tmp_path, make_state(2), {}, keep=2)
  checkpoint.save(tmp_path / 'other', make_state(2, value=2.0), {}, keep=1)
  theirs = tmp_path / 'checkpoints/2/state'
  shutil.rmtree(theirs)
  (tmp_path / 'other/checkpoints/2/state').rename(theirs)
  state, _ = checkpoint.restore(tmp_path, make_state(0))
  assert bits(state) == bits(make_state(1))
  assert 'the values of params/policy/b/c.d are not those' in caplog.text
  with pytest.raises(InputError, match=r'\[2\] are damaged .*the values of params'):
    checkpoint.restore(tmp_path, make_state(0), step=2)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('damage', ['cut', 'flip', 'gone'])
def test_damage_to_any_file_is_seen(tmp_path, damage):
  """Each file of the newest in turn: exactly it, or exactly the one before."""
  # 64 kB a leaf: orbax stores small leaves and large ones in different files.
  saved = {step: make_state(step, value=np.pi * step, width=2048) for step in (1, 2)}
  for step, state in saved.items():
    checkpoint.save(tmp_path / 'good', state, {'at': step}, keep=2)
  newest = tmp_path / 'good/checkpoints/2'
  taken = []
  for path in sorted(p for p in newest.rglob('*') if p.is_file()):
    work = tmp_path / 'work'
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(tmp_path / 'good', work)
    victim = work / 'checkpoints/2' / path.relative_to(newest)
    data = bytearray(victim.read_bytes())
    middle = len(data) // 2
    if damage == 'gone':
      victim.unlink()
    elif data:
      flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
      victim.write_bytes(flipped if damage == 'flip' else data[:middle])
    state, meta = checkpoint.restore(work, saved[1])
    assert bits(state) == bits(saved[meta['at']])
    taken.append(meta['at'])
  assert set(taken) == {1, 2}  # Some files matter, some are only informative.


def test_none_is_good(tmp_path):
  checkpoint.save(tmp_path, make_state(1), {}, keep=1)
  shutil.rmtree(tmp_path / 'checkpoints/1/record')
  with pytest.raises(InputError, match=r'\[1\] are damaged .*start again'):
    checkpoint.restore(tmp_path, make_state(0))
  with pytest.raises(InputError, match=r'checkpoints/1 is damaged'):
    checkpoint.read_meta(tmp_path)


def test_partial_directories_are_ignored_and_then_swept(tmp_path):
  checkpoint.save(tmp_path, make_state(1), {'at': 1}, keep=1)
  root = tmp_path / 'checkpoints'
  (root / '2.orbax-checkpoint-tmp-0/state').mkdir(parents=True)
  (root / '3.removed').mkdir()
  (root / 'notes').mkdir()  # A user's own directory stays.
  assert checkpoint.steps(tmp_path) == [1]
  assert checkpoint.restore(tmp_path, make_state(0))[1] == {'at': 1}
  checkpoint.save(tmp_path, make_state(4), {}, keep=1)
  assert sorted(os.listdir(root)) == ['4', 'notes']


def dies_at(count):
  """An audit hook that ends the process before change `count` to the files, from 0."""
  left = itertools.count(count, -1)

  def hook(event, args):
    changes = event in ('os.mkdir', 'os.rename', 'os.rmdir', 'os.remove')
    changes = changes or (event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR))
    if changes and 'checkpoints' in str(args) and next(left) <= 0:
      os._exit(9)

  return hook


def killed_saves(root):
  """Makes workdirs `<root>/<n>`, where a save died before its change n to the files.

  Forks before jax starts any thread: a process for each save, one import for all.
  """
  for count in itertools.count():
    if not (child := os.fork()):
      shutil.copytree(f'{root}/before', f'{root}/{count}')
      new = make_state(2, value=2.0)
      sys.addaudithook(dies_at(count))
      checkpoint.save(f'{root}/{count}', new, {'at': 'new'}, keep=1)
      os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    if code == 0:
      return


def test_killed_at_every_file_operation(tmp_path):
  """AT-54: after a death anywhere within a save, the old or the new state is there."""
  states = {'old': make_state(2), 'new': make_state(2, value=2.0)}
  # The save has an older checkpoint to remove, and one of its own step to replace.
  checkpoint.save(tmp_path / 'before', make_state(1), {'at': 'older'}, keep=2)
  checkpoint.save(tmp_path / 'before', states['old'], {'at': 'old'}, keep=2)
  program = 'import sys, conftest, test_checkpoint as t; t.killed_saves(sys.argv[1])'
  here = os.path.dirname(__file__)
  subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', program, str(tmp_path)],
    check=True,
    cwd=here,
    env={**os.environ, 'PYTHONPATH': os.path.dirname(here)},
    timeout=120,
  )
  seen = []
  for count in range(len(os.listdir(tmp_path)) - 1):
    workdir = tmp_path / str(count)
    state, meta = checkpoint.restore(workdir, make_state(0))
    assert bits(state) == bits(states[meta['at']])
    checkpoint.save(workdir, states['new'], {}, keep=1)  # Debris is no hindrance.
    assert os.listdir(workdir / 'checkpoints') == ['2']
    seen.append(meta['at'])
  assert seen == sorted(seen, reverse=True)  # Old until the new one is complete.
  assert seen.count('old') > 3
  assert seen.count('new') > 3


def test_an_error_in_orbax_leaves_the_previous_one(tmp_path, monkeypatch):
  checkpoint.save(tmp_path, make_state(1), {'at': 1}, keep=1)

  def full(*args, **kwargs):
    raise OSError('No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(ocp.Checkpointer, 'save', full)
    with pytest.raises(OSError, match='No space left'):
      checkpoint.save(tmp_path, make_state(2), {}, keep=1)
  assert checkpoint.steps(tmp_path) == [1]
  assert bits(checkpoint.restore(tmp_path, make_state(0))[0]) == bits(make_state(1))


def test_no_memory_is_not_called_damage(tmp_path, monkeypatch):
  for step in (1, 2):
    checkpoint.save(tmp_path, make_state(step), {}, keep=2)
  read = ocp.Checkpointer.restore

  def full(self, path, args):
    if 'state' in args:
      raise MemoryError('no room')
    return read(self, path, args=args)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', full)
  with pytest.raises(MemoryError, match='no room'):
    checkpoint.restore(tmp_path, make_state(0))


def test_meta_that_is_not_json_writes_nothing(tmp_path):
  checkpoint.save(tmp_path, make_state(1), {}, keep=1)
  with pytest.raises(TypeError, match='not JSON serializable'):
    checkpoint.save(tmp_path, make_state(2), {'x': object()}, keep=1)
  with pytest.raises(InputError, match='keep=0'):
    checkpoint.save(tmp_path, make_state(2), {}, keep=0)
  assert checkpoint.steps(tmp_path) == [1]


def test_tuples_and_nan_in_meta(tmp_path):
  checkpoint.save(tmp_path, make_state(1), {'pair': (1, 2), 'x': np.nan}, keep=1)
  meta = checkpoint.read_meta(tmp_path)
  assert meta['pair'] == [1, 2]
  assert np.isnan(meta['x'])


def test_orbax_is_silent_at_info(tmp_path, capfd):
  absl = logging.getLogger('absl')
  level, handler = absl.level, logging.StreamHandler()
  absl.setLevel(logging.INFO)
  absl.addHandler(handler)
  try:
    checkpoint.save(tmp_path, make_state(1), {}, keep=1)
    checkpoint.restore(tmp_path, make_state(0))
    absl.info('heard')
  finally:
    absl.removeHandler(handler)
    absl.setLevel(level)
  out, err = capfd.readouterr()
  assert (out, err) == ('', 'heard\n')


def test_no_thread_is_left(tmp_path):
  before = threading.active_count()
  for step in range(3):
    checkpoint.save(tmp_path, make_state(step), {}, keep=1)
  assert threading.active_count() <= before + 2
