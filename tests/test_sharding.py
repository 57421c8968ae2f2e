"""More devices give the same numbers, each with its share of the work."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import make_reference_logits as oracle

from jaxrl_llm import build, forward, sharding, types
from jaxrl_llm.models import config_json
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal
from jaxrl_llm.step import make_update_step
from jaxrl_llm.types import State

B, G, P, T, V = 32, 4, 8, 16, 64
CONFIG = DecoderConfig(
  vocab=V, width=32, layers=2, heads=4, kv_heads=2, mlp_width=64, head_dim=8
)
MOE = dataclasses.replace(
  config_json.decoder(oracle.CONFIGS['qwen3_moe'], ''), vocab=V, experts=8
)
TX = optax.sgd(0.1)
MESHES = {
  'one': dict(fsdp=1),
  'fsdp': dict(fsdp=8),
  'data': dict(data=2, fsdp=4),
  'tensor': dict(fsdp=4, tensor=2),
}


@functools.cache
def weights(seed, config=CONFIG):
  """A decoder's parameters, on the host."""
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  init = jax.jit(lambda key: Decoder(config).init(key, zero, zero, causal(1))['params'])
  tree = jax.device_get(init(jax.random.key(seed)))
  return jax.tree.map(lambda x: x if (x == 1).all() else 5 * x, tree)


def make_state(config=CONFIG):
  policy = jax.tree.map(jnp.array, weights(1, config))
  params = {'policy': policy}
  return State(
    step=jnp.int32(0),  # Each its own array: one donated twice would be an error.
    applied=jnp.int32(0),
    skipped=jnp.int32(0),
    params=params,
    opt_state=TX.init(params),
    frozen={'ref': jax.tree.map(jnp.array, weights(2, config))},
    extra={},
    key=jax.random.key(0),
  )


def make_batch():
  rng = np.random.default_rng(0)
  batch = types.make_batch(
    rng.integers(0, V, (B, P)).astype(np.int32),
    rng.integers(1, P + 1, B).astype(np.int32),
    rng.integers(0, V, (B, G, T)).astype(np.int32),
    rng.integers(1, T + 1, (B, G)).astype(np.int32),
  )
  return batch.replace(
    reward=rng.normal(size=(B, G)).astype(np.float32),
    order=rng.permutation(B).astype(np.int32)[:, None],
  )


def mesh_of(name):
  return sharding.make_mesh(
    **MESHES[name], devices=jax.devices()[: 1 if name == 'one' else 8]
  )


@functools.cache
def program(name, config=CONFIG, method='grpo'):
  """A step of two minibatches in the host's order: (compiled, state, batch)."""
  mesh = mesh_of(name)
  placed = dict(spread=sharding.constrain(mesh), whole=sharding.whole_rows(mesh))
  decoder = Decoder(config, **placed)
  step = make_update_step(
    forward.make_forward({'policy': decoder, 'ref': decoder}),
    TX,
    build.method(method),
    minibatches=2,
    constrain=sharding.constrain(mesh),
  )
  state, batch = make_state(config), sharding.put_batch(make_batch(), mesh)
  lowered = sharding.compile_step(step, state, mesh).lower(state, batch)
  # LLVM's alone: what XLA splits and fuses stays as it is.
  compiled = lowered.compile(compiler_options={'xla_backend_optimization_level': 0})
  return compiled, mesh, batch


def place(state, mesh):
  return jax.device_put(state, sharding.state_sharding(state, mesh))


@functools.cache
def after(*case):
  """Parameters and metrics after the step of `program(*case)`, on the host."""
  compiled, mesh, batch = program(*case)
  state, metrics = compiled(place(make_state(*case[1:2]), mesh), batch)
  return jax.device_get((state.params, metrics))


@pytest.mark.parametrize('name', ['fsdp', 'data', 'tensor'])
def test_the_mesh_changes_no_number(name):
  """AT-1: parameters, loss and every metric as on one device."""
  chex.assert_trees_all_close(after(name), after('one'), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
  'name', ['tensor', pytest.param('fsdp', marks=pytest.mark.slow)]
)
def test_the_mesh_changes_no_number_of_experts(name):
  """Tokens are sorted by expert over all devices; the experts are split as well."""
  found = sharding.state_sharding(make_state(MOE), mesh_of(name)).params['policy']
  assert found['layers']['up'].spec[1] == 'fsdp'
  got, want = (after(n, MOE, 'sft') for n in (name, 'one'))
  chex.assert_trees_all_close(got, want, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('name', ['fsdp', 'data', 'tensor'])
def test_every_device_does_its_share(name):
  """Work per device is an eighth of the whole, in minibatches and in any order.

  XLA counts a loop's body once, on one device as on eight.
  """
  flops = lambda name: program(name)[0].cost_analysis()['flops']
  assert flops(name) < 1.1 * flops('one') / 8


@pytest.mark.parametrize('name', ['fsdp', 'data', 'tensor'])
def test_every_device_holds_its_share(name):
  """Activations too: a gathered batch would be up to eight times the share."""
  room = lambda name: program(name)[0].memory_analysis().temp_size_in_bytes
  assert room(name) < 1.5 * room('one') / 8


@pytest.mark.parametrize('name', ['fsdp', 'data', 'tensor'])
def test_nothing_is_gathered_for_want_of_a_way(name, capfd):
  """XLA warns where it knows no way from one layout to the next but by the whole."""
  program.__wrapped__(name)
  assert 'rematerialization' not in capfd.readouterr().err


def test_the_state_is_updated_in_place():
  """Donated: its buffers are gone. A reference of equal numbers is its own copy."""
  compiled, mesh, batch = program('fsdp')
  state = make_state()
  state = place(
    state.replace(frozen={'ref': jax.tree.map(jnp.array, weights(1))}), mesh
  )
  new, first = compiled(state, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  assert abs(float(first['kl_ref'])) < 1e-2  # It starts at the reference.
  again, _ = compiled(new, batch)
  assert (int(again.step), int(again.applied)) == (2, 4)
  chex.assert_trees_all_equal(jax.device_get(again.frozen['ref']), weights(1))


@pytest.mark.parametrize('name', MESHES)
def test_every_leaf_of_a_state_has_its_place(name):
  """Matrices split over both axes; vectors, counts and the key do not."""
  found = sharding.state_sharding(make_state(), mesh_of(name))
  policy = found.params['policy']
  assert tuple(policy['layers']['q'].spec) == (None, 'fsdp', 'tensor')
  assert tuple(policy['layers']['down'].spec) == (None, 'tensor', 'fsdp')
  assert tuple(found.frozen['ref']['embed'].spec) == ('tensor', 'fsdp')
  for leaf in (policy['final_norm'], policy['layers']['attn_norm'], found.step):
    assert leaf.is_fully_replicated


def test_an_axis_that_does_not_fit_is_left_whole():
  """A width of 4 over 8 devices; the tensor axis has one device and splits anything."""
  state = {'params': {'policy': {'embed': np.zeros((6, 4))}}}
  found = sharding.state_sharding(state, mesh_of('fsdp'))
  assert tuple(found['params']['policy']['embed'].spec) == ('tensor', None)
