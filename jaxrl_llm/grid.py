"""Many runs of one config: overrides as text, arms that resume, what came of each."""

import ast
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import config_dict

from jaxrl_llm import build, checkpoint, log, sections, train, unread, wrapped
from jaxrl_llm.types import InputError

Overrides = dict[str, str]  # A dotted path into a config -> its value as text.


def arms(swaps: Sequence[str]) -> list[Overrides]:
  """Every combination of 'path=value,value'; see `separated`.

  Raises:
    InputError: no '=', no value, the same one twice, or a bracket that stays open.
  """
  choices = []
  for swap in swaps:
    path, found, values = swap.partition('=')
    if not found or not values or not path:
      raise InputError(f'{swap!r}: write path=value,value (method.beta=0,0.04).')
    options = separated(values)
    if len({*options}) < len(options):
      raise InputError(f'{swap!r}: each value once; --seeds runs an arm again.')
    choices.append([(path.strip(' ').removeprefix('config.'), v) for v in options])
  return [dict(chosen) for chosen in itertools.product(*choices)]


def separated(text: str) -> list[str]:
  """Values between commas: one inside brackets or quotes is no separator."""
  found, depth, quote = [''], 0, ''
  for c in text:
    if quote:
      quote = '' if c == quote else quote
    elif c in '\'"':
      quote = c
    else:
      depth += (c in '([{') - (c in ')]}')
    if c == ',' and not depth and not quote:
      found.append('')
    else:
      found[-1] += c
  if depth or quote:
    raise InputError(f'{text!r}: a bracket or quote is open; a comma would be in it.')
  return [value.strip(' ') for value in found]


def every(config, overrides: Sequence[Overrides]) -> list[config_dict.ConfigDict]:
  """The config of each arm, its sections and its method checked before any runs.

  What an arm's method does not read and the config's own does (unread.py), such as a
  source's option for it, is put back to what it usually is.
  """
  mine = unread_paths(config)
  configs = [changed(config, one) for one in overrides]
  for one, arm in zip(overrides, configs):
    for path in unread_paths(arm) - mine - {*one}:
      unread.reset(arm, path)
    sections.check(arm)
    wrapped.make_method(arm)
  return configs


def unread_paths(config) -> set[str]:
  options = config.method.to_dict()
  method = build.method(options.pop('name'), **options)
  return {path for path, _ in unread.found(config, method)}


def changed(
  config: config_dict.ConfigDict, overrides: Overrides
) -> config_dict.ConfigDict:
  """A copy of the config with each path set.

  `method.name` brings that method's options, with its own defaults; what the config
  gives other values than the first method's defaults is kept where both have it.

  Raises:
    InputError: there is no such path, or the value is of another type.
  """
  config = config.copy_and_resolve_references()
  for path, text in sorted(
    overrides.items(), key=lambda item: item[0] != 'method.name'
  ):
    if path == 'method.name':
      config.method = other_method(config, text)
      continue
    *sections, key = path.split('.')
    part = config
    for name in sections:
      part = part.get(name) if isinstance(part, config_dict.ConfigDict) else None
    if not isinstance(part, config_dict.ConfigDict) or key not in part:
      raise InputError(f'config.{path}: the config has no such entry.')
    try:
      part[key] = value(text, part[key])
    except (TypeError, ValueError) as error:
      raise InputError(f'config.{path}={text}: {error}') from error
  return config


def other_method(config, name: str) -> config_dict.ConfigDict:
  """The options of a method, with those of them that the config has set.

  A default is no setting: rloo would otherwise normalise as grpo does.
  """
  found, before = build.defaults(name), build.defaults(config.method.name)
  found.update(
    {k: v for k, v in config.method.items() if k in found and v != before[k]}
    | {'name': name}
  )
  if 'max_length' in found:  # A budget in tokens, which is the source's.
    found.max_length = config.source.max_length
  return found


def value(text: str, now):
  """`text` as a value of the type of `now`."""
  if isinstance(now, str):
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
    return text[1:-1] if quoted else text
  try:
    found = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    found = text
  return float(found) if isinstance(now, float) and type(found) is int else found


def label(overrides: Overrides) -> str:
  """An arm as a word: 'beta=0.04 advantage=group_norm'."""
  return ' '.join(f'{path.split(".")[-1]}={v}' for path, v in overrides.items())


def run(config, folder: Path) -> list[dict]:
  """Trains in `folder`, or goes on there; the held-out records.

  Raises:
    InputError: it was stopped, and so should be what runs it.
  """
  train.main(config, str(folder))
  done = checkpoint.read_meta(folder)
  if not done or done['step'] < config.steps:
    raise InputError(f'{folder} was stopped. The same command goes on.')
  return curve(folder)


def curve(folder: Path) -> list[dict]:
  """Held-out records of a run, each with the completions and tokens spent so far."""
  found, rollouts, tokens = [], 0.0, 0.0
  for record in log.read_lines(folder / 'metrics.jsonl'):
    if record['split'] == 'train':
      rollouts, tokens = record.get('rollouts', 0.0), tokens + record['tokens']
    else:
      found.append(record | {'rollouts': rollouts, 'tokens': tokens})
  return found


def bootstrap(values: Sequence[float], *, draws: int = 10_000) -> tuple[float, float]:
  """The 95 % percentile interval of a mean, from resampling with a fixed seed."""
  values = np.asarray(values, float)
  rng = np.random.default_rng(0)
  means = rng.choice(values, (draws, len(values))).mean(1)
  return tuple(float(x) for x in np.quantile(means, [0.025, 0.975]))
