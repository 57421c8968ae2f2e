"""What an embedding is to those who ask for one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Embedder(NamedTuple):
  """Texts [N] to vectors [N, D] of length 1, float32.

  `threshold` is the cosine above which two principles count as one where none is named:
  each embedding has its own.
  """

  vectors: Callable[[Sequence[str]], np.ndarray]
  threshold: float


def unit(x: np.ndarray) -> np.ndarray:
  """Rows of length 1; a row of zeros stays."""
  norm = np.linalg.norm(x, axis=-1, keepdims=True)
  return (x / np.maximum(norm, 1e-12)).astype(np.float32)
