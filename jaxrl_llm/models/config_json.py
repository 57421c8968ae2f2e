"""Hugging Face's `config.json`, Llama family: to and from `DecoderConfig`."""

import json
from pathlib import Path
from typing import Any

from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.types import InputError

# Keys with one value that this decoder computes; an absent key has it.
ONLY = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'attention_dropout': 0.0,
  'quantization_config': None,
}


def read(path: Path) -> DecoderConfig:
  """The decoder that a `config.json` describes.

  Raises:
    InputError: the file is unreadable, or a key asks for what the decoder lacks.
  """
  fields = read_json(path)
  if fields.get('model_type') != 'llama':
    raise InputError(
      f"{path}: model_type is {fields.get('model_type')!r}; only 'llama' is supported."
    )
  for key, value in ONLY.items():
    if fields.get(key, value) != value:
      raise InputError(
        f'{path}: {key} is {fields[key]!r}; this decoder computes {value!r} only. '
        'Choose another model.'
      )
  return _config(fields, path)


def _config(fields: dict[str, Any], path: Path) -> DecoderConfig:
  number = lambda key, default=None: positive(fields, key, int, path, default)
  width, heads = number('hidden_size'), number('num_attention_heads')
  return checked(
    DecoderConfig(
      vocab=number('vocab_size'),
      width=width,
      layers=number('num_hidden_layers'),
      heads=heads,
      kv_heads=number('num_key_value_heads', heads),
      mlp_width=number('intermediate_size'),
      head_dim=number('head_dim', width // heads),
      rope_base=_rope_base(fields, path),
      norm_eps=positive(fields, 'rms_norm_eps', float, path, 1e-6),
      tied=_tied(fields, path),
      max_positions=number('max_position_embeddings', 2048),
    ),
    path,
  )


def _tied(fields, path) -> bool:
  value = fields.get('tie_word_embeddings', False)
  if not isinstance(value, bool):
    raise InputError(
      f'{path}: tie_word_embeddings is {value!r}; it must be true or false.'
    )
  return value


def _rope_base(fields, path) -> float:
  # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
  base = positive(fields, 'rope_theta', float, path, 10000.0)
  for key in ('rope_scaling', 'rope_parameters'):
    rope = fields.get(key) or {}
    if not isinstance(rope, dict):
      raise InputError(f'{path}: {key} is {rope!r}; it must be an object or null.')
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind != 'default' or rope.get('partial_rotary_factor', 1) != 1:
      raise InputError(
        f'{path}: {key} is {rope!r}; this decoder has unscaled rotary embeddings '
        'only. Choose another model.'
      )
    base = positive(rope, 'rope_theta', float, path, base)
  return base


def positive(fields, key: str, kind: type, where, default=None):
  """A field as `int` or `float`; `default` where it is absent or null.

  Raises:
    InputError: it is absent without a default, or is not a positive number.
  """
  value = default if fields.get(key) is None else fields[key]
  types = (int,) if kind is int else (int, float)
  if isinstance(value, bool) or not isinstance(value, types) or not value > 0:
    raise InputError(f'{where}: {key} is {value!r}; a positive {kind.__name__} is due.')
  return kind(value)


def checked(config: DecoderConfig, where) -> DecoderConfig:
  """The same config, if its sizes fit together; raises InputError otherwise."""
  if config.heads % config.kv_heads:
    raise InputError(
      f'{where}: {config.heads} attention heads are not a multiple of '
      f'{config.kv_heads} key-value heads (num_key_value_heads).'
    )
  if config.head_dim % 2:
    raise InputError(
      f'{where}: head_dim is {config.head_dim}; rotary embeddings need an even one.'
    )
  return config


def fields(config: DecoderConfig, tokenizer=None) -> dict[str, Any]:
  """What `config.json` says, for transformers 4 and 5; ids are the tokenizer's."""
  ids = (None, None, None)
  if tokenizer is not None:
    ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': config.vocab,
    'hidden_size': config.width,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'intermediate_size': config.mlp_width,
    'head_dim': config.head_dim,
    'rope_theta': config.rope_base,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_base},
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied,
    'max_position_embeddings': config.max_positions,
    **ONLY,
    'torch_dtype': 'float32',
    'bos_token_id': ids[0],
    'eos_token_id': ids[1],
    'pad_token_id': ids[2],
  }


def read_json(path: Path) -> dict[str, Any]:
  """A file's JSON object; raises InputError where there is none."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise InputError(f'{path} is not a readable JSON file: {e}') from e
  if not isinstance(content, dict):
    raise InputError(f'{path} holds no JSON object.')
  return content
