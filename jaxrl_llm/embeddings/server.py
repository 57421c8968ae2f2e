"""Embeddings behind HTTP: any server with OpenAI's /embeddings. Standard library.

RLBFF (2025), https://arxiv.org/abs/2509.21319, asks Qwen3-Embedding-8B and takes a
cosine above 0.8 for one principle, the best of 0.7, 0.8 and 0.9 there.
"""

import json
from collections.abc import Sequence

import numpy as np

from jaxrl_llm.embeddings.embedder import Embedder, unit
from jaxrl_llm.judges.server import sender
from jaxrl_llm.types import InputError


def server(
  *,
  url: str,
  model: str,
  threshold: float = 0.8,
  key_variable: str = '',
  batch: int = 32,
  timeout: float = 60.0,
  retries: int = 4,
  wait: float = 1.0,
) -> Embedder:
  """Cosines of meaning.

  Args:
    url, key_variable, timeout, retries, wait: as in judges/server.py.
    threshold: see Embedder. The default is the paper's for Qwen3-Embedding-8B.
    batch: texts in a request.

  Raises:
    InputError: no such address or key; at a call, the server fails for good.
  """
  how = dict(timeout=timeout, retries=retries, wait=wait)
  send = sender(url, 'embeddings', key_variable, **how)

  def some(texts: Sequence[str]) -> np.ndarray:
    body = send({'model': model, 'input': list(texts)})
    try:
      rows = sorted(json.loads(body)['data'], key=lambda row: row['index'])
      found = np.array([row['embedding'] for row in rows], np.float32)
      if found.ndim != 2 or len(found) != len(texts):
        raise ValueError(f'{found.shape} numbers for {len(texts)} texts')
    except (ValueError, LookupError, TypeError, RecursionError) as error:
      raise InputError(
        f'embeddings {url}: no reply of /embeddings ({error}): {body[:200]!r}.'
      ) from error
    return unit(found)

  def vectors(texts: Sequence[str]) -> np.ndarray:
    turns = range(0, len(texts), batch)
    return np.concatenate([some(texts[i : i + batch]) for i in turns])

  return Embedder(vectors, threshold)
