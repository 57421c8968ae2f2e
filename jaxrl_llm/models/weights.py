"""Hugging Face folders in and out: `config.json` and safetensors, Llama family."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import flax
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm.models import config_json
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.types import InputError, Params

FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = ('F32', 'F16', 'BF16')  # What safetensors calls the ones we widen to float32.


class Names(NamedTuple):
  """A tensor's path in our tree and its name elsewhere; {} stands for the layer."""

  path: tuple[str, ...]
  hf: str
  gguf: str
  transpose: bool  # They store [out, in], we store [in, out].


_HF, _GGUF = 'model.layers.{}.', 'blk.{}.'
TABLE = (
  Names(('embed',), 'model.embed_tokens.weight', 'token_embd.weight', False),
  Names(('final_norm',), 'model.norm.weight', 'output_norm.weight', False),
  Names(('head',), 'lm_head.weight', 'output.weight', True),
  *(
    Names(('layers', leaf), f'{_HF}{hf}.weight', f'{_GGUF}{gguf}.weight', transpose)
    for leaf, hf, gguf, transpose in (
      ('attn_norm', 'input_layernorm', 'attn_norm', False),
      ('q', 'self_attn.q_proj', 'attn_q', True),
      ('k', 'self_attn.k_proj', 'attn_k', True),
      ('v', 'self_attn.v_proj', 'attn_v', True),
      ('o', 'self_attn.o_proj', 'attn_output', True),
      ('mlp_norm', 'post_attention_layernorm', 'ffn_norm', False),
      ('gate', 'mlp.gate_proj', 'ffn_gate', True),
      ('up', 'mlp.up_proj', 'ffn_up', True),
      ('down', 'mlp.down_proj', 'ffn_down', True),
    )
  ),
)


class Slot(NamedTuple):
  """Where one stored tensor goes: a leaf of the tree, or one layer of it."""

  path: tuple[str, ...]
  layer: int | None
  shape: tuple[int, ...]  # As stored elsewhere.
  transpose: bool


def shapes(config: DecoderConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
  """The shape of every parameter by its path in our tree."""
  c = config
  query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
  layer = {
    'attn_norm': (c.width,),
    'q': (c.width, query),
    'k': (c.width, key),
    'v': (c.width, key),
    'o': (query, c.width),
    'mlp_norm': (c.width,),
    'gate': (c.width, c.mlp_width),
    'up': (c.width, c.mlp_width),
    'down': (c.mlp_width, c.width),
  }
  tree = {('embed',): (c.vocab, c.width), ('final_norm',): (c.width,)}
  if not c.tied:
    tree['head',] = (c.width, c.vocab)
  return tree | {('layers', k): (c.layers, *v) for k, v in layer.items()}


def slots(config: DecoderConfig, name: Callable[[Names], str]) -> dict[str, Slot]:
  """Every tensor due for `config`, by its name elsewhere (`name` picks the column)."""
  due, tree = {}, shapes(config)
  for row in TABLE:
    if row.path not in tree:
      continue
    stacked = row.path[0] == 'layers'
    shape = tree[row.path][1:] if stacked else tree[row.path]
    stored = shape[::-1] if row.transpose else shape
    for layer in range(config.layers) if stacked else (None,):
      full = name(row).format(layer)
      due[full] = Slot(row.path, layer, stored, row.transpose)
  return due


def fill(
  due: Mapping[str, Slot],
  found: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
  *,
  config: DecoderConfig,
  where: Path,
) -> Params:
  """The parameter tree, float32 NumPy, from tensors read one at a time.

  Args:
    due: the tensors that `config` asks for; found: the shapes of those in the file.
    read: a tensor by its name, in the shape of its slot.

  Raises:
    InputError: a tensor is missing, is not one of ours, or has another shape.
  """
  _compare(due, found, where)
  tree = {path: np.empty(shape, np.float32) for path, shape in shapes(config).items()}
  for name, slot in due.items():
    x = read(name)
    leaf = tree[slot.path]
    leaf[... if slot.layer is None else slot.layer] = x.T if slot.transpose else x
  return flax.traverse_util.unflatten_dict(tree)


def _compare(due, found, where):
  for text, names in (
    ('has no tensor', due.keys() - found.keys()),
    (
      'has a tensor that a Llama decoder of its config lacks:',
      found.keys() - due.keys(),
    ),
  ):
    if names:
      shown = ', '.join(sorted(names)[:3]) + (', ...' if len(names) > 3 else '')
      raise InputError(
        f'{where} {text} {shown} ({len(names)} in all). Check that the config '
        'describes this file (number of layers, tied head) and that it is complete.'
      )
  for name, slot in due.items():
    if tuple(found[name]) != slot.shape:
      raise InputError(
        f'{where}: {name} has shape {tuple(found[name])}; its config asks for '
        f'{slot.shape}. Check that config and weights are of the same model.'
      )


def load(folder: str | Path) -> tuple[DecoderConfig, Params]:
  """The decoder stored in a Hugging Face folder; parameters are float32 NumPy.

  Reads `config.json` and `model.safetensors`, or the shards that
  `model.safetensors.index.json` names. float32, float16 and bfloat16 load.

  Raises:
    InputError: the folder is not a Llama decoder, or its files do not fit together.
  """
  folder = Path(folder)
  config = config_json.read(folder / 'config.json')
  at = _index(folder) if not (folder / FILE).exists() else None
  files = sorted({FILE} if at is None else set(at.values()))
  opened = {file: _open(folder / file) for file in files}
  views = {}
  for file, tensors in opened.items():
    names = set(tensors.keys())
    listed = names if at is None else {name for name in at if at[name] == file}
    if names != listed:
      raise InputError(
        f'{folder / INDEX} and {file} disagree about {min(names ^ listed)}. Download '
        'or save the model again.'
      )
    # Old checkpoints carry rotary frequencies; they follow from the config.
    kept = {name for name in names if not name.endswith('.rotary_emb.inv_freq')}
    views |= {name: (tensors, tensors.get_slice(name)) for name in kept}
  return config, _read(folder, config, views)


def _read(folder, config, views):
  for name, (_, view) in views.items():
    if view.get_dtype() not in DTYPES:
      raise InputError(
        f'{folder}: {name} is {view.get_dtype()}; this decoder reads '
        f'{", ".join(DTYPES)}. Convert the checkpoint to one of them.'
      )
  found = {name: tuple(view.get_shape()) for name, (_, view) in views.items()}
  read = lambda name: views[name][0].get_tensor(name)
  due = slots(config, lambda row: row.hf)
  return fill(due, found, read, config=config, where=folder)


def _index(folder: Path) -> dict[str, str]:
  """The file of each tensor, all inside the folder."""
  if not (folder / INDEX).exists():
    raise InputError(
      f'{folder} has neither {FILE} nor {INDEX}. Save the model in the safetensors '
      'format.'
    )
  files = config_json.read_json(folder / INDEX).get('weight_map')
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
  folder: str | Path, config: DecoderConfig, params: Params, *, tokenizer=None
) -> None:
  """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads, in float32.

  The folder appears whole or not at all. With a Hugging Face `tokenizer`, its files
  and special token ids are written too.

  Raises:
    InputError: the folder is there already, or `params` is not of `config`'s shape.
  """
  folder = Path(folder).absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f'{folder} exists already. Name another folder or remove it.')
  tensors = _tensors(config, params)
  part = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
  part.mkdir(parents=True)
  try:
    fields = config_json.fields(config, tokenizer)
    (part / 'config.json').write_text(json.dumps(fields, indent=2) + '\n')
    # transformers 4 refuses a file without this note.
    safetensors.numpy.save_file(tensors, part / FILE, metadata={'format': 'pt'})
    if tokenizer is not None:
      tokenizer.save_pretrained(part)
    os.replace(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _tensors(config: DecoderConfig, params: Params) -> dict[str, np.ndarray]:
  flat, tree = flax.traverse_util.flatten_dict(params), shapes(config)
  for path in sorted(flat.keys() | tree.keys()):
    shape = tuple(flat[path].shape) if path in flat else None
    if shape != tree.get(path):
      raise InputError(
        f'Parameter {"/".join(path)} has shape {shape}; the config asks for '
        f'{tree.get(path)} (None: no such parameter).'
      )
  flat = {path: np.asarray(x, np.float32) for path, x in flat.items()}
  tensors = {}
  for name, slot in slots(config, lambda row: row.hf).items():
    x = flat[slot.path] if slot.layer is None else flat[slot.path][slot.layer]
    # save_file writes the buffer as it lies: a transposed view would be scrambled.
    tensors[name] = np.ascontiguousarray(x.T if slot.transpose else x)
  return tensors
