"""The shape of a decoder, as Hugging Face's `config.json` words it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Llama-family decoder. Names as in Hugging Face's LlamaConfig, shortened.

  Its parameters, all float32, L layers stacked on the leading axis (D width, H heads,
  K key-value heads, d head_dim, F mlp width):
    embed [V, D]; final_norm [D]; head [D, V] unless tied;
    layers/{attn_norm [L, D], q [L, D, H*d], k [L, D, K*d], v [L, D, K*d],
      o [L, H*d, D], mlp_norm [L, D], gate [L, D, F], up [L, D, F], down [L, F, D]}.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  mlp_width: int
  head_dim: int
  rope_base: float = 10000.0
  norm_eps: float = 1e-5
  tied: bool = True
  max_positions: int = 2048
