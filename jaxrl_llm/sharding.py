"""Where arrays live. The only file that knows there is more than one device."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # The axes over which prompts are split.

# First match over a leaf's path wins. Axes are those of the leaf; L is never split.
RULES = (
  (r'.*/ensemble/layers/(q|k|v|gate|up)', (None, None, 'fsdp', 'tensor')),
  (r'.*/ensemble/layers/(o|down)', (None, None, 'tensor', 'fsdp')),
  (r'.*/ensemble/embed', (None, 'tensor', 'fsdp')),
  (r'.*/layers/(q|k|v|gate|up)', (None, 'fsdp', 'tensor')),
  (r'.*/layers/(o|down)', (None, 'tensor', 'fsdp')),
  (r'.*/embed', ('tensor', 'fsdp')),
  (r'.*/head', ('fsdp', 'tensor')),
  (r'.*', ()),
)


def make_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh over all devices; one axis may be -1, which takes what is left."""
  devices = jax.devices() if devices is None else devices
  shape = [data, fsdp, tensor]
  if -1 in shape:
    rest = math.prod(n for n in shape if n != -1)
    shape[shape.index(-1)] = len(devices) // rest
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)


def path_name(path) -> str:
  """A key path as 'params/policy/embed'."""
  return '/'.join(re.sub(r"[\[\]'.]", '', str(k)) for k in path)


def matches(pattern: str, path) -> bool:
  """Whether a key path's name contains a match of `pattern`."""
  return re.search(pattern, path_name(path)) is not None


def leaf_sharding(name: str, shape, mesh: Mesh, rules=RULES) -> NamedSharding:
  """The sharding of one leaf; an axis that does not divide is not split."""
  spec = next(spec for pattern, spec in rules if re.fullmatch(pattern, name))
  fits = [
    axis if axis and size % mesh.shape[axis] == 0 else None
    for axis, size in zip(spec, shape)
  ]
  return NamedSharding(mesh, P(*fits))


def state_sharding(state, mesh: Mesh, rules=RULES):
  """A sharding for every leaf of a state, from `rules` over its path."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: leaf_sharding(path_name(path), x.shape, mesh, rules), state
  )


def zeros(shape, sharding):
  """Float32 zeros, made where they belong; `sharding` None is the default device."""
  return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=sharding)()


def write(leaf, x, index: tuple[int, ...]):
  """`leaf[index] = x` in the leaf's own buffer; each device is sent its share of x."""
  where = leaf.sharding
  if isinstance(where, NamedSharding):
    where = NamedSharding(where.mesh, P(*where.spec[len(index) :]))
  return _write(leaf, jax.device_put(x, where), index)


@functools.partial(jax.jit, donate_argnums=0)
def _write(leaf, x, index):
  return leaf.at[index].set(x)


def batch_sharding(batch, mesh: Mesh):
  """Prompts split over the data and fsdp axes; of a layout, its rows.

  What leads back from those is whole on every device.
  """

  def leaf(path, _):
    name = path_name(path)
    if 'layout' not in name:
      return NamedSharding(mesh, P(BATCH))
    leads_back = name.endswith(('back', 'piece', 'count'))
    return NamedSharding(mesh, P() if leads_back else P(None, BATCH))

  return jax.tree_util.tree_map_with_path(leaf, batch)


def shards(mesh: Mesh) -> int:
  """Into how many pieces a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def constrain(mesh: Mesh):
  """Returns `f(batch) -> batch`, which keeps every array split over prompts."""
  return lambda batch: jax.lax.with_sharding_constraint(
    batch, batch_sharding(batch, mesh)
  )


def whole_rows(mesh: Mesh):
  """Returns `f(embedding) -> embedding` with the rows [V, D] whole, for a look-up.

  From rows that are split the partitioner makes each device look up all of the batch;
  on fsdp alone, what it looks up of all is then exchanged for its own share of it.
  """
  if sum(size > 1 for size in mesh.shape.values()) < 2:
    return lambda words: words
  rows = NamedSharding(mesh, P('tensor', None))
  return lambda words: jax.lax.with_sharding_constraint(words, rows)


def host_rows(count: int, mesh: Mesh) -> slice:
  """The rows of a batch of `count` prompts that lie on this process's devices."""
  rows = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((count,))
  mine = [s.indices(count) for (s,) in rows.values()]
  return slice(min(m[0] for m in mine), max(m[1] for m in mine))


def put_batch(batch, mesh: Mesh):
  """Places a host batch, this process's rows of it, on the devices."""
  put = jax.make_array_from_process_local_data
  return jax.tree.map(
    lambda x, where: put(where, np.asarray(x)), batch, batch_sharding(batch, mesh)
  )


def compile_step(update_step, state, mesh: Mesh, rules=RULES):
  """Jits a step: state by `rules` and donated, batches as put_batch lays them."""
  placed = state_sharding(state, mesh, rules)
  return jax.jit(
    update_step,
    in_shardings=(placed, None),
    out_shardings=(placed, replicated(mesh)),
    donate_argnums=0,
  )
