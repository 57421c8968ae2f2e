"""Models merged weight by weight: soups, arcs, task vectors, and steps beyond.

Each function maps trees of one shape to a tree. Where a config or a script names a
model, such a call may stand (`named`), its models by name in turn:

  average(models=('a', 'b'), shares=(0.5, 0.5))

As the reference (config.model.ref) that is SALSA (2024),
https://arxiv.org/abs/2411.01798; as the policy's start (config.model.name), of an
instruction-tuned model, a reasoning one and their base, BAI (2025),
https://arxiv.org/abs/2509.00309, whose shares are not known to us.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrl_llm import build, sharding
from jaxrl_llm.types import Array, InputError, Params


def average(trees: Sequence[Params], *, shares: Sequence[float] = ()) -> Params:
  """sum_i share_i tree_i, the shares divided by their sum; without any all alike."""
  shares = shares or (1.0,) * len(trees)
  if len(shares) != len(trees) or not sum(shares):
    raise InputError(
      f'average: shares={shares} for {len(trees)} models; one for each is due, and not '
      'a sum of 0.'
    )
  total = sum(shares)
  return joined(lambda *x: sum(s / total * y for s, y in zip(shares, x)), *trees)


def slerp(trees: Sequence[Params], *, share: float = 0.5) -> Params:
  """From the first to the second along the arc between them, tensor by tensor.

  A stack of layers counts as so many tensors. Parallel ones are averaged.
  """
  size(trees, 2, 'slerp')
  check_alike(*trees)
  return jax.tree_util.tree_map_with_path(
    lambda path, x, y: arc(x, y, share, sharding.path_name(path)), *trees
  )


def task_vectors(trees: Sequence[Params], *, scales: Sequence[float]) -> Params:
  """base + sum_i scale_i (tree_i - base), the first tree being the base."""
  size(trees, len(scales) + 1, f'task_vectors with scales={scales}')
  moved = lambda base, *x: base + sum(s * (y - base) for s, y in zip(scales, x))
  return joined(moved, *trees)


def extrapolate(trees: Sequence[Params], *, alpha: float) -> Params:
  """new + alpha (new - old), of (new, old): a step beyond the newer one.

  Between rounds of preference optimisation it is accelerated preference optimisation
  (He et al., 2024), https://arxiv.org/abs/2410.06293. Experimental: the paper's own
  formula and alpha were not at hand. On a softmax table it is the policy
  new (new / old)^alpha, up to a factor.
  """
  size(trees, 2, 'extrapolate')
  return joined(lambda new, old: new + alpha * (new - old), *trees)


# ---- By name -------------------------------------------------------------------------


def named(text: str, load: Callable):
  """The model that a call says, its parameters merged when they are asked for.

  Args:
    text: 'average(models=(...), shares=(...))' or another function of this file.
    load: a name to a models.pretrained.Pretrained.

  Raises:
    InputError: there is no such function, or the models are not of one architecture
      and vocabulary.
  """
  options = build.spelled(text, 'a merged model')
  names = options.pop('models', ())
  if isinstance(names, str) or not names:
    raise InputError(f'{text}: give models=(...), a name each.')
  merge = build.function(__name__, options, text)
  models = [load(name) for name in names]
  for name, model in zip(names, models):
    same = lambda x: (x.config, x.tokenizer.get_vocab())
    if same(model) != same(models[0]):
      raise InputError(
        f'{text}: {name} is of another architecture or vocabulary than {names[0]}.'
      )
  return models[0]._replace(
    params=lambda *place: merge([model.params(*place) for model in models])
  )


# ---- Pieces --------------------------------------------------------------------------


def size(trees: Sequence[Params], due: int, what: str) -> None:
  """Refuses another number of trees."""
  if len(trees) != due:
    raise InputError(f'{what}: it takes {due} models, not {len(trees)}.')


def joined(fn: Callable, *trees: Params) -> Params:
  """`fn` of the leaves of trees that are alike."""
  check_alike(*trees)
  return jax.tree.map(fn, *trees)


def check_alike(*trees: Params) -> None:
  """Refuses trees of other shapes, and names a leaf."""
  shapes = [
    {sharding.path_name(path): x.shape for path, x in leaves}
    for leaves in map(jax.tree_util.tree_leaves_with_path, trees)
  ]
  for other in shapes[1:]:
    for path in sorted({*shapes[0], *other}):
      if (found := [s.get(path) for s in (shapes[0], other)])[0] != found[1]:
        raise InputError(
          f'Models to merge differ in {path}: {found[0]} and {found[1]}. Take models '
          'of one architecture.'
        )


def arc(x: Array, y: Array, share: float, path: str) -> Array:
  """The point at `share` of the arc from x to y."""
  axes = tuple(range(path.startswith('layers/'), x.ndim))
  inner = lambda a, b: jnp.sum(a * b, axes, keepdims=True)
  product = jnp.sqrt(inner(x, x) * inner(y, y))
  cosine = inner(x, y) / jnp.where(product > 0, product, 1.0)
  straight = (jnp.abs(cosine) > 1 - 1e-6) | (product == 0)
  angle = jnp.arccos(jnp.where(straight, 0.0, cosine))
  weight = lambda s: jnp.where(straight, s, jnp.sin(s * angle) / jnp.sin(angle))
  return weight(1 - share) * x + weight(share) * y
