"""What a config sets and nothing of its run reads: a flag that would do nothing."""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from jaxrl_llm import default_config, forward
from jaxrl_llm.data.fitting import PAIRED
from jaxrl_llm.rollout import trees
from jaxrl_llm.types import InputError, Method

# An option, and those that count where it is set.
UNDER = {
  'source.pair': ('source.margin',),
  'source.hints': ('source.hints_after',),
  'source.pool': ('source.pool_floor', 'source.pool_ema'),
  'source.replay': ('source.replay_size',),
  'source.rewriter': ('source.rewriter_tau',),
  'source.tree.share': tuple(f'source.tree.{k}' for k in trees.Growth._fields),
  'plan.importance': ('plan.importance_low', 'plan.importance_cap'),
  'plan.refresh': ('plan.refresh_share',),
  'plan.clip_cov': ('plan.clip_cov_low', 'plan.clip_cov_high'),
  'plan.kl_cov': ('plan.kl_cov_coef',),
  'plan.pack': ('plan.pack_rows',),
}
# What a source is asked to say, and the name in Method.reads of who wants to know.
SAID = {
  'source.greedy': 'greedy_reward',
  'source.anchor': 'anchor_reward',
  'source.steps': 'step_reward',
  'source.rewriter': 'step_reward',
  'source.answer': 'answer',
  'source.verdict': 'verdict',
  'source.mixture': 'opponent',
  'source.accuracy': 'accuracy',
  'judge': 'duel',
}
# They read which completion is the better one, or none: not how large a reward is.
ORDERED = (*PAIRED, 'sft', 'ift')
SCALES = {'plan.reward_scale': 'none', 'plan.reward_bound': 0.0}  # As they are off.
SOURCES = ('source.hints', 'source.pool')  # These too ask what is right.


def check(config, method: Method) -> None:
  """Refuses what `found` finds."""
  for path, why in found(config, method):
    raise InputError(f'config.{path} is set and nothing reads it: {why}. Unset it.')


def idle(config) -> list[str]:
  """A line of each option that is set under another that is off: one flag is enough to
  leave a part of a config out.
  """
  usual = defaults()
  off = {f'{main} is off': UNDER[main] for main in UNDER if not get(config, main)}
  if get(config, 'source.name') != 'until_mixed':
    off["source.name is not 'until_mixed'"] = ('source.limit',)
  return [
    f'config.{path} is set and counts for nothing: config.{why}.'
    for why, rest in off.items()
    for path in rest
    if plain(get(config, path)) not in (None, plain(get(usual, path)))
  ]


def plain(value: Any) -> Any:
  """Lists, such as those of a saved config, as tuples."""
  if isinstance(value, list | tuple):
    return tuple(map(plain, value))
  return value


def found(config, method: Method) -> Iterator[tuple[str, str]]:
  """Options that are set, in dotted paths, and nothing reads, each with the reason."""
  name, mixed = config.method.name, get(config, 'source.name') == 'until_mixed'
  for path, wanted in SAID.items():
    also = path == 'source.accuracy' and (mixed or any(get(config, p) for p in SOURCES))
    if get(config, path) and wanted not in method.reads and not also:
      yield path, f'{name} does not ask for it (Method.reads)'
  if name in ORDERED and not config.method.get('temperature'):
    for path, off in SCALES.items():
      if (get(config, path) or off) != off:
        yield path, f'{name} learns the same from rewards of any size'
  frozen = forward.networks(method)['frozen']
  for role in ('ref', 'dpo', 'teacher'):
    if get(config, f'model.{role}') and role not in frozen:
      yield f'model.{role}', f'{name}, as it is set, has no such model'


def reset(config, path: str) -> None:
  """Puts an option back to what it usually is."""
  section, _, key = path.rpartition('.')
  if not section:
    del config[path]
  else:
    get(config, section)[key] = get(defaults(), path)


def defaults() -> config_dict.ConfigDict:
  """What the options of a sampling run usually are."""
  c = default_config.default_config('', 'grpo')
  c.source = default_config.sampled(1, 1, 1, 1)
  return c


def get(config, path: str) -> Any:
  """config.<path>, or None where there is no such entry."""
  for name in path.split('.'):
    config = config.get(name) if isinstance(config, config_dict.ConfigDict) else None
  return config
