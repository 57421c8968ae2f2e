"""The method that a config names, with what the config wraps around it."""

from jaxrl_llm import (
  build,
  controllers,
  curriculum,
  entropy,
  forward,
  initial,
  pretraining,
  replay,
  selection,
  shapes,
  unread,
)
from jaxrl_llm.feeds import refuse_uncorrected
from jaxrl_llm.types import InputError, Method


def make_method(config) -> Method:
  """The method that config.method names, with what config wraps around it."""
  options, u, s = config.method.to_dict(), config.plan, config.source
  method = build.method(options.pop('name'), **options)
  unread.check(config, method)
  refuse_idle(config, method)
  if s.get('pool'):
    table = dict(pool=s.pool, prompts=s.prompts, ema=s.pool_ema)
    method = curriculum.tracked(method, **table)
  steered = {k: u.get(f'entropy_{k}', 0.0) for k in ('coef', 'target', 'delta')}
  if any(steered.values()):
    method = entropy.with_entropy(method, **steered)
  scale = u.get('reward_scale', 'none'), u.get('reward_bound', 0.0)
  method = controllers.with_reward_scale(selection.selected(method, u), *scale)
  method = refreshing(config, method)
  if s.get('replay'):
    method = with_replay(method, config)
  if 'pretrain' not in config:
    return method
  if 'data' in config:
    raise InputError('config.pretrain goes beside a task, not beside config.data.')
  return pretraining.with_pretraining(method, coef=config.pretrain.coef)


def refuse_idle(config, method: Method) -> None:
  """Refuses a plan or a source beside which the method would learn nothing."""
  name, u = config.method.name, config.plan
  updates = u.get('epochs', 1) * u.get('minibatches', 1)
  if config.method.get('signal') == 'loss' and updates == 1:
    raise InputError(
      f"config.method.signal='loss': with one update of a batch {name} sees a loss of "
      'exactly 0, and does nothing. Set config.plan.minibatches=4, or '
      "config.method.signal='reward'."
    )
  if 'gdro_passed' in method.extra and config.source.name == 'until_mixed':
    raise InputError(
      f"config.source.name='until_mixed' shows {name} only mixed groups, and every "
      "prompt would count as solved. Set it to 'on_policy'."
    )


def refreshing(config, method: Method) -> Method:
  """The method with the reference moved, where config.plan.refresh says so."""
  u = config.plan
  if not (every := u.get('refresh', 0)):
    return method
  if initial.lora(config.model) or 'ref' not in forward.networks(method)['frozen']:
    raise InputError(
      'config.plan.refresh moves a reference that is a copy of the policy. With LoRA '
      f'it is the base, and {config.method.name} may have none: set refresh=0.'
    )
  return controllers.refreshed(method, every=every, share=u.get('refresh_share', 1.0))


def with_replay(method: Method, config) -> Method:
  """The method, keeping what config.source.replay draws from (replay.py)."""
  s = config.source
  other = [k for k in ('hints', 'pool', 'mixture') if s.get(k)]
  other += [k for k in ('data', 'pretrain') if k in config]
  if other or s.name not in ('on_policy', 'until_mixed'):
    raise InputError(
      f"config.source.replay takes name='on_policy' or 'until_mixed', not {s.name!r}, "
      f'and neither hints, pool, mixture, data nor pretrain; there is {other}.'
    )
  refuse_uncorrected(config, 'replay')
  extra = {
    k: x for k, x in shapes.told(config).items() if k not in ('answer', 'replayed')
  }
  like = shapes.widest(s, extra)
  return replay.remembered(method, like, size=s.replay_size, fresh=s.prompts)
