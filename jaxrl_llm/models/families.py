"""The model families: what each one's `config.json` and tensors mean to the decoder.

A row of `FAMILIES` is all there is to a family. Nothing else in the package knows one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrl_llm.models import names
from jaxrl_llm.models.fields import Fields


class Family(NamedTuple):
  """`options` are those of DecoderConfig that differ from a Llama's."""

  models: str  # Which it covers, for a reader.
  differs: str  # From Llama, for a reader.
  options: Callable[[Fields], dict[str, Any]]
  names: tuple[names.Names, ...]
  # config.json keys with the value, or the tuple of values, that this decoder computes.
  only: dict[str, Any] = {}
  # Their names of the keys that the others share.
  keys: dict[str, str] = {}
  # What an absent key means to transformers, where null, or a Llama, means another.
  defaults: dict[str, Any] = {}


def llama(f: Fields) -> dict[str, Any]:
  mlp = ('gate', 'up', 'down') if f.flag('mlp_bias') else ()
  return {'rope': f.rope(), 'biases': (*attention_biases(f), *mlp)}


def attention_biases(f: Fields) -> tuple[str, ...]:
  return tuple('qkvo') if f.flag('attention_bias') else ()


def smollm3(f: Fields) -> dict[str, Any]:
  count = f.number('num_hidden_layers')
  every = f.number('no_rope_layer_interval', 4)
  default = [int((i + 1) % every != 0) for i in range(count)]
  turns = f.list('no_rope_layers', default)
  no_rope = tuple(i for i in range(count) if not turns[i])
  near = no_rope if f.flag('use_sliding_window') else ()
  kinds = ['sliding_attention' if i in near else 'full_attention' for i in f.layers()]
  return llama(f) | {
    'rope': f.rope(default=2e6),
    'no_rope': no_rope,
    'windows': f.windows(default=kinds),
  }


def mistral(f: Fields) -> dict[str, Any]:
  kinds = ['sliding_attention'] * len(f.layers())  # With layer_types a Ministral.
  return {'rope': f.rope(), 'windows': f.windows(default=kinds)}


def qwen2(f: Fields) -> dict[str, Any]:
  return {'rope': f.rope(), 'windows': qwen_windows(f), 'biases': tuple('qkv')}


def qwen_windows(f: Fields) -> tuple[int, ...]:
  first = f.number('max_window_layers', 28, lowest=0)
  kinds = ['full_attention' if i < first else 'sliding_attention' for i in f.layers()]
  return f.windows(default=kinds) if f.flag('use_sliding_window') else ()


def qwen3(f: Fields) -> dict[str, Any]:
  return {
    'rope': f.rope(),
    'windows': qwen_windows(f),
    'norms': ('attn_norm', 'mlp_norm', 'q_norm', 'k_norm'),
    'biases': attention_biases(f),
  }


def qwen3_moe(f: Fields) -> dict[str, Any]:
  return qwen3(f) | {
    'windows': f.windows(everywhere=True) if f.flag('use_sliding_window') else (),
    'mlp_width': f.number('moe_intermediate_size'),
    'experts': f.number('num_experts', f.get('num_local_experts')),
    'experts_per_token': f.number('num_experts_per_tok'),
    'normalise_experts': f.flag('norm_topk_prob'),
  }


def gemma2(f: Fields) -> dict[str, Any]:
  kinds = ['full_attention' if i % 2 else 'sliding_attention' for i in f.layers()]
  return gemma(f) | {
    'rope': f.rope(),
    'windows': f.windows(default=kinds),
    'attention_cap': f.real('attn_logit_softcapping', 0.0),
  }


def gemma3(f: Fields) -> dict[str, Any]:
  every = f.number('sliding_window_pattern', 6)
  kinds = [
    'sliding_attention' if (i + 1) % every else 'full_attention' for i in f.layers()
  ]
  options = gemma(f)
  return options | {
    'rope': f.rope(default=1e6, kind='full_attention'),
    'local_rope': f.rope(default=1e4, kind='sliding_attention'),
    'windows': f.windows(default=kinds),
    'norms': (*options['norms'], 'q_norm', 'k_norm'),
  }


def gemma(f: Fields) -> dict[str, Any]:
  """What Gemma 2 and 3 share."""
  return {
    'norms': tuple(names.SANDWICH.values()),
    'norm_offset': 1.0,
    'biases': attention_biases(f),
    'activation': 'gelu_tanh',
    'embed_scale': f.number('hidden_size') ** 0.5,
    'query_scale': f.real('query_pre_attn_scalar', 256.0) ** -0.5,
    'logit_cap': f.real('final_logit_softcapping', 0.0),
  }


def olmo2(f: Fields) -> dict[str, Any]:
  return {
    'rope': f.rope(),
    'norms': (*names.POST_NORMS.values(), 'q_norm', 'k_norm'),
    'biases': attention_biases(f),
    'qk_norm_wide': True,
  }


def phi3(f: Fields) -> dict[str, Any]:
  head_dim = f.number(
    'head_dim', f.number('hidden_size') // f.number('num_attention_heads')
  )
  return {
    'rope': f.rope(),
    'rotary': int(head_dim * f.rotary_share()),
    'windows': f.windows(everywhere=True),
  }


def gpt2(f: Fields) -> dict[str, Any]:
  width = f.number('n_embd')
  return {
    'rope': None,
    'mlp_width': f.number('n_inner', 4 * width),
    'norm': 'layer',
    'biases': (*'qkvo', 'up', 'down'),
    'activation': 'gelu_tanh',
    'gated': False,
  }


SILU = {'hidden_act': ('silu', 'swish'), 'attention_dropout': 0.0}
GELU = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'attention_dropout': 0.0,
  'use_bidirectional_attention': False,
}
QWEN = {
  'num_key_value_heads': 32,
  'max_position_embeddings': 2**15,
  'sliding_window': 4096,
}
GEMMA = {
  'num_key_value_heads': 4,
  'head_dim': 256,
  'sliding_window': 4096,
  'tie_word_embeddings': True,
}
FAMILIES = {
  'llama': Family(
    'Llama 2, 3, 3.x; SmolLM, SmolLM2', 'it is the base', llama, names.LLAMA, SILU
  ),
  'smollm3': Family(
    'SmolLM3',
    'layers without position embedding',
    smollm3,
    names.LLAMA,
    SILU,
    defaults={
      'num_key_value_heads': 4,
      'max_position_embeddings': 2**15,
      'tie_word_embeddings': True,
    },
  ),
  'mistral': Family(
    'Mistral 7B',
    'sliding window',
    mistral,
    names.LLAMA,
    SILU,
    defaults={
      'num_key_value_heads': 8,
      'max_position_embeddings': 2**17,
      'sliding_window': 4096,
    },
  ),
  'qwen2': Family(
    'Qwen2, Qwen2.5', 'bias on q, k, v', qwen2, names.LLAMA, SILU, defaults=QWEN
  ),
  'qwen3': Family(
    'Qwen3',
    'norm on each query and key head',
    qwen3,
    names.QWEN3,
    SILU,
    defaults=QWEN | {'head_dim': 128},
  ),
  'qwen3_moe': Family(
    'Qwen3 MoE',
    'experts, none dropped, in every layer (no `mlp_only_layers`)',
    qwen3_moe,
    names.MOE,
    SILU | {'decoder_sparse_step': 1, 'mlp_only_layers': []},
    defaults=QWEN | {'num_key_value_heads': 4},
  ),
  'gemma2': Family(
    'Gemma 2',
    'soft caps, norms before and after, alternating windows, scaled embedding, GeGLU',
    gemma2,
    names.GEMMA2,
    GELU,
    defaults=GEMMA
    | {
      'max_position_embeddings': 2**13,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
    },
  ),
  'gemma3_text': Family(
    'Gemma 3 270M and 1B (text)',
    'as Gemma 2, with norms on heads and another RoPE in windows in place of caps',
    gemma3,
    names.GEMMA3,
    GELU | {'attn_logit_softcapping': None},  # transformers reads it, for nothing.
    defaults=GEMMA | {'max_position_embeddings': 2**17},
  ),
  'olmo2': Family(
    'OLMo 2',
    'norms after each part, norm over all query and key heads',
    olmo2,
    names.OLMO2,
    SILU,
    defaults={'rms_norm_eps': 1e-5},
  ),
  'phi3': Family(
    'Phi-3, Phi-3.5, Phi-4, Phi-4-mini',
    'fused matrices, partial RoPE; LongRoPE inside the pre-trained window only',
    phi3,
    names.PHI3,
    SILU | {'resid_pdrop': 0.0, 'embd_pdrop': 0.0},
    defaults={
      'max_position_embeddings': 4096,
      'original_max_position_embeddings': 4096,
      'rms_norm_eps': 1e-5,
    },
  ),
  'gpt2': Family(
    'GPT-2, DistilGPT2',
    'learned positions, LayerNorm, biases, no gate; its dropout is left out',
    gpt2,
    names.GPT2,
    {
      'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
      'scale_attn_weights': True,
      'scale_attn_by_inverse_layer_idx': False,
      'add_cross_attention': False,
    },
    {
      'hidden_size': 'n_embd',
      'num_hidden_layers': 'n_layer',
      'num_attention_heads': 'n_head',
      'max_position_embeddings': 'n_positions',
      'rms_norm_eps': 'layer_norm_epsilon',
    },
    {
      'max_position_embeddings': 1024,
      'rms_norm_eps': 1e-5,
      'tie_word_embeddings': True,
    },
  ),
}
