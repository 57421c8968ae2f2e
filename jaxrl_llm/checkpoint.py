"""Save, verify and restore everything that changes. The only importer of orbax.

`<workdir>/checkpoints/<step>` is one complete checkpoint: the state, and a JSON record
of the caller's meta and of each leaf's shape, dtype and digest. Orbax writes it under
another name and renames it, so a directory named by a number alone is complete.
`<step>.replaced` is a complete checkpoint that a later one of the same step is about to
supersede; it counts until that one is there. Local file systems, one process.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxrl_llm.types import InputError, State

Record = dict[str, Any]  # What the JSON file of a checkpoint holds.

logger = logging.getLogger(__name__)


def _no_chatter(record: logging.LogRecord) -> bool:
  return record.levelno >= logging.WARNING or '/orbax/' not in record.pathname


# Orbax reports every phase of every save at INFO, through absl.
logging.getLogger('absl').addFilter(_no_chatter)


def steps(workdir: str | os.PathLike) -> list[int]:
  """The steps of the complete checkpoints under `workdir`, in ascending order."""
  return sorted(_complete(_root(workdir)))


def fingerprint(state: State, words: str) -> str:
  """A short digest of the state at its birth, by a few numbers of every array, and of
  `words`: a resumed run must begin as the first one did.
  """
  few = jax.jit(lambda x: x[(0,) * (x.ndim - 1)][:4] if x.ndim else x)
  digest = hashlib.blake2b(words.encode(), digest_size=8)
  for x in jax.tree.leaves((state.params, state.frozen)):
    digest.update(np.asarray(few(x)).tobytes())
  return digest.hexdigest()


def save(workdir: str | os.PathLike, state: State, meta: dict, *, keep: int) -> None:
  """Writes `<workdir>/checkpoints/<state.step>`; returns when it is complete.

  Afterwards the newest checkpoint is this one: those of later steps (of a future that
  was given up, or damaged) and all but the `keep` newest are removed, after it is
  complete and not before.

  Args:
    workdir: any path; created if need be.
    state: arrays and typed keys, on any devices of this process.
    meta: JSON-able; comes back from `restore` and `read_meta`.
    keep: number of checkpoints to keep, at least 1.

  Raises:
    InputError: `keep` is below 1.
  """
  if keep < 1:
    raise InputError(f'keep={keep}: at least 1 checkpoint must be kept.')
  root, step = _root(workdir), int(state.step)
  root.mkdir(parents=True, exist_ok=True)
  final, aside = root / str(step), root / f'{step}.replaced'
  record = _seal({'meta': meta, 'leaves': _describe(state)})
  if final.exists():
    shutil.rmtree(aside, ignore_errors=True)
    final.rename(aside)
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
  )
  with _checkpointer() as checkpointer:
    checkpointer.save(final, args=items)
  earlier = [s for s in steps(workdir) if s <= step]
  _sweep(root, earlier[-keep:])


def restore(
  workdir: str | os.PathLike, target: State | dict, *, step: int | None = None
) -> tuple[Any, dict] | None:
  """The newest good checkpoint, or the one of `step`, and its meta.

  Values are bit-exact. A damaged checkpoint is warned of, and the one before it is
  taken; an explicit `step` is never replaced by another.

  Args:
    workdir: as given to `save`.
    target: arrays or `jax.ShapeDtypeStruct`s in the structure of the state, or of a
      part of it: {'params': {'policy': ...}}, and nothing else is read. The result
      takes their shardings; where there is none, it goes to the default device.
    step: the step to restore; the newest if None.

  Returns:
    (state, meta), or None if there is no checkpoint and no `step` is asked for.

  Raises:
    InputError: no such step; no good checkpoint; or a leaf's path, shape or dtype is
      not the target's.
  """
  root = _root(workdir)
  found = _complete(root)
  if step is not None:
    found = {step: _find(root, step)}
  for number in sorted(found, reverse=True):
    result, problem = _load(found[number], target)
    if result is not None:
      return result
    logger.warning('Checkpoint %s is damaged: %s.', found[number], problem)
  if not found:
    return None
  raise InputError(
    f'No checkpoint in {root} can be read: {sorted(found)} are damaged (the last one '
    f'tried: {problem}). Restore another step, or start again in a new workdir.'
  )


def read_meta(workdir: str | os.PathLike, step: int | None = None) -> dict | None:
  """The meta of the newest checkpoint, or of `step`, without reading the state.

  Returns None if there is no checkpoint and no `step` is asked for.

  Raises:
    InputError: no such step, or its record is damaged.
  """
  root = _root(workdir)
  if step is None and not _complete(root):
    return None
  path = _find(root, max(_complete(root)) if step is None else step)
  record, problem = _read_record(path)
  if record is None:
    raise InputError(f'Checkpoint {path} is damaged: {problem}. Name another step.')
  return record['meta']


def _root(workdir) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / 'checkpoints'


def _checkpointer() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _complete(root: pathlib.Path) -> dict[int, pathlib.Path]:
  found = {}
  # '7.replaced' comes before '7' in this order, and gives way to it.
  for path in sorted(root.glob('*'), reverse=True):
    if match := re.fullmatch(r'(\d+)(\.replaced)?', path.name):
      found[int(match[1])] = path
  return found


def _find(root: pathlib.Path, step: int) -> pathlib.Path:
  found = _complete(root)
  if step not in found:
    raise InputError(
      f'No checkpoint of step {step} in {root}. There are: {sorted(found) or "none"}.'
    )
  return found[step]


def _sweep(root: pathlib.Path, kept: list[int]) -> None:
  """Removes all checkpoints but those of `kept`, and what killed saves left over."""
  for path in sorted(root.iterdir()):
    if re.fullmatch(r'\d+(\..*)?', path.name) and path.name not in map(str, kept):
      # Renamed first: a half-removed directory must not pass for a checkpoint.
      gone = root / f'{path.name.split(".")[0]}.removed'
      shutil.rmtree(gone, ignore_errors=True)
      if path != gone:
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _load(path: pathlib.Path, target: State | dict):
  """((state, meta), '') or (None, what is wrong with the checkpoint)."""
  record, problem = _read_record(path)
  if record is None:
    return None, problem
  _check_structure(path, record['leaves'], target)
  due = _abstract(target)
  items = ocp.args.PyTreeRestore(
    item=due,
    restore_args=ocp.checkpoint_utils.construct_restore_args(due),
    partial_restore=True,  # The structure has been checked.
  )
  args = ocp.args.Composite(state=items)
  try:
    with _checkpointer() as checkpointer:
      state = checkpointer.restore(path, args=args)['state']
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # No room for it is no fault of the checkpoint.
  except Exception as error:  # Orbax raises a bare one where an array cannot be read.
    return None, _first_line(error.__cause__ or error)
  for name, leaf in _describe(state).items():
    if leaf != record['leaves'][name]:
      return None, f'the values of {name} are not those that were saved'
  return (state, record['meta']), ''


def _read_record(path: pathlib.Path) -> tuple[Record | None, str]:
  args = ocp.args.Composite(record=ocp.args.JsonRestore())
  try:
    with _checkpointer() as checkpointer:
      record = checkpointer.restore(path, args=args)['record']
    if record['digest'] == _seal(record)['digest']:
      return record, ''
  except (ValueError, KeyError, TypeError, OSError) as error:
    return None, _first_line(error)
  return None, 'its record is not the one that was saved'


def _first_line(error: BaseException) -> str:
  return f'{type(error).__name__}: {error!s}'.splitlines()[0][:250]


def _seal(record: Record) -> Record:
  """The record with the digest of its own text added."""
  # Through JSON and back, so that a tuple equals the list that it comes back as.
  body = json.loads(json.dumps({key: record[key] for key in ('meta', 'leaves')}))
  text = json.dumps(body, sort_keys=True)
  return {**body, 'digest': hashlib.sha256(text.encode()).hexdigest()}


def _check_structure(path: pathlib.Path, saved: Record, target) -> None:
  expected = {name: _form(leaf) for name, leaf in _leaves(target).items()}
  for name in dict.fromkeys([*expected, *(saved if isinstance(target, State) else ())]):
    there = _words(saved.get(name))
    due = _words(expected.get(name))
    if there != due:
      raise InputError(
        f'Checkpoint {path} does not fit this run: {name} is {there} in the '
        f'checkpoint, and {due} here. Use the config that wrote it, or a new workdir.'
      )


def _words(form: Record | None) -> str:
  return f'{form["dtype"]}{form["shape"]}' if form else 'absent'


def _form(leaf) -> Record:
  return {'dtype': str(leaf.dtype), 'shape': list(leaf.shape)}


def _describe(state) -> Record:
  return {
    name: {**_form(leaf), 'digest': _digest(leaf)}
    for name, leaf in _leaves(state).items()
  }


def _leaves(tree) -> dict[str, Any]:
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator='/'): x for p, x in paths}


def _digest(leaf) -> str:
  """sha256 of a leaf's bytes, in C order whatever its sharding."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if isinstance(leaf, jax.Array):
    # An array keeps the host copy once it is made. A second array over the same
    # buffers dies at return and its copy with it: one leaf is held, not the state.
    shards = [shard.data for shard in leaf.addressable_shards]
    leaf = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
  return hashlib.sha256(
    np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
  ).hexdigest()


def _abstract(target):
  """The target as shapes with shardings, so that the saved devices do not matter."""
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def abstract(leaf):
    placed = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    sharding = (leaf.sharding if placed else None) or here
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(abstract, target)
