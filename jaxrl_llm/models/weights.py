"""Hugging Face folders in and out, one tensor at a time."""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm import sharding
from jaxrl_llm.models import config_json, fields
from jaxrl_llm.models.config import DecoderConfig, Lora
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.models.families import FAMILIES
from jaxrl_llm.models.names import SCORES, Names
from jaxrl_llm.types import InputError, Params

FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
HEAD, BLOCK = 'lm_head.weight', 4096  # Rows that are compared at once.
DTYPES = ('F32', 'F16', 'BF16')  # What safetensors calls the ones we widen to float32.
# Buffers in old checkpoints: they follow from the config.
BUFFERS = ('.rotary_emb.inv_freq', '.attn.bias', '.attn.masked_bias')
SHARD = 5 * 10**9  # Bytes of an exported file, at most, unless one tensor is larger.

TreePath = tuple[str, ...]
Shape = tuple[int, ...]


class Slot(NamedTuple):
  """Where a stored tensor, or its share of the last axis, goes."""

  path: TreePath
  index: tuple[int, ...]  # Layer, expert; () for a leaf of its own.
  shape: Shape  # In our orientation.
  transpose: bool


class View(NamedTuple):
  """A tensor in a file, unread."""

  file: Path
  name: str
  dtype: str
  shape: Shape


class Stored(NamedTuple):
  """A model on disk: everything but its numbers has been read and checked."""

  config: DecoderConfig
  fields: dict[str, Any]  # Its config.json.
  due: dict[str, tuple[Slot, ...]]
  read: Callable[[str], np.ndarray]  # A tensor by its name.
  scores: int = 0  # Of a sequence classifier, how many it gives.


@functools.cache
def shapes(
  config: DecoderConfig, lora: Lora | None = None, scores: int = 0
) -> dict[TreePath, Shape]:
  """The shape of every parameter by its path in our tree."""
  one = jnp.zeros((1, 1, 1), jnp.int32)
  init = Decoder(config, lora=lora, scores=scores).init
  mask = jnp.ones((1, 1, 1, 1), bool)
  tree = jax.eval_shape(init, jax.random.key(0), one, one, mask)['params']
  flat = flax.traverse_util.flatten_dict(tree)
  return {path: x.shape for path, x in flat.items()}


def slots(
  config: DecoderConfig, names: tuple[Names, ...], scores: int = 0
) -> dict[str, tuple[Slot, ...]]:
  """Every tensor due for `config`, by its name in the file."""
  due: dict[str, tuple[Slot, ...]] = {}
  tree = shapes(config, scores=scores)
  for row in names:
    if row.path not in tree:
      continue
    lead = int('{}' in row.hf) + int('{expert}' in row.hf)
    shape = tree[row.path]
    for index in np.ndindex(shape[:lead]):
      name = row.hf.format(*index[:1], expert=index[-1] if index else None)
      slot = Slot(row.path, index, shape[lead:], row.transpose)
      due[name] = (*due.get(name, ()), slot)
  return due


def stored_shape(parts: tuple[Slot, ...]) -> Shape:
  """The shape in the file of a tensor that holds these parts side by side."""
  shape = (*parts[0].shape[:-1], sum(p.shape[-1] for p in parts))
  return shape[::-1] if parts[0].transpose else shape


def check(
  due: Mapping[str, tuple[Slot, ...]], found: Mapping[str, Shape], where
) -> None:
  """Raises InputError where a tensor is missing, is not ours, or has another shape."""
  for text, names in (
    ('has no tensor', due.keys() - found.keys()),
    ('has a tensor that a decoder of its config lacks:', found.keys() - due.keys()),
  ):
    if names:
      shown = ', '.join(sorted(names)[:3]) + (', ...' if len(names) > 3 else '')
      raise InputError(
        f'{where} {text} {shown} ({len(names)} in all). Check that the config '
        'describes this file (number of layers, tied head) and that it is complete.'
      )
  for name, parts in due.items():
    if tuple(found[name]) != stored_shape(parts):
      raise InputError(
        f'{where}: {name} has shape {tuple(found[name])}; its config asks for '
        f'{stored_shape(parts)}. Check that config and weights are of the same model.'
      )


def read(stored: Stored, place=lambda path, shape: None) -> Params:
  """The float32 parameters on the devices; the host holds one stored tensor at a time.

  Args:
    stored: an open model.
    place: path ('layers/q') and shape of a leaf to its sharding; None is the default
      device.
  """
  tree, leaves = shapes(stored.config, scores=stored.scores), {}

  def put(x, parts):  # Its locals are gone before the next tensor is read.
    x = x.T if parts[0].transpose else x
    ends = np.cumsum([p.shape[-1] for p in parts])[:-1]
    for slot, piece in zip(parts, np.split(x, ends, -1), strict=True):
      if slot.path not in leaves:
        shape = tree[slot.path]
        leaves[slot.path] = sharding.zeros(shape, place('/'.join(slot.path), shape))
      leaf = leaves.pop(slot.path)  # The step below takes its buffer, and widens.
      leaf = sharding.write(leaf, piece, slot.index)
      leaves[slot.path] = jax.block_until_ready(leaf)  # Or tensors queue up.

  for name, parts in stored.due.items():
    put(stored.read(name), parts)
  return flax.traverse_util.unflatten_dict({path: leaves[path] for path in tree})


# ---- Folders -------------------------------------------------------------------------


def open_folder(folder: str | Path) -> Stored:
  """The decoder in a Hugging Face folder, its tensors unread.

  Reads `config.json`, and the heads of `model.safetensors` or of the shards that
  `model.safetensors.index.json` names. float32, float16 and bfloat16 load.

  Raises:
    InputError: the family is unknown, or the files do not fit together.
  """
  folder = Path(folder)
  values = fields.read_json(folder / 'config.json')
  config = config_json.decoder(values, folder / 'config.json')
  stored = _views(folder)
  views = _named(stored, config, values['model_type'])
  for name, view in views.items():
    if view.dtype not in DTYPES:
      raise InputError(
        f'{folder}: {name} is {view.dtype}; this decoder reads '
        f'{", ".join(DTYPES)}. Convert the checkpoint to one of them.'
      )
  scores = views[SCORES.hf].shape[0] if SCORES.hf in views else 0
  due = slots(config, FAMILIES[values['model_type']].names, scores)
  check(due, {name: view.shape for name, view in views.items()}, folder)
  if config.tied and HEAD in stored and not scores:
    embed = next(name for name in due if due[name][0].path == ('embed',))
    _check_head(stored[HEAD], views[embed], folder)
  return Stored(config, values, due, lambda name: _numbers(views[name]), scores)


def in_memory(values: dict[str, Any], params: Params) -> Stored:
  """A tree in memory as if it lay in the files of its `config.json`."""
  config = config_json.decoder(values, 'config')
  due = slots(config, FAMILIES[values['model_type']].names)
  _check_params(params, config)
  flat = flax.traverse_util.flatten_dict(params)
  return Stored(config, values, due, lambda name: _tensor(flat, due[name]))


def load(folder: str | Path) -> tuple[DecoderConfig, Params]:
  """The decoder in a Hugging Face folder and its parameters, on the default device."""
  stored = open_folder(folder)
  return stored.config, read(stored)


def _named(
  views: dict[str, View], config: DecoderConfig, family: str
) -> dict[str, View]:
  """The tensors under the names of the family's table, without what is left out."""
  if family == 'gpt2' and not any(name.startswith('transformer.') for name in views):
    # The first GPT-2 files hold the inner model alone.
    views = {f'transformer.{name}': view for name, view in views.items()}
  out = {name for name in views if name.endswith(BUFFERS)}
  out |= {HEAD} if config.tied else set()
  return {name: view for name, view in views.items() if name not in out}


def _check_head(head: View, embed: View, folder: Path) -> None:
  """Refuses a head of its own where the config says that it is the embedding."""
  with _open(head.file) as one, _open(embed.file) as other:
    a, b = one.get_slice(head.name), other.get_slice(embed.name)
    size = head.shape[0]
    turns = (slice(i, min(i + BLOCK, size)) for i in range(0, size, BLOCK))
    if head.shape == embed.shape and all(np.array_equal(a[t], b[t]) for t in turns):
      return
  raise InputError(
    f'{folder}: {HEAD} is another than {embed.name}, and config.json says that they '
    'are one. Set its tie_word_embeddings to false, or remove the tensor.'
  )


def _views(folder: Path) -> dict[str, View]:
  """A view of every tensor in a folder's safetensors, by its name in the file."""
  at = _index(folder) if not (folder / FILE).exists() else None
  views = {}
  for file in sorted({FILE} if at is None else set(at.values())):
    found = _heads(folder / file)
    names = found.keys()
    listed = names if at is None else {name for name in at if at[name] == file}
    if names != listed:
      raise InputError(
        f'{folder / INDEX} and {file} disagree about {min(names ^ listed)}. Download '
        'or save the model again.'
      )
    views |= found
  return views


def _heads(file: Path) -> dict[str, View]:
  """A view of every tensor in one file."""
  with _open(file) as tensors:
    slices = {name: tensors.get_slice(name) for name in list(tensors.keys())}
    return {
      name: View(file, name, x.get_dtype(), tuple(x.get_shape()))
      for name, x in slices.items()
    }


def _numbers(view: View) -> np.ndarray:
  """A tensor's copy. The file is opened for it alone: pages of one that stays open
  would stay in memory beside the model.
  """
  with _open(view.file) as tensors:
    return tensors.get_tensor(view.name)


def _index(folder: Path) -> dict[str, str]:
  """The file of each tensor, all inside the folder."""
  if not (folder / INDEX).exists():
    raise InputError(
      f'{folder} has neither {FILE} nor {INDEX}. Save the model in the safetensors '
      'format.'
    )
  files = fields.read_json(folder / INDEX).get('weight_map')
  if not isinstance(files, dict) or not files:
    raise InputError(f'{folder / INDEX} has no weight_map from tensors to files.')
  for file in files.values():
    plain = isinstance(file, str) and PurePosixPath(file).name == file != '..'
    if not plain or not file:
      raise InputError(
        f'{folder / INDEX} names {file!r}, which is no file name in the folder itself.'
      )
  return files


def _open(path: Path) -> Any:
  try:
    return safetensors.safe_open(path, 'numpy')
  except (OSError, safetensors.SafetensorError) as e:
    raise InputError(f'{path} is not a readable safetensors file: {e}') from e


def save(
  folder: str | Path,
  values: dict[str, Any],
  params: Params,
  *,
  tokenizer=None,
  shard_bytes: int = SHARD,
) -> None:
  """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads, in float32.

  With a head of scores `AutoModelForSequenceClassification` does. The folder appears
  whole or not at all. The host holds one file's tensors at a time.

  Args:
    values: the `config.json` of the model that was loaded (`Stored.fields`).
    params: our tree, on any devices.
    tokenizer: of transformers; its files and special ids are written too, and all ids
      that end a completion as EOS, for `generate` to stop where ours does.
    shard_bytes: a larger model is split into files with an index.

  Raises:
    InputError: the folder is there already, `params` is not of the config's shape, or
      the tokenizer has no EOS.
  """
  config = config_json.decoder(values, 'config')
  head = np.shape(params.get('scores', ()))
  scores = head[1] if len(head) == 2 else 0
  due = slots(config, FAMILIES[values['model_type']].names, scores)
  _check_params(params, config, scores)
  if scores:
    values = config_json.classifier(values, scores)
    tokenizer = None if tokenizer is None else config_json.padded(tokenizer)
  with appearing(folder) as part:
    content = config_json.stored(values, tokenizer)
    (part / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    _save_tensors(part, due, params, shard_bytes)
    if tokenizer is not None:
      tokenizer.save_pretrained(part)
    if tokenizer is not None and not scores:
      # transformers generates by this file, not by config.json.
      ids = json.dumps(config_json.special_ids(tokenizer), indent=2)
      (part / 'generation_config.json').write_text(ids + '\n')


@contextlib.contextmanager
def appearing(folder: str | Path):
  """A folder to write into that takes its name, new, only when all has gone well."""
  folder = Path(folder).absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f'{folder} exists already. Name another folder or remove it.')
  part = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
  part.mkdir(parents=True)
  try:
    yield part
    os.replace(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _save_tensors(folder: Path, due, params: Params, shard_bytes: int) -> None:
  flat = flax.traverse_util.flatten_dict(params)
  files: list[list[str]] = [[]]
  size = 0
  for name, parts in due.items():
    more = 4 * int(np.prod(stored_shape(parts)))
    if files[-1] and size + more > shard_bytes:
      files.append([])
      size = 0
    files[-1].append(name)
    size += more
  count, where = len(files), {}
  for i, names in enumerate(files, 1):
    file = FILE if count == 1 else f'model-{i:05d}-of-{count:05d}.safetensors'
    tensors = {name: _tensor(flat, due[name]) for name in names}
    # transformers 4 refuses a file without this note.
    safetensors.numpy.save_file(tensors, folder / file, metadata={'format': 'pt'})
    where |= dict.fromkeys(names, file)
  if count > 1:
    total = sum(4 * int(np.prod(stored_shape(parts))) for parts in due.values())
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def _tensor(flat, parts: tuple[Slot, ...]) -> np.ndarray:
  pieces = [np.asarray(flat[p.path][p.index], np.float32) for p in parts]
  x = np.concatenate(pieces, -1)
  # save_file writes the buffer as it lies: a transposed view would be scrambled.
  return np.ascontiguousarray(x.T if parts[0].transpose else x)


def _check_params(params: Params, config: DecoderConfig, scores: int = 0) -> None:
  flat, tree = flax.traverse_util.flatten_dict(params), shapes(config, scores=scores)
  for path in sorted(flat.keys() | tree.keys()):
    shape = tuple(flat[path].shape) if path in flat else None
    if shape != tree.get(path):
      raise InputError(
        f'Parameter {"/".join(path)} has shape {shape}; the config asks for '
        f'{tree.get(path)} (None: no such parameter).'
      )
