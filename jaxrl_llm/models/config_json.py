"""Hugging Face's `config.json`: to `DecoderConfig`, and back as it was read."""

import copy
import difflib
import re
from pathlib import Path
from typing import Any

from jaxrl_llm.models import endings
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.families import FAMILIES
from jaxrl_llm.models.fields import Fields
from jaxrl_llm.types import InputError


def decoder(values: dict[str, Any], where: Path | str) -> DecoderConfig:
  """The decoder that a `config.json` describes.

  Raises:
    InputError: the family is unknown, or a key asks for what the decoder lacks.
  """
  kind = values.get('model_type')
  if kind not in FAMILIES:
    near = difflib.get_close_matches(str(kind), FAMILIES, 1)
    hint = f' The nearest is {near[0]!r}.' if near else ''
    raise InputError(
      f'{where}: model_type is {kind!r}; there are {", ".join(FAMILIES)}.{hint}'
    )
  family = FAMILIES[kind]
  for key, value in {'quantization_config': None, **family.only}.items():
    allowed = value if isinstance(value, tuple) else (value,)
    if values.get(key) is not None and values[key] not in allowed:
      raise InputError(
        f'{where}: {key} is {values[key]!r}; this decoder computes '
        f'{" and ".join(map(repr, allowed))} only. Choose another model.'
      )
  fields = Fields(values, where, family.keys, family.defaults)
  options = family.options(fields)
  return checked(DecoderConfig(**(common(fields, options) | options)), where)


def common(f: Fields, options: dict[str, Any]) -> dict[str, Any]:
  """What nearly every family says alike; `options` go before."""
  width, heads = f.number('hidden_size'), f.number('num_attention_heads')
  kept = lambda key, read: {} if key in options else {key: read()}
  rope = options['rope']
  # Past the pre-trained window every frequency changes at once; we stay inside it.
  inside = rope is not None and rope.kind == 'longrope'
  window = rope.original if inside else f.number('max_position_embeddings', 2048)
  return {
    'vocab': f.number('vocab_size'),
    'width': width,
    'layers': f.number('num_hidden_layers'),
    'heads': heads,
    'kv_heads': f.number('num_key_value_heads', heads),
    'tied': f.flag('tie_word_embeddings'),
    'max_positions': window,
    **kept('mlp_width', lambda: f.number('intermediate_size')),
    **kept('head_dim', lambda: f.number('head_dim', width // heads)),
    **kept('norm_eps', lambda: f.real('rms_norm_eps', 1e-6)),
  }


def checked(config: DecoderConfig, where) -> DecoderConfig:
  """The same config, if its sizes fit together; raises InputError otherwise."""
  if config.heads % config.kv_heads:
    raise InputError(
      f'{where}: {config.heads} attention heads are not a multiple of '
      f'{config.kv_heads} key-value heads (num_key_value_heads).'
    )
  rotary = config.rotary or config.head_dim
  if config.rope is not None and rotary % 2:
    raise InputError(
      f'{where}: head_dim is {config.head_dim}, of which {rotary} turn; rotary '
      'embeddings need an even number.'
    )
  if config.rope is not None and len(config.rope.divisors) not in (0, rotary // 2):
    raise InputError(
      f'{where}: short_factor has {len(config.rope.divisors)} numbers; {rotary // 2} '
      'are due, half of the dimensions that turn.'
    )
  return config


def llama(config: DecoderConfig) -> dict[str, Any]:
  """A `config.json` for a plain Llama that came without one (GGUF, tiny)."""
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
    'hidden_act': 'silu',
    'rope_theta': config.rope.base,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope.base},
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied,
    'max_position_embeddings': config.max_positions,
  }


def stored(values: dict[str, Any], tokenizer=None) -> dict[str, Any]:
  """What an export's `config.json` says: float32, and the tokenizer's special ids."""
  ids = {} if tokenizer is None else special_ids(tokenizer)
  kept = {k: v for k, v in values.items() if k not in ('dtype', 'torch_dtype')}
  return kept | {'torch_dtype': 'float32'} | ids


def classifier(values: dict[str, Any], scores: int) -> dict[str, Any]:
  """The same decoder as a sequence classifier of so many scores."""
  speaks = values.get('architectures') or []
  stems = [re.split('LMHeadModel|For[A-Z]', name)[0] for name in speaks]
  labels = {str(i): f'LABEL_{i}' for i in range(scores)}
  return values | {
    'architectures': [f'{stem}ForSequenceClassification' for stem in stems],
    'id2label': labels,
    'label2id': {label: int(i) for i, label in labels.items()},
  }


def padded(tokenizer):
  """A copy that pads with no token that ends a completion: transformers' classifiers
  read the last token that is no padding, and ours the one that ends the completion.
  """
  found, ends = copy.deepcopy(tokenizer), endings.stop_ids(tokenizer)
  free = [
    token
    for token in (found.pad_token, found.unk_token, found.bos_token)
    if token is not None and found.convert_tokens_to_ids(token) not in ends
  ]
  if not free:
    raise InputError(
      'The tokenizer has no token to pad with but those that end a completion '
      '(pad_token, unk_token, bos_token). Give it another: tokenizer.pad_token = ...'
    )
  found.pad_token = free[0]
  return found


def special_ids(tokenizer) -> dict[str, int | list[int] | None]:
  """Ids as transformers' files name them; all that end a completion are EOS there."""
  first, *others = endings.stop_ids(tokenizer)
  return {
    'bos_token_id': tokenizer.bos_token_id,
    'eos_token_id': [first, *others] if others else first,
    'pad_token_id': tokenizer.pad_token_id,
  }
