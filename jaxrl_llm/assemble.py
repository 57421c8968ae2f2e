"""From a config to the parts of a run. Below this file nobody sees a config."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import (
  asking,
  build,
  curriculum,
  entropy,
  feeds,
  forward,
  initial,
  pretraining,
  reference,
  sections,
  selection,
  sharding,
  sources,
  step,
  types,
)
from jaxrl_llm.data.examples import Data
from jaxrl_llm.evaluate import held_out
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import REMAT, Decoder
from jaxrl_llm.ops import importance
from jaxrl_llm.rollout import draw
from jaxrl_llm.types import InputError, Method, State

BAND = {'low': 0.5, 'cap': 2.0}  # Of importance weights.
IMPORTANCE = {
  name: vars(importance)[name]
  for name in ('token', 'sequence', 'icepop', 'mis', 'geometric')
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Run(NamedTuple):
  """The parts of a run, ready to loop."""

  state: State
  update: Callable[[State, Any], tuple[State, dict]]
  source: sources.Source
  evaluate: Callable[[State], held_out.Held]
  data: Data  # Its digest and report; of a task nothing else.
  scores: reference.Scores | None  # To fill before the first batch.
  rates: dict[str, Callable]  # Role -> learning-rate schedule, for the log.
  mesh: jax.sharding.Mesh
  model: pretrained.Pretrained


def assemble(config) -> Run:
  """Every part of a run. Mistakes in the config are InputErrors."""
  sections.check(config)
  method = make_method(config)
  model = pretrained.load(config.model.name)
  mesh = make_mesh(config)
  text = make_text(config, model)
  adapters = initial.lora(config.model)
  needed = roles(config, method)
  others = other_models(config, model, needed['frozen'])
  decoders = make_decoders(config, model, others, mesh, adapters)
  see = forward.make_forward(decoders)
  u = config.plan
  total = config.steps * u.epochs * u.minibatches
  tx, rates = make_optimizer(config, method, total)
  state = initial.state(
    model,
    needed,
    tx,
    mesh,
    lora=adapters,
    others=others,
    extra=method.extra,
    seed=config.seed,
  )
  update_step = planned_step(see, tx, method, config, mesh)
  update = sharding.compile_step(update_step, state, mesh)
  if 'data' in config:
    feed = feeds.completions(config, see, method, model, mesh)
  else:
    several = config.source.name in asking.EPISODES
    make = asking.conversations if several else asking.questions
    feed = make(config, decoders['policy'], model, text, mesh)
  feed = feed._replace(source=feeds.laid_out(feed.source, config, mesh))
  jax.eval_shape(update_step, state, specimen(config, feed, state))
  told = (feed.source, feed.evaluate, feed.data, feed.scores)
  return Run(state, update, *told, rates, mesh, model)


def planned_step(see, tx, method: Method, config, mesh):
  """The update step, as config.plan has it."""
  u = config.plan
  return step.make_update_step(
    see,
    tx,
    method,
    **{k: u[k] for k in ('epochs', 'minibatches', 'microbatches')},
    importance=make_importance(config),
    trust_sampler=u.get('trust_sampler', False),
    constrain=sharding.constrain(mesh),
  )


def make_method(config) -> Method:
  """The method that config.method names, with what config wraps around it."""
  options, u, s = config.method.to_dict(), config.plan, config.source
  method = build.method(options.pop('name'), **options)
  if s.get('pool'):
    table = dict(pool=s.pool, prompts=s.prompts, ema=s.pool_ema)
    method = curriculum.tracked(method, **table)
  if coef := u.get('entropy_coef', 0.0):
    target, delta = u.get('entropy_target', 0.0), u.get('entropy_delta', 0.0)
    method = entropy.with_entropy(method, coef=coef, target=target, delta=delta)
  method = select_tokens(method, u)
  if 'pretrain' not in config:
    return method
  if 'data' in config:
    raise InputError('config.pretrain goes beside a task, not beside config.data.')
  return pretraining.with_pretraining(method, coef=config.pretrain.coef)


def select_tokens(method: Method, plan) -> Method:
  """The method with what config.plan says of single tokens (selection.py)."""
  if share := plan.get('clip_cov', 0.0):
    low, high = plan.get('clip_cov_low', 1.0), plan.get('clip_cov_high', 5.0)
    method = selection.with_clip_cov(method, share=share, low=low, high=high)
  if share := plan.get('kl_cov', 0.0):
    coef = plan.get('kl_cov_coef', 0.1)
    method = selection.with_kl_cov(method, share=share, coef=coef)
  if (share := plan.get('top_entropy', 1.0)) != 1:
    method = selection.with_top_entropy(method, share=share)
  return method


def make_importance(config):
  """config.plan.importance, a function of ops/importance.py, with its band; or None."""
  if not (name := config.plan.get('importance')):
    return None
  low, cap = (config.plan.get(f'importance_{k}', x) for k, x in BAND.items())
  if not 0 <= low <= 1 <= cap:
    raise InputError(
      f'config.plan: importance_low={low!r} and importance_cap={cap!r}; give the first '
      'from 0 to 1 and the second at least 1.'
    )
  fn = choose(IMPORTANCE, name, 'config.plan.importance')
  band = {'low': low, 'cap': cap}
  return functools.partial(fn, **{k: band[k] for k in band if k in build.signature(fn)})


def make_decoders(config, model, others, mesh, adapters) -> dict[str, Decoder]:
  """A network for every role."""
  dtype = choose(DTYPES, config.model.dtype, 'config.model.dtype')
  choose(REMAT, config.model.remat, 'config.model.remat')
  return {
    s.role: Decoder(
      others.get(s.role, model).config,
      dtype,
      config.model.remat,
      scores=int(s.role in initial.SCORED),
      spread=sharding.constrain(mesh),
      lora=adapters if s.tree == 'params' or s.role in initial.ADAPTED else None,
    )
    for s in forward.SENSORS.values()
  }


def choose(table: dict, name: str, where: str):
  """table[name], or an InputError that lists the names."""
  if name not in table:
    raise InputError(f'{where}={name!r}. {build.near(name, table)}')
  return table[name]


def make_mesh(config) -> jax.sharding.Mesh:
  """The devices of a run, over which the prompts must divide."""
  axes, count = config.mesh.to_dict(), jax.device_count()
  try:
    mesh = sharding.make_mesh(**axes)
  except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
    raise InputError(
      f'config.mesh={axes} does not fit {count} devices. The product of the three is '
      'at most that; one may be -1 and takes what is left.'
    ) from error
  check_divides('config.source.prompts', config.source.prompts, mesh)
  return mesh


def check_divides(what: str, size: int, mesh) -> None:
  shards = sharding.shards(mesh)
  if size % shards:
    raise InputError(
      f'{what} are {size}, which do not divide over {shards} devices. Change that, or '
      'config.mesh.'
    )


def make_text(config, model) -> sources.Text:
  """The tokenizer as functions; prompt and completion must fit the model's window."""
  check_window(config, config.model.name, model)
  decode = lambda ids: model.tokenizer.decode(ids, skip_special_tokens=True)
  encode = lambda messages: pretrained.encode_chat(model.tokenizer, messages)
  return sources.Text(encode, decode, config.source.max_prompt)


def check_window(config, name: str, model) -> None:
  """Refuses rows longer than a model may see."""
  need = config.source.max_prompt + config.source.max_length
  if need > model.config.max_positions:
    raise InputError(
      f'config.source: max_prompt + max_length = {need} exceeds the window of '
      f'{name}, {model.config.max_positions} tokens.'
    )


# ---- The optimizer -------------------------------------------------------------------


def all_needs(method: Method) -> tuple[str, ...]:
  return (*method.needs, *method.prepare_needs, *method.measure_needs)


def roles(config, method: Method) -> dict[str, set[str]]:
  """The networks of a run: no reference where its log-probs are read from a file."""
  needs = all_needs(method)
  if not config.source.get('cache_reference'):
    return forward.roles(needs)
  if 'data' not in config or 'ref_logp' not in needs or 'aux/ref_logp' in needs:
    raise InputError(
      f'config.source.cache_reference: {config.method.name} has no reference whose '
      'log-probs of the stored completions are all it takes. Set it to False.'
    )
  return forward.roles(n for n in needs if n != 'ref_logp')


def other_models(config, model, frozen) -> dict[str, pretrained.Pretrained]:
  """The models of frozen roles that are not the policy at its birth."""
  found = {}
  for role in sorted(frozen - {*initial.BORN}):
    if not (name := config.model.get(role)):
      raise InputError(
        f'{config.method.name} needs config.model.{role}, a model by name or folder '
        '(experiments/export.py makes one of a run).'
      )
    found[role] = pretrained.load(name)
    check_window(config, name, found[role])
    words = lambda x: (x.config.vocab, x.tokenizer.get_vocab())
    if words(found[role]) != words(model):
      raise InputError(
        f'config.model.{role}={name}: another vocabulary than {config.model.name}.'
      )
  return found


def make_optimizer(config, method: Method, total_updates: int):
  """An optimizer for every trained role; each needs its entry in config.optimizer."""
  trained = forward.roles(all_needs(method))['params']
  if missing := trained - set(config.optimizer):
    raise InputError(
      f'Method {config.method.name} trains {sorted(trained)}; config.optimizer lacks '
      f'{sorted(missing)}.'
    )
  chosen = {role: config.optimizer[role].to_dict() for role in sorted(trained)}
  return build.optimizer(chosen, total_updates)


def specimen(config, feed: feeds.Feed, state: State) -> types.Batch:
  """A batch of the shapes to come: a step is checked before any model runs."""
  s, u = config.source, config.plan
  if 'data' in config:
    return feed.source(state, 0).batch
  shape = (s.prompts, s.group, s.max_length)
  zeros, full = np.zeros(shape, np.float32), np.full(shape[:2], s.max_length, np.int32)
  batch = types.make_batch(
    np.zeros((s.prompts, s.max_prompt), np.int32),
    np.full(s.prompts, s.max_prompt, np.int32),
    zeros.astype(np.int32),
    full,
  )
  order = np.zeros((s.prompts, u.epochs), np.int32) if u.minibatches > 1 else None
  how = draw.options(1, max_length=1, **draw.truncation(s))
  return batch.replace(
    reward=zeros[..., 0],
    behavior_logp=zeros,
    kept_mass=zeros if draw.truncates(how).any() else None,
    order=order,
    extra=feed.extra,
    aux=feed.aux(state, 0).batch if feed.aux else None,
  )
