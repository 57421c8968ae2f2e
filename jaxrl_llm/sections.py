"""What a config must have, checked before anything is built from it."""

from jaxrl_llm import episodes, ranges
from jaxrl_llm.rollout import draw
from jaxrl_llm.types import InputError

# What every config has, by section; the rest belongs to the functions it names.
SECTIONS = {
  '': ('name', 'seed', 'steps'),
  'model': ('name', 'dtype', 'remat'),
  'method': ('name',),
  'optimizer': (),
  'plan': ('epochs', 'minibatches', 'microbatches'),
  'mesh': ('data', 'fsdp', 'tensor'),
  'source': ('name', 'prompts', 'max_prompt', 'max_length'),
  'evaluation': ('every', 'batch'),
  'log': ('samples_every', 'tensorboard', 'wandb'),
  'checkpoint': ('every', 'keep'),
}
SAMPLED = {'source': ('group', 'temperature'), 'task': ('name',), 'rewards': ()}
STORED = {'data': ('name',)}
POSITIVE = (
  'steps',
  'plan.epochs',
  'plan.minibatches',
  'plan.microbatches',
  'plan.pack_rows',
  'source.prompts',
  'source.group',
  'source.max_prompt',
  'source.max_length',
  'source.limit',
  'source.turns',
  'evaluation.batch',
  'checkpoint.keep',
)
NOT_NEGATIVE = (
  'plan.pack',
  'plan.refresh',
  'source.bucket',
  'source.slots',
  'source.turn_length',
  'source.hints',
  'source.pool',
  'source.replay',
  'source.replay_size',
  'safety.size',
  'model.lora.rank',
)
SHARES = ('source.hints_after', 'source.pool_ema', 'source.pool_floor')
SHARES += ('plan.refresh_share',)
NUMBERS = {
  **dict.fromkeys(SHARES, ranges.SHARE),
  **dict.fromkeys(('plan.reward_bound', 'plan.kl_cov_coef'), ranges.NOT_NEGATIVE),
}


def check(config) -> None:
  """Refuses a config that lacks a part, or has a number where it does not fit."""
  wanted = [SECTIONS, STORED if 'data' in config else SAMPLED]
  if config.get('source', {}).get('name') == 'until_mixed':
    wanted.append({'source': ('limit',)})
  if config.get('source', {}).get('name') in episodes.SOURCES:
    wanted.append({'source': ('turns', 'turn_length')})
  for section, keys in ((s, k) for table in wanted for s, k in table.items()):
    part = config if not section else config.get(section)
    if part is None:
      raise InputError(f'config.{section} is missing; see jaxrl_llm/default_config.py.')
    if missing := [k for k in keys if part.get(k) is None]:
      raise InputError(f'config.{section or "?"} lacks {missing}; set them.')
  for least, paths in ((1, POSITIVE), (0, NOT_NEGATIVE)):
    for path in paths:
      *section, key = path.split('.')
      part = config
      for name in section:
        part = part.get(name, {})
      if key in part and not (isinstance(part[key], int) and part[key] >= least):
        raise InputError(
          f'config.{path}={part[key]!r}; give an integer of at least {least}.'
        )
  for path, allowed in NUMBERS.items():
    section, key = path.split('.')
    ranges.check(f'config.{path}', config.get(section, {}).get(key), allowed)
  check_safety(config)
  source = config.get('source', {})
  draw.check('config.source: ', **draw.truncation(source))
  if not (warmth := source.get('temperature', 1.0)) > 0:
    raise InputError(
      f'config.source.temperature={warmth!r}; training divides by it, so give a number '
      'above 0.'
    )


def check_safety(config) -> None:
  """Refuses a safety test of a run that has nothing to test, or never looks."""
  if not (test := config.get('safety', {})).get('size', 0):
    return
  if 'data' in config or not config.get('costs') or not config.evaluation.every > 0:
    raise InputError(
      'config.safety tests the costs of fresh completions at the last evaluation: it '
      'takes a task, config.costs and config.evaluation.every above 0.'
    )
  if not 0 < test.delta < 1:
    raise InputError(
      f'config.safety.delta={test.delta!r}; give a number between 0 and 1, such as 0.1.'
    )
