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
  reference,
  sections,
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
  decoders = make_decoders(config, model, mesh, adapters)
  see = forward.make_forward(decoders)
  u = config.plan
  total = config.steps * u.epochs * u.minibatches
  tx, rates = make_optimizer(config, method, total)
  needed = roles(config, method)
  state = initial.state(
    model,
    needed,
    tx,
    mesh,
    lora=adapters,
    others=other_models(config, model, needed['frozen']),
    extra=method.extra,
    seed=config.seed,
  )
  update_step = step.make_update_step(
    see,
    tx,
    method,
    **{k: u[k] for k in ('epochs', 'minibatches', 'microbatches')},
    importance=make_importance(config),
    trust_sampler=u.get('trust_sampler', False),
    constrain=sharding.constrain(mesh),
  )
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


def make_method(config) -> Method:
  """The method that config.method names, with config.plan's entropy bonus and the pass
  rates that config.source draws by.
  """
  options, u, s = config.method.to_dict(), config.plan, config.source
  method = build.method(options.pop('name'), **options)
  if s.get('pool'):
    table = dict(pool=s.pool, prompts=s.prompts, ema=s.pool_ema)
    method = curriculum.tracked(method, **table)
  if not (coef := u.get('entropy_coef', 0.0)):
    return method
  target, delta = u.get('entropy_target', 0.0), u.get('entropy_delta', 0.0)
  return entropy.with_entropy(method, coef=coef, target=target, delta=delta)


def make_importance(config):
  """config.plan.importance, a function of ops/importance.py, with its cap; or None."""
  name, cap = config.plan.get('importance'), config.plan.get('importance_cap', 2.0)
  if not name:
    return None
  if not cap >= 1:
    raise InputError(f'config.plan.importance_cap={cap!r}; give at least 1.')
  table = {'token': importance.token, 'sequence': importance.sequence}
  return functools.partial(choose(table, name, 'config.plan.importance'), cap=cap)


def make_decoders(config, model, mesh, adapters) -> dict[str, Decoder]:
  """A network for every role."""
  dtype = choose(DTYPES, config.model.dtype, 'config.model.dtype')
  choose(REMAT, config.model.remat, 'config.model.remat')
  return {
    s.role: Decoder(
      model.config,
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
  need = config.source.max_prompt + config.source.max_length
  if need > model.config.max_positions:
    raise InputError(
      f'config.source: max_prompt + max_length = {need} exceeds the window of '
      f'{config.model.name}, {model.config.max_positions} tokens.'
    )
  decode = lambda ids: model.tokenizer.decode(ids, skip_special_tokens=True)
  encode = lambda messages: pretrained.encode_chat(model.tokenizer, messages)
  return sources.Text(encode, decode, config.source.max_prompt)


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
    if found[role].config != model.config:
      raise InputError(
        f'config.model.{role}={name}: another architecture than {config.model.name}.'
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
  )
