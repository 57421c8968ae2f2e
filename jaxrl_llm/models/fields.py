"""Typed reading of Hugging Face's `config.json`; every mistake names file and key."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from jaxrl_llm.models.config import Rope
from jaxrl_llm.types import InputError

# What each kind of RoPE scaling must say, under their names.
SCALING = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
  'yarn': ('factor',),
  'longrope': ('short_factor',),
}
# All keys of a description of RoPE. Another could change what is to be computed.
ROPE_KEYS = {
  *('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'finetuned'),
  *(key for keys in SCALING.values() for key in keys),
  *('beta_fast', 'beta_slow', 'attention_factor', 'mscale', 'mscale_all_dim'),
  *('truncate', 'long_factor'),
}


@dataclasses.dataclass(frozen=True)
class Fields:
  """The keys of a file. One that is absent may have a default in `defaults`.

  One that is null, or absent without such a default, has that of the method's call.
  """

  values: dict[str, Any]
  where: Path | str
  keys: dict[str, str] = dataclasses.field(default_factory=dict)  # Name -> theirs.
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)

  def get(self, key: str, default=None):
    value = self.values.get(self.keys.get(key, key), self.defaults.get(key))
    return default if value is None else value

  def number(self, key: str, default: int | None = None, *, lowest: int = 1) -> int:
    value = self.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
      raise self.wrong(key, value, f'an integer of at least {lowest}')
    return value

  def real(self, key: str, default: float | None = None) -> float:
    """A number above 0; a default of 0 may stand for 'none'."""
    value = self.get(key, default)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits or not (value > 0 or value == default == 0):
      raise self.wrong(key, value, 'a number above 0')
    return float(value)

  def flag(self, key: str, default: bool = False) -> bool:
    value = self.get(key, default)
    if not isinstance(value, bool):
      raise self.wrong(key, value, 'true or false')
    return value

  def list(self, key: str, default: list) -> list:
    """One entry per layer."""
    value = self.get(key, default)
    if not isinstance(value, list) or len(value) < len(self.layers()):
      raise self.wrong(key, value, 'a list with an entry for each layer')
    return value

  def layers(self) -> range:
    return range(self.number('num_hidden_layers'))

  def windows(self, *, everywhere: bool = False, default=None) -> tuple[int, ...]:
    """Positions each layer sees, 0 for all: `layer_types` or `default` say which."""
    if self.get('sliding_window') is None:
      return ()
    width = self.number('sliding_window')
    if everywhere:
      return (width,) * len(self.layers())
    kinds = self.list('layer_types', default or ['full_attention'] * len(self.layers()))
    if unknown := set(kinds) - {'full_attention', 'sliding_attention'}:
      raise self.wrong('layer_types', sorted(unknown)[0], 'full or sliding attention')
    windows = tuple(width if kind == 'sliding_attention' else 0 for kind in kinds)
    return windows if any(windows) else ()

  def rope(self, *, default: float = 10000.0, kind: str = '') -> Rope:
    """transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling.

    `kind` is the kind of layer where the two differ (Gemma 3).
    """
    local = kind == 'sliding_attention'
    base = self.real('rope_local_base_freq' if local else 'rope_theta', default)
    keys = ('rope_parameters',) if local else ('rope_scaling', 'rope_parameters')
    key = next((key for key in keys if self.get(key)), keys[-1])
    said = self.get(key, {})
    if kind and key == 'rope_parameters' and isinstance(said, dict):
      said = said.get(kind) or {}
    if not isinstance(said, dict):
      raise self.wrong(key, said, 'an object')
    where = f'{self.where}: {key}'
    if unknown := set(said) - ROPE_KEYS:
      raise InputError(
        f'{where}: {min(unknown)} is unknown to this decoder. Choose another model.'
      )
    return scaled(Fields(said, where, defaults={'truncate': True}), base, self)

  def rotary_share(self) -> float:
    """The share of a head's dimensions that turn."""
    inner = self.get('rope_parameters', {})
    share = inner.get('partial_rotary_factor') if isinstance(inner, dict) else None
    return self.real('partial_rotary_factor', 1.0) if share is None else float(share)

  def wrong(self, key: str, value, due: str) -> InputError:
    return InputError(f'{self.where}: {key} is {value!r}; {due} is due.')


def scaled(rope: Fields, base: float, config: Fields) -> Rope:
  """A `Rope` from the keys that transformers gives each kind of scaling."""
  base = rope.real('rope_theta', base)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  kind = {'su': 'longrope'}.get(kind, kind)
  if kind not in SCALING:
    raise rope.wrong('rope_type', kind, f'one of {", ".join(SCALING)}')
  if missing := [key for key in SCALING[kind] if rope.get(key) is None]:
    raise InputError(f'{rope.where} of type {kind} lacks {", ".join(missing)}.')
  kind = {'dynamic': 'default'}.get(kind, kind)  # It differs past the window only.
  window = config.number('max_position_embeddings', 2048)
  # transformers lets the file's own go before.
  key = 'original_max_position_embeddings'
  original = config.number(key, rope.number(key, window))
  factor = rope.real('factor', window / original)
  yarn = kind == 'yarn'
  return Rope(
    base=base,
    kind=kind,
    factor=factor,
    low=rope.real('beta_slow' if yarn else 'low_freq_factor', 1.0),
    high=rope.real('beta_fast' if yarn else 'high_freq_factor', 32.0 if yarn else 4.0),
    original=original if kind != 'default' else 0,
    divisors=tuple(map(float, rope.get('short_factor', ()))),
    rounded=rope.flag('truncate'),
    gain=gain(rope, kind, factor, original),
  )


def gain(rope: Fields, kind: str, factor: float, original: int) -> float:
  """What scaling multiplies sine and cosine by, unless the file says otherwise."""
  if kind not in ('yarn', 'longrope'):
    return 1.0
  derived = 1.0
  if factor > 1 and kind == 'yarn':
    grown = lambda scale: 0.1 * scale * math.log(factor) + 1.0
    above, below = rope.real('mscale', 0.0), rope.real('mscale_all_dim', 0.0)
    derived = grown(above) / grown(below) if above and below else grown(1.0)
  elif factor > 1:
    derived = math.sqrt(1 + math.log(factor) / math.log(original))
  return rope.real('attention_factor', derived)


def read_json(path: Path) -> dict[str, Any]:
  """A file's JSON object; raises InputError where there is none."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise InputError(f'{path} is not a readable JSON file: {e}') from e
  if not isinstance(content, dict):
    raise InputError(f'{path} holds no JSON object.')
  return content
