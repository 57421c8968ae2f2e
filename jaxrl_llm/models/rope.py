"""Rotary position embeddings: frequencies per layer, and the turning itself."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models.config import DecoderConfig, Rope
from jaxrl_llm.types import BGT, Array


class Turns(NamedTuple):
  """Sine and cosine of every angle, by kind of rotation: [N, B, G, T, rotary / 2]."""

  sin: Array
  cos: Array


def table(config: DecoderConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Each layer's kind [L] int32; of each kind frequencies [N, rotary / 2] and gain [N].

  A layer without position embedding has frequencies of zero: it turns nothing.
  """
  rotary = config.rotary or config.head_dim
  rows = []
  for layer in range(config.layers):
    windowed = bool(config.windows) and config.windows[layer] > 0
    rope = config.local_rope if windowed and config.local_rope else config.rope
    off = rope is None or layer in config.no_rope
    turning = np.zeros(rotary // 2) if off else frequencies(rope, rotary)
    rows.append([*turning, 1.0 if off else rope.gain])
  kinds, layers = np.unique(np.array(rows, np.float32), axis=0, return_inverse=True)
  return layers.reshape(-1).astype(np.int32), kinds[:, :-1], kinds[:, -1]


def frequencies(rope: Rope, rotary: int) -> np.ndarray:
  """Radians per position of each pair: base ** (-2 i / rotary), scaled by kind."""
  plain = rope.base ** (-np.arange(0, rotary, 2) / rotary)
  if rope.kind == 'linear':
    return plain / rope.factor
  if rope.kind == 'llama3':
    return plain * llama3(rope, 2 * math.pi / plain)
  if rope.kind == 'yarn':
    return plain * yarn(rope, rotary)
  if rope.kind == 'longrope':
    return plain / np.array(rope.divisors)
  return plain


def llama3(rope: Rope, wavelength: np.ndarray) -> np.ndarray:
  """1 for short waves, 1 / factor for long ones, linear in 1 / wavelength between."""
  blend = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
  blend = np.clip(blend, 0.0, 1.0)
  return blend + (1 - blend) / rope.factor


def yarn(rope: Rope, rotary: int) -> np.ndarray:
  """1 for pairs that turn often in `original` positions, 1 / factor for the others.

  Peng et al. (2023), https://arxiv.org/abs/2309.00071: linear between the pairs that
  turn `high` and `low` times, both rounded outwards if `rounded`.
  """
  turning = lambda turns: (
    rotary * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))
  )
  start, end = turning(rope.high), turning(rope.low)
  if rope.rounded:
    start, end = math.floor(start), math.ceil(end)
  start, end = max(start, 0), min(end, rotary - 1)
  blend = (np.arange(rotary // 2) - start) / max(end - start, 0.001)
  blend = np.clip(blend, 0.0, 1.0)
  return 1 - blend + blend / rope.factor


def angles(positions: BGT, frequency: Array, gain: Array) -> Turns:
  """Sine and cosine at each position, once for all layers: N kinds, [N, rotary / 2]."""
  angle = positions[None, ..., None] * frequency[:, None, None, None]
  gain = gain[:, None, None, None, None]
  return Turns(jnp.sin(angle) * gain, jnp.cos(angle) * gain)


def rotate(x: Array, turn: Turns) -> Array:
  """Rotary position embedding, half-split: [B, G, T, H, d] to the same.

  Only the first dimensions turn, two for each angle of `turn` [B, G, T, rotary / 2].
  """
  sin, cos = (y[..., None, :] for y in turn)
  turned, rest = jnp.split(x.astype(jnp.float32), [2 * sin.shape[-1]], -1)
  a, b = jnp.split(turned, 2, -1)
  parts = [a * cos - b * sin, b * cos + a * sin, rest]
  return jnp.concatenate(parts, -1).astype(x.dtype)
