"""From names in a config to functions. The import system is the registry.

A name is a file of the package (`grpo` is jaxrl_llm.methods.grpo.grpo) or a dotted path
to anything importable (`my_package.mine`). Options are checked against the function's
own signature, so a config has no schema of its own to go stale.
"""

import ast
import difflib
import functools
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import jax
import optax
from ml_collections import config_dict

from jaxrl_llm import ranges, sharding
from jaxrl_llm.types import InputError, Method

# Which module an option draws its function from.
NAMESPACES = {
  'advantage': 'jaxrl_llm.ops.advantages',
  'estimate': 'jaxrl_llm.ops.advantages',
  'aggregate': 'jaxrl_llm.ops.weights',
  'kl': 'jaxrl_llm.ops.kl',
  'judge': 'jaxrl_llm.ops.preferences',
  'ties': 'jaxrl_llm.ops.preferences',
  'loss': 'jaxrl_llm.ops.pair_losses',
  'link': 'jaxrl_llm.ops.links',
}


def method(name: str, **options) -> Method:
  """`method('grpo', kl='k3', beta=0.04)` calls `methods.grpo.grpo(kl=k3, ...)`."""
  options = {
    k: function(NAMESPACES[k], v, f'config.method.{k}') if k in NAMESPACES else v
    for k, v in options.items()
  }
  factory = find('jaxrl_llm.methods', name, 'config.method.name')
  where = f'config.method ({name})'
  if '.' not in name:  # What a file of one's own calls beta is its own affair.
    ranges.check_method(name, options, where)
  for key, module in NAMESPACES.items():
    called = options.get(key)
    if isinstance(called, functools.partial) and called.func.__module__ == module:
      ranges.check_method(called.func.__name__, called.keywords, f'{where}: {key}')
  return call(factory, options, where)


def defaults(name: str, package: str = 'methods') -> config_dict.ConfigDict:
  """A function's options as a config: plain data, from its signature."""
  found = {'name': name}
  for key, p in signature(
    find(f'jaxrl_llm.{package}', name, package.removesuffix('s'))
  ).items():
    value = p.default
    if value is inspect.Parameter.empty:
      value = config_dict.placeholder(p.annotation)
    found[key] = value.__name__ if callable(value) else value
  return config_dict.ConfigDict(found)


def function(module: str, value: Any, where: str):
  """A function from its name, from {'name': ..., option: ...}, or as it is."""
  if callable(value):
    return value
  value = spelled(value, where) if isinstance(value, str) else value
  if not isinstance(value, dict) or 'name' not in value:
    raise InputError(
      f"{where}={value!r}; give a name, 'name(option=value)' or "
      "{'name': ..., option: ...}."
    )
  options = {k: v for k, v in value.items() if k != 'name'}
  fn = attribute(module, value['name'], where)
  check_options(fn, options, where)
  for key, p in signature(fn).items():
    keyword = p.kind is inspect.Parameter.KEYWORD_ONLY
    if keyword and p.default is inspect.Parameter.empty and key not in options:
      raise InputError(
        f'{where}: {value["name"]} needs {key}; write {value["name"]}({key}=...).'
      )
  return functools.partial(fn, **options) if options else fn


def spelled(text: str, where: str) -> dict[str, Any]:
  """'group_norm(ddof=1)' as {'name': 'group_norm', 'ddof': 1}; a bare name too."""
  name, bracket, rest = text.partition('(')
  if not bracket:
    return {'name': text}
  try:
    call = ast.parse(text, mode='eval').body
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    if call.args or not rest.endswith(')'):
      raise ValueError('options are name=value')
  except (SyntaxError, ValueError, AttributeError) as e:
    raise InputError(f"{where}={text!r}: write 'name(option=value)' ({e}).") from e
  return {'name': name, **options}


def attribute(module: str, name: str, where: str):
  """`name` in `module`, or a dotted path; unknown names list the near ones."""
  if '.' in name:
    module, name = name.rsplit('.', 1)
  try:
    space = importlib.import_module(module)
  except (ImportError, SyntaxError) as e:
    raise InputError(f'{where}: cannot import {module!r} ({e}).') from e
  if not hasattr(space, name):
    public = [n for n, f in vars(space).items() if inspect.isfunction(f)]
    raise InputError(f'{where}: {module} has no {name!r}. {near(name, public)}')
  return getattr(space, name)


def find(package: str, name: str, where: str):
  """`package.name.name`, or a dotted path: the function a config names."""
  if '.' in name:
    return attribute(package, name, where)
  modules = list(pkgutil.iter_modules(importlib.import_module(package).__path__))
  if name in [m.name for m in modules]:
    found = importlib.import_module(f'{package}.{name}')
    if hasattr(found, name):
      return getattr(found, name)
  names = [
    m.name
    for m in modules
    if f'def {m.name}(' in (Path(m.module_finder.path) / f'{m.name}.py').read_text()
  ]
  raise InputError(f'{where}: no {name!r} in {package}. {near(name, names)}')


def made(package: str, options: dict[str, Any], where: str):
  """What a section of a config describes: {name: a factory of `package`, options}."""
  options = dict(options)
  name = options.pop('name')
  return call(find(package, name, f'{where}.name'), options, f'{where} ({name})')


def near(name: str, names) -> str:
  """A hint for a typo."""
  close = difflib.get_close_matches(name, names, 1)
  return (
    f'Did you mean {close[0]!r}? ' if close else ''
  ) + f'There are {sorted(names)}.'


def signature(fn) -> dict[str, inspect.Parameter]:
  return dict(inspect.signature(fn).parameters)


def check_options(fn, options: dict[str, Any], where: str) -> None:
  """Unknown and mistyped options are InputErrors."""
  known = signature(fn)
  for key, value in options.items():
    if key not in known:
      raise InputError(f'{where}: no option {key!r}. {near(key, known)}')
    kind = known[key].annotation
    fits = (int, float) if kind is float else kind
    plain = kind in (float, int, bool, str)
    if plain and value is None:
      raise InputError(f'{where}: {key} is not set; give it a value.')
    if plain and (
      not isinstance(value, fits) or isinstance(value, bool) > (kind is bool)
    ):
      raise InputError(f'{where}: {key}={value!r} should be of type {kind.__name__}.')


def call(fn, options: dict[str, Any], where: str):
  """Calls a factory; unknown, missing and mistyped options are InputErrors."""
  check_options(fn, options, where)
  empty = inspect.Parameter.empty
  missing = [
    k for k, p in signature(fn).items() if p.default is empty and k not in options
  ]
  if missing:
    raise InputError(f'{where}: option {missing[0]!r} has no default; set it.')
  return fn(**options)


def schedule(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  decay: str = 'constant',
  total_steps: int = 0,
  final: float = 0.0,
):
  """Update count (from 0) to learning rate.

  Warm-up is linear and its first update is not zero: update i has (i + 1) /
  warmup_steps of the rate. `decay` is 'constant', 'linear' or 'cosine', down to
  `final` times the rate at `total_steps`.
  """
  shapes = {
    'constant': optax.constant_schedule(1.0),
    'linear': optax.linear_schedule(1.0, final, max(total_steps - warmup_steps, 1)),
    'cosine': optax.cosine_decay_schedule(
      1.0, max(total_steps - warmup_steps, 1), final
    ),
  }
  if decay not in shapes:
    raise InputError(f'config.optimizer: decay={decay!r}. {near(decay, shapes)}')

  def rate(count):
    warm = jax.numpy.minimum(1.0, (count + 1) / max(warmup_steps, 1))
    past = jax.numpy.maximum(count - warmup_steps, 0)
    return learning_rate * warm * shapes[decay](past)

  return rate


def optimizer(config: dict[str, dict], total_updates: int):
  """One optax optimizer per role, partitioned over `params`.

  Args:
    config: role -> {name: an optax name, learning_rate, warmup_steps, decay, final,
      clip: global norm or 0, no_decay: leaves that weight decay spares (a regular
      expression over 'layers/q' and the like), options: the optimizer's own}.
    total_updates: optimizer updates of the whole run, for the schedules.

  Returns:
    The transformation, and each role's schedule for the log.
  """
  rates = {}
  for role, c in config.items():
    keys = ('learning_rate', 'warmup_steps', 'decay', 'final')
    options = {k: c[k] for k in keys if k in c} | {'total_steps': total_updates}
    rates[role] = call(schedule, options, f'config.optimizer.{role}')
  parts = {role: one_optimizer(role, c, rates[role]) for role, c in config.items()}
  return optax.partition(parts, {role: role for role in config}), rates


def one_optimizer(role: str, c: dict, rate) -> optax.GradientTransformation:
  """A role's clipping and optimizer; `options` go to the optax function as they are."""
  where = f'config.optimizer.{role}'
  factory = attribute('optax', c['name'], where)
  options = dict(c.get('options', {})) | {'learning_rate': rate}
  if options.get('weight_decay') and c.get('no_decay'):
    options['mask'] = functools.partial(decay_mask, pattern=c['no_decay'])
  tx = call(factory, options, where)
  return optax.chain(optax.clip_by_global_norm(c['clip']), tx) if c.get('clip') else tx


def decay_mask(params, pattern: str):
  """True for the leaves that weight decay shrinks: those whose path has no match."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not sharding.matches(pattern, path), params
  )
