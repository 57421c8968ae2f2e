"""Texts as counts of their letters in threes, hashed: needs no model.

It sees letters and no meaning: 'brevity' and 'conciseness' are far apart. For tests,
and where nothing better can be had.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxrl_llm.embeddings.embedder import Embedder, unit


def ngrams(*, size: int = 3, width: int = 4096, threshold: float = 0.4) -> Embedder:
  """Cosines of counts.

  Args:
    size: letters in a row, of words in lower case with a space on each side.
    width: numbers of a vector; letters whose hash is one share it.
    threshold: see Embedder. The default was calibrated on principles/grammar.py.
  """

  def vectors(texts: Sequence[str]) -> np.ndarray:
    found = np.zeros((len(texts), width), np.float32)
    for row, text in zip(found, texts):
      spread = f' {" ".join(text.lower().split())} '
      for i in range(len(spread) - size + 1):
        row[zlib.crc32(spread[i : i + size].encode()) % width] += 1
    return unit(found)

  return Embedder(vectors, threshold)
