"""Low-rank adapters (config.Lora): a tree of their own, and PEFT's files.

The adapters of layers/q are layers/q_lora_a [L, in, r] and layers/q_lora_b
[L, r, out]; laid over the base (forward.lay) they make a decoder's tree with lora.
"""

import json
import re
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxrl_llm.models import fields, weights
from jaxrl_llm.models.config import DecoderConfig, Lora
from jaxrl_llm.models.families import FAMILIES
from jaxrl_llm.models.names import Names
from jaxrl_llm.types import Array, InputError, Params

A, B = '_lora_a', '_lora_b'
CONFIG, FILE = 'adapter_config.json', 'adapter_model.safetensors'
# Keys of adapter_config.json and what they may be; the first is what absence means.
ALLOWED = {
  'peft_type': ('LORA',),
  'bias': ('none',),
  # Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base as well.
  'init_lora_weights': (True, False, None, 'gaussian', 'eva', 'orthogonal'),
}
# Read here, seen in the tensors, or of training alone. All others must say nothing.
KNOWN = {
  *ALLOWED,
  *('r', 'lora_alpha', 'base_model_name_or_path', 'target_modules', 'exclude_modules'),
  *('fan_in_fan_out', 'layers_to_transform', 'layers_pattern', 'task_type'),
  *('lora_dropout', 'inference_mode', 'auto_mapping', 'peft_version', 'eva_config'),
  *('megatron_core', 'qalora_group_size', 'ensure_weight_tying'),
}
PREFIX = 'base_model.model.'
MERGE = 'Merge the adapters into their base with PEFT, and load that model.'


def targets(config: DecoderConfig, lora: Lora) -> list[str]:
  """The matrices that get adapters. Raises InputError if there are none."""
  found = weights.shapes(config, lora)
  names = [p[-1].removesuffix(A) for p in found if p[-1].endswith(A)]
  if not names:
    dense = [
      p[-1] for p, shape in found.items() if p[0] == 'layers' and len(shape) == 3
    ]
    raise InputError(
      f'config.model.lora.targets={lora.targets!r} matches no matrix; there are '
      f'{", ".join(sorted(dense))}.'
    )
  return names


def report(config: DecoderConfig, lora: Lora | None) -> list[str]:
  """A line for a reader on the matrices without adapters, if there are any."""
  if lora is None:
    return []
  adapted = targets(config, lora)
  axes = {p[-1]: len(s) for p, s in weights.shapes(config).items() if p[0] == 'layers'}
  plain, experts = (
    ', '.join(sorted(x for x in axes if axes[x] == n and x not in adapted))
    for n in (3, 4)
  )
  left = f'; not {plain}' if plain else ''
  left += f'; not the experts ({experts}), which cannot be' if experts else ''
  return [f'LoRA adapts {", ".join(sorted(adapted))}{left}.'] if left else []


def init(config: DecoderConfig, lora: Lora, key: Array | None = None) -> Params:
  """Fresh adapters: a uniform within 1 / sqrt(in), b zero, so that nothing changes."""
  key = jax.random.key(0) if key is None else key
  tree = {}
  shapes = weights.shapes(config, lora)
  for i, name in enumerate(targets(config, lora)):
    shape = shapes['layers', name + A]
    spread = shape[1] ** -0.5
    draw = jax.random.fold_in(key, i)
    tree[name + A] = jax.random.uniform(draw, shape, minval=-spread, maxval=spread)
    tree[name + B] = jnp.zeros(shapes['layers', name + B])
  return {'layers': tree}


def merge(base: Params, adapters: Params, lora: Lora, *, sign: float = 1.0) -> Params:
  """W + sign (alpha / rank) a b for every adapted matrix; sign -1 takes them off."""
  layers, extra = dict(base['layers']), adapters['layers']
  for name in sorted(n.removesuffix(A) for n in extra if n.endswith(A)):
    change = jnp.einsum('lir,lro->lio', extra[name + A], extra[name + B])
    layers[name] = layers[name] + sign * lora.alpha / lora.rank * change
  return base | {'layers': layers}


# ---- PEFT's files --------------------------------------------------------------------


def save(
  folder: str | Path,
  values: dict,
  adapters: Params,
  lora: Lora,
  *,
  base: str,
  tokenizer=None,
) -> None:
  """Writes a folder that `peft.PeftModel.from_pretrained` loads over the base.

  Args:
    values: the base's `config.json`.
    base: its name or path, for PEFT to find it.
    tokenizer: of transformers, with the chat template of the training; written beside.

  Raises:
    InputError: the folder is there already; an adapted matrix is part of a fused
      tensor, which PEFT adapts as a whole.
  """
  flat = flax.traverse_util.flatten_dict(adapters)
  names = sorted(p[-1].removesuffix(A) for p in flat if p[-1].endswith(A))
  modules = _modules(values['model_type'], names)
  tensors = {}
  for name, row in modules.items():
    for suffix, theirs in ((A, 'lora_A'), (B, 'lora_B')):
      leaf = np.asarray(flat['layers', name + suffix], np.float32)
      for layer, x in enumerate(leaf):
        key = f'{PREFIX}{_module(row).format(layer)}.{theirs}.weight'
        tensors[key] = np.ascontiguousarray(x.T)
  content = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': values['model_type'] == 'gpt2',
    'inference_mode': True,
    'target_modules': sorted(
      {_target(values['model_type'], _module(row)) for row in modules.values()}
    ),
  }
  with weights.appearing(folder) as part:
    (part / CONFIG).write_text(json.dumps(content, indent=2) + '\n')
    safetensors.numpy.save_file(tensors, part / FILE, metadata={'format': 'pt'})
    if tokenizer is not None:
      tokenizer.save_pretrained(part)


def load(
  folder: str | Path, values: dict, config: DecoderConfig
) -> tuple[Lora, Params]:
  """PEFT's adapters for a base with this `config.json`.

  Raises:
    InputError: another kind of adapter; a tensor is missing, unknown or of another
      shape.
  """
  folder = Path(folder)
  said = adapter_config(folder / CONFIG)
  try:
    tensors = safetensors.numpy.load_file(folder / FILE)
  except (OSError, safetensors.SafetensorError) as e:
    raise InputError(f'{folder / FILE} is not a readable safetensors file: {e}') from e
  every = _modules(values['model_type'], None)
  keys = lambda name, theirs: [
    f'{PREFIX}{_module(every[name]).format(i)}.{theirs}.weight'
    for i in range(config.layers)
  ]
  names = [n for n in every if any(k in tensors for k in keys(n, 'lora_A'))]
  lora = Lora(said['r'], said['lora_alpha'], '|'.join(map(re.escape, names)))
  shapes, tree = weights.shapes(config, lora), {}
  for name in names:
    for suffix, theirs in ((A, 'lora_A'), (B, 'lora_B')):
      due = shapes['layers', name + suffix][1:]
      found = _stacked(tensors, keys(name, theirs), due, folder / FILE)
      tree[name + suffix] = found
  if tensors:
    raise InputError(
      f'{folder / FILE} adapts {min(tensors)}, which this decoder cannot.'
    )
  return lora, {'layers': tree}


def _stacked(tensors: dict, keys: list[str], due: tuple, where: Path) -> Array:
  """The tensors of all layers, taken out, each turned to the shape that is `due`."""
  for key in keys:
    if key not in tensors:
      raise InputError(
        f'{where}: {key} is absent. Adapters of some layers alone '
        '(layers_to_transform, say) are not supported.'
      )
    if (found := tensors[key].shape) != due[::-1]:
      raise InputError(f'{where}: {key} is {found}; {due[::-1]} is due.')
  return jnp.asarray(np.stack([tensors.pop(key).T for key in keys]), jnp.float32)


def adapter_config(path: Path) -> dict:
  """PEFT's description of adapters of the one kind that loads."""
  said = fields.read_json(path)
  for key, values in ALLOWED.items():
    if said.get(key, values[0]) not in values:
      raise InputError(
        f'{path}: {key} is {said[key]!r}; {", ".join(map(repr, values))} load. {MERGE}'
      )
  for key in ('r', 'lora_alpha'):
    if isinstance(said.get(key), bool) or not isinstance(said.get(key), (int, float)):
      raise InputError(f'{path}: {key} is {said.get(key)!r}; a number is due.')
  for key in sorted(said.keys() - KNOWN):
    if said[key]:
      raise InputError(
        f'{path}: {key} is {said[key]!r}, which is not supported. {MERGE}'
      )
  return said


def _module(row: Names) -> str:
  return row.hf.removesuffix('.weight')


def _target(family: str, module: str) -> str:
  """The end of a module's name that no other module of a layer has."""
  ends = lambda name, count: name.split('.')[-count:]
  every = {_module(row) for row in FAMILIES[family].names if '{}' in row.hf}
  alike = [name for name in every if ends(name, 1) == ends(module, 1)]
  return '.'.join(ends(module, 1 if len(alike) == 1 else 2))


def _modules(family: str, names: list[str] | None) -> dict[str, Names]:
  """The stored matrix of each leaf; one that shares its tensor is refused if named."""
  rows = [r for r in FAMILIES[family].names if r.path[0] == 'layers']
  count = [row.hf for row in rows]
  alone = {
    row.path[1]: row
    for row in rows
    if count.count(row.hf) == 1
    and row.hf.endswith('.weight')
    and 'expert' not in row.hf
  }
  if names is None:
    return alone
  if fused := [name for name in names if name not in alone]:
    raise InputError(
      f'{family} stores {", ".join(fused)} in one tensor, which PEFT adapts as one. '
      'Export the merged model instead.'
    )
  return {name: alone[name] for name in names}
