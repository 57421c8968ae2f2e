"""The shape of a decoder: one dataclass of options, no family among them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding; what each number does is in rope.py."""

  base: float = 10000.0
  kind: str = 'default'  # default, linear, llama3, yarn, longrope.
  factor: float = 1.0
  low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow.
  high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast.
  original: int = 0  # Positions of the pre-training, where scaling refers to them.
  divisors: tuple[float, ...] = ()  # longrope: one per frequency.
  rounded: bool = True  # yarn: whether the ramp's ends are whole pairs.
  gain: float = 1.0  # Multiplies sine and cosine.


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and options of a decoder-only transformer.

  Parameters, all float32, L layers stacked on the leading axis (D width, H heads, K
  key-value heads, d head_dim, F mlp width, E experts):
    embed [V, D]; final_norm [D]; head [D, V] unless tied; position [max_positions, D]
      if learned
    layers/{q [L, D, H*d], k [L, D, K*d], v [L, D, K*d], o [L, H*d, D],
      gate [L, D, F] if gated, up [L, D, F], down [L, F, D]}, and layers/<n> [L, ...]
      for every n in `norms`
    with experts: layers/{router [L, D, E], gate [L, E, D, F], up, down [L, E, F, D]}
    <n>_bias for every n in `biases`, and beside every norm of kind 'layer'.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  mlp_width: int
  head_dim: int
  norm_eps: float = 1e-5
  tied: bool = True
  max_positions: int = 2048
  # Positions.
  rope: Rope | None = Rope()  # None: learned positions.
  local_rope: Rope | None = None  # Of layers with a window, where it differs.
  rotary: int = 0  # Dimensions of a head that turn; 0 is all.
  no_rope: tuple[int, ...] = ()  # Layers without position embedding.
  windows: tuple[int, ...] = ()  # Per layer, positions seen, itself included; 0 is all.
  # Norms: attn_norm and mlp_norm before, *_post_norm after, q_norm and k_norm inside.
  norms: tuple[str, ...] = ('attn_norm', 'mlp_norm')
  norm: str = 'rms'  # Or 'layer'.
  norm_offset: float = 0.0  # Added to a norm's scale.
  qk_norm_wide: bool = False  # q_norm over all heads at once, not over each.
  # The rest.
  biases: tuple[str, ...] = ()  # Of which matrices.
  activation: str = 'silu'  # Or 'gelu_tanh'.
  gated: bool = True
  experts: int = 0  # 0: a dense MLP.
  experts_per_token: int = 0
  normalise_experts: bool = True  # The chosen experts' weights sum to one.
  embed_scale: float = 1.0
  query_scale: float = 0.0  # Multiplies attention logits; 0 is head_dim ** -0.5.
  attention_cap: float = 0.0  # cap * tanh(logits / cap) in attention; 0 is none.
  logit_cap: float = 0.0  # The same for the language-model head.


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters (Hu et al., 2021), https://arxiv.org/abs/2106.09685.

  A matrix W [in, out] acts as W + (alpha / rank) a b, a [in, rank], b [rank, out].
  `targets` is a regular expression that a matrix's whole name matches: 'q|v'.
  """

  rank: int
  alpha: float
  targets: str
