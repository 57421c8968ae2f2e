"""What the families' tensors are called in Hugging Face files, leaf by leaf."""

from typing import NamedTuple


class Names(NamedTuple):
  """A leaf of our tree and its tensor in a Hugging Face file.

  `hf` has {} for the layer and {expert} for the expert. Leaves with one `hf` lie side
  by side in one stored tensor, in the order of the table.
  """

  path: tuple[str, ...]
  hf: str
  transpose: bool  # They store [out, in], we store [in, out].


SCORES = Names(('scores',), 'score.weight', True)  # Of a sequence classifier.
HEAD = (
  Names(('embed',), 'model.embed_tokens.weight', False),
  Names(('final_norm',), 'model.norm.weight', False),
  Names(('head',), 'lm_head.weight', True),
  SCORES,
)
ATTENTION = {f'self_attn.{x}_proj': x for x in 'qkvo'}
GATED = {f'mlp.{x}_proj': x for x in ('gate', 'up', 'down')}
NORMS = {'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'mlp_norm'}
POST_NORMS = {
  'post_attention_layernorm': 'attn_post_norm',
  'post_feedforward_layernorm': 'mlp_post_norm',
}
SANDWICH = {
  'input_layernorm': 'attn_norm',
  'pre_feedforward_layernorm': 'mlp_norm',
  **POST_NORMS,
}
QK_NORMS = {'self_attn.q_norm': 'q_norm', 'self_attn.k_norm': 'k_norm'}


def layer(matrices: dict[str, str], norms: dict[str, str], biases=()):
  """Rows for the weights of a layer, by its module names: {theirs: ours}."""
  prefix = 'model.layers.{}.'
  return (
    *(
      Names(('layers', our), f'{prefix}{hf}.weight', True)
      for hf, our in matrices.items()
    ),
    *(
      Names(('layers', our), f'{prefix}{hf}.weight', False) for hf, our in norms.items()
    ),
    *(
      Names(('layers', f'{our}_bias'), f'{prefix}{hf}.bias', False)
      for hf, our in matrices.items()
      if our in biases
    ),
  )


LLAMA = HEAD + layer(ATTENTION | GATED, NORMS, biases=(*'qkvo', 'gate', 'up', 'down'))
QWEN3 = HEAD + layer(ATTENTION | GATED, NORMS | QK_NORMS, biases='qkvo')
GEMMA2 = HEAD + layer(ATTENTION | GATED, SANDWICH, biases='qkvo')
GEMMA3 = HEAD + layer(ATTENTION | GATED, SANDWICH | QK_NORMS, biases='qkvo')
OLMO2 = HEAD + layer(ATTENTION | GATED, POST_NORMS | QK_NORMS, biases='qkvo')
MOE = (
  *HEAD,
  *layer(ATTENTION | {'mlp.gate': 'router'}, NORMS | QK_NORMS, biases='qkvo'),
  *(
    Names(
      ('layers', x), f'model.layers.{{}}.mlp.experts.{{expert}}.{x}_proj.weight', True
    )
    for x in ('gate', 'up', 'down')
  ),
)
PHI3 = (
  *HEAD,
  *layer({'self_attn.o_proj': 'o', 'mlp.down_proj': 'down'}, NORMS),
  *(
    Names(('layers', x), 'model.layers.{}.self_attn.qkv_proj.weight', True)
    for x in 'qkv'
  ),
  *(
    Names(('layers', x), 'model.layers.{}.mlp.gate_up_proj.weight', True)
    for x in ('gate', 'up')
  ),
)


def gpt2_names() -> tuple[Names, ...]:
  """Conv1D stores [in, out]; q, k and v are one tensor; every matrix has a bias."""
  modules = {
    **dict.fromkeys('qkv', 'attn.c_attn'),
    'o': 'attn.c_proj',
    'up': 'mlp.c_fc',
    'down': 'mlp.c_proj',
    'attn_norm': 'ln_1',
    'mlp_norm': 'ln_2',
  }
  rows = [
    Names(('embed',), 'transformer.wte.weight', False),
    Names(('position',), 'transformer.wpe.weight', False),
    Names(('final_norm',), 'transformer.ln_f.weight', False),
    Names(('final_norm_bias',), 'transformer.ln_f.bias', False),
    Names(('head',), 'lm_head.weight', True),
    SCORES,
  ]
  for our, hf in modules.items():
    prefix = f'transformer.h.{{}}.{hf}'
    rows.append(Names(('layers', our), f'{prefix}.weight', False))
    rows.append(Names(('layers', f'{our}_bias'), f'{prefix}.bias', False))
  return tuple(rows)


GPT2 = gpt2_names()
