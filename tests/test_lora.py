"""LoRA: adapters alone are trained, over a base that is held once; PEFT's files."""

import dataclasses
import functools
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import safetensors.numpy
import test_contract
import toy
from oracles import make_reference_logits as oracle

from jaxrl_llm import (
  checkpoint,
  forward,
  initial,
  log,
  restored,
  sharding,
  train,
  types,
)
from jaxrl_llm.models import config_json, decoder, lora, pretrained, weights
from jaxrl_llm.models.config import DecoderConfig, Lora
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import InputError

LORA = Lora(rank=3, alpha=6.0, targets='q|v|up|down')
TINY = pretrained.load('tiny')


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def adapters(seed=1):
  """Adapters whose b is drawn too, so that they have an effect."""
  tree = lora.init(TINY.config, LORA, jax.random.key(seed))['layers']
  draw = lambda i, x: 0.3 * jax.random.normal(jax.random.key(i), x.shape)
  return {'layers': {name: draw(i, tree[name]) for i, name in enumerate(sorted(tree))}}


def logp(params, low_rank=None):
  """Log-probabilities of a fixed batch."""
  rng = np.random.default_rng(0)
  prompts, completions = rng.integers(0, 96, (2, 5)), rng.integers(0, 96, (2, 3, 4))
  batch = types.make_batch(
    jnp.asarray(prompts),
    jnp.array([5, 3]),
    jnp.asarray(completions),
    jnp.full((2, 3), 4),
  )
  see = forward.make_forward({'policy': decoder.Decoder(TINY.config, lora=low_rank)})
  read = jax.jit(lambda params: see({'policy': params}, {}, batch, ('logp',)).logp)
  return read(params)


def test_fresh_adapters_change_nothing():
  base = TINY.params()
  fresh = lora.init(TINY.config, LORA, jax.random.key(0))
  np.testing.assert_array_equal(logp(forward.lay(fresh, base), LORA), logp(base))


def test_by_hand():
  """W = [[1, 2]], a = [[3]], b = [[4, 5]], alpha / rank = 2: W + 2 a b = [[25, 32]]."""
  base = {'layers': {'q': jnp.array([[[1.0, 2.0]]])}}
  extra = {'q_lora_a': jnp.array([[[3.0]]]), 'q_lora_b': jnp.array([[[4.0, 5.0]]])}
  merged = lora.merge(base, {'layers': extra}, Lora(1, 2.0, 'q'))
  np.testing.assert_array_equal(merged['layers']['q'], [[[25.0, 32.0]]])


def test_merged_is_the_same_network_and_unmerging_gives_the_base_back():
  base, extra = TINY.params(), adapters()
  merged = lora.merge(base, extra, LORA)
  apart = logp(forward.lay(extra, base), LORA)
  assert np.abs(apart - logp(base)).max() > 0.1
  close(logp(merged), apart)
  back = lora.merge(merged, extra, LORA, sign=-1.0)
  jax.tree.map(close, back, base)


def unless_slow(names, slow):
  """Parameters, of which some are left to the longer checks."""
  marks = lambda name: [pytest.mark.slow] if name in slow else []
  return [pytest.param(name, marks=marks(name)) for name in names]


@pytest.mark.parametrize(
  'method',
  unless_slow(
    ['grpo', 'ppo', 'dpo', 'kto', 'bradley_terry'], slow=('kto', 'bradley_terry')
  ),
)
def test_adapters_alone_are_trained(method, tmp_path):
  c = runs.config(method, steps=2)
  c.model.lora.update(rank=2, targets='q|v')
  born = runs.assembled(c).state
  roles = {'ppo': {'policy', 'critic'}, 'bradley_terry': {'reward'}}
  assert born.params.keys() == roles.get(method, {'policy'})
  for role, tree in born.params.items():
    names = {f'{m}_lora_{x}' for m in 'qv' for x in 'ab'}
    assert tree['layers'].keys() == names
    assert tree.keys() - {'layers'} == ({'scores'} if role != 'policy' else set())
  assert born.frozen.keys() == {'base'}
  train.main(c, str(tmp_path))
  found = checkpoint.restore(tmp_path, born)[0]
  jax.tree.map(np.testing.assert_array_equal, found.frozen, born.frozen)
  assert int(found.applied) == 2
  lines = [r for r in log.read_lines(tmp_path / 'metrics.jsonl') if 'loss' in r]
  if method == 'dpo':  # AT-30: the policy starts as the base, its reference.
    close(lines[0]['loss'], np.log(2))
    close(lines[0]['margin'], 0)
  moved = found.params[min(found.params)]['layers']['q_lora_b']
  assert np.abs(moved).max() > 1e-4


SMALL = config_json.llama(
  DecoderConfig(
    vocab=toy.V, width=16, layers=1, heads=2, kv_heads=1, mlp_width=16, head_dim=8
  )
)
# What a method says of a policy that is its reference, and of heads of zeros: by hand.
FIRST = {
  'dpo': dict(loss=np.log(2), margin=0.0),  # AT-30.
  'ipo': dict(loss=25.0, margin=0.0),  # (1 / (2 tau))^2, tau = 0.1.
  'kto': dict(loss=0.5, value_kto=0.5, z0=0.0),
  'bradley_terry': dict(loss=np.log(2), margin=0.0),
  'orm': dict(loss=np.log(2), accuracy=0.5),
  'prm': dict(loss=np.log(2), accuracy=0.5),
  'plackett_luce': dict(accuracy=0.5),
  'regression': dict(squared_error=1.0),  # Ratings of -1 and 1.
  'grpo': dict(kl_ref=0.0),
  'rlbff_generative': dict(kl_ref=0.0),
  'ppo': dict(kl_ref=0.0, **{'max/ratio': 1.0}),
  'rloo': dict(kl_ref_seq=0.0),
  'ma_rlhf': dict(kl_ref=0.0, kl_ref_seq=0.0),
  'rto': dict(kl_ref=0.0, kl_ref_seq=0.0),
  'reinforce_pp': dict(kl_ref_seq=0.0),
  'reinforce_pp_baseline': dict(kl_ref=0.0),
  'rebel': dict(kl_ref_seq=0.0, margin=0.0),
  'raft/prior': dict(divergence=0.0),
  'remax': dict(kl_ref_seq=0.0),
  'prime': dict(prm_loss=np.log(2)),
  'score_rl': dict(kl_ref_seq=0.0),
  'safe_rlhf': dict(kl_ref=0.0, kl_ref_seq=0.0),
  'hc_rlhf': dict(kl_ref_seq=0.0),
  'think_rm_pairwise': dict(kl_ref=0.0),
  'pairwise_ppo': dict(kl_ref=0.0, kl_ref_seq=0.0),
  'cgpo_crpg': dict(kl_ref_seq=0.0),
  'cgpo_codpo': dict(margin=0.0),
  'cgpo_crraft': dict(kl_ref_seq=0.0),
  'prompt_gdro': dict(kl_ref=0.0),
  'rollout_gdro': dict(kl_ref=0.0),
  'grpo_process': dict(kl_ref=0.0),
  'a_lol': dict(kl_ref_seq=0.0, value_loss=0.5),
  'r_lol': dict(kl_ref_seq=0.0),
  'online_ipo': dict(margin=0.0),
  'nash_md': dict(kl_ref_seq=0.0),
  'plackett_luce_dpo': dict(margin=0.0),
  'tdpo': dict(loss=np.log(2), margin=0.0, divergence=0.0),
  'spin': dict(loss=np.log(2), margin=0.0),
  'inpo': dict(margin=0.0),
  'cdpo': dict(loss=np.log(2), margin=0.0),
  'robust_dpo': dict(loss=np.log(2), margin=0.0),
  'f_dpo': dict(loss=np.log(2), margin=0.0),
  'dpo_positive': dict(loss=np.log(2), margin=0.0),
  'ln_dpo': dict(loss=np.log(2), margin=0.0),
  'mapl': dict(loss=np.log(2), margin=0.0),
  'tr_dpo': dict(loss=np.log(2), margin=0.0),  # AT-30.
  'aot': dict(loss=np.log(2), margin=0.0),
  'r_dpo': dict(margin=0.01 * np.diff(toy.batch().length[:, ::-1]).mean()),
  'wpo': dict(margin=0.0),
  'discopop': dict(loss=(1 + np.log(2)) / 2, margin=0.0),
  'apo_zero': dict(loss=1.0, margin=0.0),
  'apo_down': dict(loss=1.0, margin=0.0),
  'aot_unpaired': dict(loss=np.log(2), margin=0.0),
  'bco': dict(loss=2 * np.log(2), delta=0.0, reward_chosen=0.0),
  'infonca': dict(loss=np.log(2), margin=0.0),
  'nca': dict(loss=2 * np.log(2), margin=0.0),
  'exo': dict(loss=-np.log(2) - np.log(1e-3 * 0.999) / 2, margin=0.0),
  't_reg': dict(margin=0.0),
  'safe': dict(kl_ref=0.0, kl_price=0.0),
}
# Half the time to compile.
QUICK = {'xla_backend_optimization_level': 0}


# Roles and sensors of which every other method has a part.
UNLIKE = (
  'sft',
  'grpo',
  'ppo',
  'rto',
  'prime',
  'grpo_care',
  'gkd',
  'refuel',
  'safe_rlhf',
)
UNLIKE += (
  'dpo',
  'kto',
  'tdpo',
  'ift',
  'bradley_terry',
  'regression',
  'ensemble',
  'armo',
)
UNLIKE += ('vpl', 'p_rlhf', 'rlbff_generative', 'safe')
ALIKE = {*test_contract.METHODS} - {*UNLIKE}


@pytest.mark.parametrize('name', unless_slow(test_contract.METHODS, slow=ALIKE))
def test_every_method_trains_adapters_alone(name):
  """Three updates: a head of zeros moves first, then b, which was zero too, then a."""
  method, low_rank = test_contract.method(name), Lora(2, 4.0, 'q|v')
  base = pretrained.random_params(config_json.decoder(SMALL, ''))
  base = jax.tree.map(lambda x: x if (x == 1).all() else 20 * x, base)
  stored = weights.in_memory(SMALL, base)
  model = pretrained.Pretrained(
    stored.config, SMALL, None, functools.partial(weights.read, stored)
  )
  tx = optax.adam(1e-2)
  roles = forward.networks(method)
  mesh = sharding.make_mesh(fsdp=1)
  others = {role: model for role in roles['frozen'] - {*initial.BORN}}
  state = initial.state(
    model, roles, tx, mesh, method, lora=low_rank, others=others, seed=0
  )
  decoders = {
    s.role: decoder.Decoder(
      model.config,
      scores=initial.scores(s.role, method.heads),
      lora=low_rank if s.tree == 'params' or s.role in initial.ADAPTED else None,
    )
    for s in forward.SENSORS.values()
  }
  see = forward.make_forward(decoders, method.soft)
  update = jax.jit(make_update_step(see, tx, method), compiler_options=QUICK)
  first, due = state, FIRST.get(name, {})
  assert due or 'ref' not in roles['frozen']
  state, metrics = update(state, test_contract.rows(name))
  # A ratio is between two programs, each with the rounding of its own.
  assert {k: float(metrics[k]) for k in due} == pytest.approx(due, abs=3e-6)
  for _ in range(2):
    state, _ = update(state, test_contract.rows(name))
  assert int(state.applied) == 3
  followers = roles['frozen'] & {*initial.ADAPTED}
  assert first.frozen.keys() == {'base', *others, *followers}
  jax.tree.map(np.testing.assert_array_equal, state.frozen['base'], base)
  flat = flax.traverse_util.flatten_dict
  low = {('layers', f'{m}_lora_{x}') for m in 'qv' for x in 'ab'}
  assert state.params.keys() == roles['params']
  for role, tree in state.params.items():
    scores = {('scores',)} if role in initial.SCORED else set()
    assert role == initial.OWN or flat(tree).keys() == low | scores
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), tree, first.params[role])
    if 'embedding' in method.needs:  # Scored by the method's own networks.
      assert moved.pop('scores', 0) == 0
    # In those some parts cannot move: the last bias of a score is in both of a pair.
    least = max if role == initial.OWN else min
    assert least(jax.tree.leaves(moved)) > 1e-4


# ---- Files ---------------------------------------------------------------------------


def test_peft_files(tmp_path):
  extra = adapters()
  lora.save(tmp_path / 'a', TINY.fields, extra, LORA, base='tiny')
  said = json.loads((tmp_path / 'a' / lora.CONFIG).read_text())
  assert (said['r'], said['lora_alpha'], said['lora_dropout']) == (3, 6.0, 0.0)
  assert said['target_modules'] == ['down_proj', 'q_proj', 'up_proj', 'v_proj']
  stored = safetensors.numpy.load_file(tmp_path / 'a' / lora.FILE)
  key = 'base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight'
  np.testing.assert_array_equal(stored[key], extra['layers']['q_lora_a'][1].T)
  low_rank, again = lora.load(tmp_path / 'a', TINY.fields, TINY.config)
  assert (low_rank.rank, low_rank.alpha) == (3, 6.0)
  jax.tree.map(np.testing.assert_array_equal, again, extra)


def test_a_target_is_of_no_other_matrix(tmp_path):
  """GPT-2 calls two matrices c_proj; PEFT would adapt both."""
  fields = oracle.CONFIGS['gpt2']
  config, only = config_json.decoder(fields, 'gpt2'), Lora(2, 4.0, 'o')
  lora.save(tmp_path / 'a', fields, lora.init(config, only), only, base='x')
  said = json.loads((tmp_path / 'a' / lora.CONFIG).read_text())
  assert said['target_modules'] == ['attn.c_proj']


def test_an_exported_run(tmp_path):
  c = runs.config('grpo', steps=2)
  c.model.lora.rank = 2
  train.main(c, str(tmp_path / 'run'))
  policy = restored.policy(str(tmp_path / 'run'))
  low_rank, extra = policy.adapters
  close(logp(policy.params), logp(forward.lay(extra, TINY.params()), low_rank))
  assert policy.params.keys() == TINY.params().keys()


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (dict(peft_type='LOHA'), "peft_type is 'LOHA'"),
    (dict(use_dora=True), 'use_dora is True'),
    (dict(rank_pattern={'q': 2}), 'rank_pattern'),
    (dict(init_lora_weights='pissa'), "init_lora_weights is 'pissa'"),
    (dict(init_lora_weights='olora'), "init_lora_weights is 'olora'"),
    (dict(r=None), 'r is None; a number is due'),
    (dict(a_new_kind=['q']), r"a_new_kind is \['q'\], which is not supported"),
  ],
)
def test_other_adapters_are_refused(tmp_path, change, words):
  lora.save(tmp_path / 'a', TINY.fields, adapters(), LORA, base='tiny')
  path = tmp_path / 'a' / lora.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=words):
    lora.load(tmp_path / 'a', TINY.fields, TINY.config)


def test_what_peft_writes_of_plain_adapters_loads(tmp_path):
  peft = pytest.importorskip('peft')
  said = peft.LoraConfig(r=3, lora_alpha=6.0, init_lora_weights='gaussian').to_dict()
  lora.save(tmp_path / 'a', TINY.fields, adapters(), LORA, base='tiny')
  (tmp_path / 'a' / lora.CONFIG).write_text(json.dumps(said, default=str))
  assert lora.load(tmp_path / 'a', TINY.fields, TINY.config)[0].rank == 3


BASE = 'base_model_name_or_path'


def peft_folder(folder, tokenizer=None, **change):
  """Adapters of tiny in PEFT's files, with another description; the adapters."""
  extra = adapters()
  lora.save(folder, TINY.fields, extra, LORA, base='tiny', tokenizer=tokenizer)
  path = folder / lora.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  return extra


@pytest.mark.parametrize('base', ['tiny', '../base', '{folder}/base'])
def test_a_folder_of_adapters_is_a_model(tmp_path, base):
  """Its base by name, by a path from the folder, or by an absolute one."""
  if base != 'tiny':
    weights.save(
      tmp_path / 'base', TINY.fields, TINY.params(), tokenizer=TINY.tokenizer
    )
  own = pretrained.load('tiny').tokenizer
  own.chat_template = 'of the adapters'
  extra = peft_folder(tmp_path / 'a', own, **{BASE: base.format(folder=tmp_path)})
  found = pretrained.load(str(tmp_path / 'a'))
  want = lora.merge(TINY.params(), extra, LORA)
  jax.tree.map(np.testing.assert_array_equal, found.params(), want)
  assert abs(want['layers']['q'] - TINY.params()['layers']['q']).max() > 0.01
  assert found.config == TINY.config
  assert found.tokenizer.chat_template == 'of the adapters'


@pytest.mark.parametrize(
  ('base', 'words'),
  [
    ('gone', "is 'gone', which does not load: There is no model 'gone'"),
    (None, 'is None; name the model'),
    ('.', "is '.', the adapters themselves"),
    ('../b', "is '../b', which does not load: .* no tokenizer"),
  ],
)
def test_adapters_without_their_base(tmp_path, base, words):
  (tmp_path / 'b').mkdir()
  peft_folder(tmp_path / 'a', **{BASE: base})
  with pytest.raises(InputError, match=f'adapter_config.json: {BASE} {words}'):
    pretrained.load(str(tmp_path / 'a'))


def test_a_run_starts_from_adapters_and_is_exported(tmp_path):
  extra = peft_folder(tmp_path / 'a')
  c = runs.config('sft', steps=1, model=dict(name=str(tmp_path / 'a')))
  c.optimizer.policy.learning_rate = 0.0
  train.main(c, str(tmp_path / 'run'))
  restored.export(restored.policy(str(tmp_path / 'run')), tmp_path / 'whole')
  want = lora.merge(TINY.params(), extra, LORA)
  jax.tree.map(close, pretrained.load(str(tmp_path / 'whole')).params(), want)


@pytest.mark.parametrize('layer', [0, 1])
def test_adapters_of_some_layers_are_refused(tmp_path, layer):
  peft_folder(tmp_path / 'a', layers_to_transform=[1 - layer])
  path = tmp_path / 'a' / lora.FILE
  stored = safetensors.numpy.load_file(path)
  kept = {k: x for k, x in stored.items() if f'layers.{layer}.' not in k}
  safetensors.numpy.save_file(kept, path)
  with pytest.raises(InputError, match=r'of some layers alone .* not supported'):
    pretrained.load(str(tmp_path / 'a'))


def test_targets_that_match_nothing():
  with pytest.raises(InputError, match=r"targets='query' matches no matrix; .* q, "):
    lora.targets(TINY.config, Lora(2, 4.0, 'query'))


@pytest.mark.parametrize(
  ('experts', 'targets', 'words'),
  [
    (0, 'q|k|v|o|gate|up|down', []),
    (0, 'q|v', ['LoRA adapts q, v; not down, gate, k, o, up.']),
    (
      4,
      'q|k|v|o|gate|up|down',
      [
        'LoRA adapts k, o, q, v; not router; not the experts (down, gate, up), which '
        'cannot be.'
      ],
    ),
  ],
)
def test_matrices_without_adapters_are_named(experts, targets, words):
  config = dataclasses.replace(TINY.config, experts=experts, experts_per_token=2)
  assert lora.report(config, Lora(2, 4.0, targets)) == words


def test_a_fused_matrix_has_no_peft_adapter(tmp_path):
  with pytest.raises(InputError, match='phi3 stores q, up, v in one tensor'):
    lora.save(
      tmp_path / 'a', {'model_type': 'phi3'}, adapters(), Lora(3, 6.0, 'q'), base='x'
    )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parity
@pytest.mark.parametrize('name', ['grouped', 'qwen2', 'gemma2'])
def test_peft_loads_our_adapters(tmp_path, name):
  peft, shapes = pytest.importorskip('peft'), oracle.saved_shapes(oracle.CONFIGS[name])
  stored = weights.open_folder(
    oracle.write(tmp_path / 'm', oracle.CONFIGS[name], shapes)
  )
  low_rank = Lora(2, 8.0, 'q|o|down')
  extra = lora.init(stored.config, low_rank, jax.random.key(1))
  extra = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), extra
  )
  lora.save(tmp_path / 'a', stored.fields, extra, low_rank, base=str(tmp_path / 'm'))
  ids = oracle.tokens(oracle.CONFIGS[name])
  model = peft.PeftModel.from_pretrained(
    oracle.torch_model(tmp_path / 'm'), tmp_path / 'a'
  )
  theirs = oracle.torch_logits(model.eval(), ids)
  merged = lora.merge(weights.read(stored), extra, low_rank)
  weights.save(tmp_path / 'merged', stored.fields, merged)
  ours = oracle.torch_logits(oracle.torch_model(tmp_path / 'merged'), ids)
  close(ours, theirs, atol=1e-4)
