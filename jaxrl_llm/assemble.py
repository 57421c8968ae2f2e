"""From a config to the parts of a run. Below this file nobody sees a config."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from jaxrl_llm import (
  ahead,
  asking,
  build,
  episodes,
  feeds,
  forward,
  initial,
  reference,
  sections,
  shapes,
  sharding,
  sources,
  step,
  types,
  unread,
  wrapped,
)
from jaxrl_llm.data import chat
from jaxrl_llm.data.examples import Data
from jaxrl_llm.evaluate import held_out
from jaxrl_llm.models import lora, pretrained
from jaxrl_llm.models.decoder import DTYPES, REMAT, Decoder
from jaxrl_llm.ops import importance
from jaxrl_llm.types import InputError, Method, State

BAND = {'low': 0.5, 'cap': 2.0}  # Of importance weights.
IMPORTANCE = {
  name: vars(importance)[name]
  for name in ('token', 'sequence', 'icepop', 'mis', 'geometric')
}


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
  safety: Callable[[State], dict[str, float]] | None = None  # Of the last policy.


def assemble(config) -> Run:
  """Every part of a run. Mistakes in the config are InputErrors."""
  sections.check(config)
  method = wrapped.make_method(config)
  model = pretrained.configured(config.model)
  mesh = make_mesh(config)
  text = make_text(config, model)
  adapters = initial.lora(config.model)
  needed = roles(config, method)
  others = other_models(config, model, needed['frozen'])
  decoders = make_decoders(config, model, others, mesh, adapters, method.heads)
  see = forward.make_forward(decoders, method.soft)
  total = config.steps * config.plan.epochs * config.plan.minibatches
  tx, rates = make_optimizer(config, method, total)
  state = initial.state(
    model,
    needed,
    tx,
    mesh,
    method,
    lora=adapters,
    others=others,
    judged=critic_start(config, needed['params']),
    seed=config.seed,
  )
  state = ahead.begun(state) if config.source.get('ahead') else state
  update_step = planned_step(see, tx, method, config, mesh)
  update = sharding.compile_step(update_step, state, mesh)
  if 'data' in config:
    feed = feeds.completions(config, see, method, model, mesh)
  else:
    several = config.source.name in episodes.SOURCES
    make = asking.conversations if several else asking.questions
    feed = make(config, decoders['policy'], model, text, mesh)
  laid = feeds.laid_out(feed.source, config, mesh, feed.data.longest)
  feed = feeds.overlapped(feed._replace(source=laid), config, mesh)
  jax.eval_shape(update_step, state, specimen(config, feed, state))
  said = (unread.idle(config), lora.report(model.config, adapters), feed.data.report)
  data = feed.data._replace(report=[line for lines in said for line in lines])
  told = (feed.source, feed.evaluate, data, feed.scores)
  return Run(state, update, *told, rates, mesh, model, feed.safety)


def planned_step(see, tx, method: Method, config, mesh):
  """The update step, as config.plan has it."""
  u = config.plan
  made = step.make_update_step(
    see,
    tx,
    method,
    **{k: u[k] for k in ('epochs', 'minibatches', 'microbatches')},
    importance=make_importance(config),
    trust_sampler=u.get('trust_sampler', False),
    constrain=sharding.constrain(mesh),
  )
  return ahead.remembering(made, see) if config.source.get('ahead') else made


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


def make_decoders(config, model, others, mesh, adapters, heads) -> dict[str, Decoder]:
  """A network for every role."""
  dtype = choose(DTYPES, config.model.dtype, 'config.model.dtype')
  choose(REMAT, config.model.remat, 'config.model.remat')
  return {
    s.role: Decoder(
      others.get(s.role, model).config,
      **dtype,
      remat=config.model.remat,
      scores=initial.scores(s.role, heads),
      spread=sharding.constrain(mesh),
      whole=sharding.whole_rows(mesh),
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
  rows = shapes.width(config.source)
  check_divides('config.source.prompts, with those replayed,', rows, mesh)
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
  coder = chat.coder(model.tokenizer, pretrained.stop_ids(model.tokenizer))
  return sources.Text(coder.prompt, decode, config.source.max_prompt)


def check_window(config, name: str, model) -> None:
  """Refuses rows longer than a model may see."""
  need = config.source.max_prompt + config.source.max_length
  if need > model.config.max_positions:
    raise InputError(
      f'config.source: max_prompt + max_length = {need} exceeds the window of '
      f'{name}, {model.config.max_positions} tokens.'
    )


# ---- The optimizer -------------------------------------------------------------------


def roles(config, method: Method) -> dict[str, set[str]]:
  """The networks of a run: no reference where its log-probs are read from a file."""
  needs = forward.all_needs(method)
  if not config.source.get('cache_reference'):
    return forward.roles(needs)
  if 'data' not in config or 'ref_logp' not in needs or 'aux/ref_logp' in needs:
    raise InputError(
      f'config.source.cache_reference: {config.method.name} has no reference whose '
      'log-probs of the stored completions are all it takes. Set it to False.'
    )
  if config.model.get('ref') or config.plan.get('refresh'):
    raise InputError(
      'config.source.cache_reference scores with the policy at its birth. Set it to '
      'False, or unset config.model.ref and config.plan.refresh.'
    )
  return forward.roles(n for n in needs if n != 'ref_logp')


def other_models(config, model, frozen) -> dict[str, pretrained.Pretrained]:
  """The models of frozen roles that are not the policy at its birth."""
  found, born = {}, {r for r in initial.BORN if not config.model.get(r)}
  for role in sorted(frozen - born):
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


def critic_start(config, trained) -> str:
  """config.model.critic, the folder of a run of a reward model on the same base."""
  folder, where = config.model.get('critic', ''), 'config.model.critic'
  if not folder:
    return ''
  record = Path(folder) / 'run.json'
  if 'critic' not in trained or not record.exists():
    raise InputError(
      f'{where}={folder!r}: give the folder of a run of bradley_terry (run.json), '
      f'for a method with a critic; {config.method.name} trains {sorted(trained)}.'
    )
  run = config_dict.ConfigDict(json.loads(record.read_text())['config'])
  if wrapped.make_method(run).serve:
    raise InputError(
      f'{where}={folder!r}: the score of {run.method.name} is not that of the head '
      'that a critic starts with. Give a run of bradley_terry.'
    )
  theirs = run.to_dict()['model']
  alike = lambda m: (m.get('lora') or {'rank': 0})['rank'] and (m['name'], m['lora'])
  if alike(theirs) != alike(json.loads(config.model.to_json())):
    raise InputError(
      f'{where}={folder!r}: with LoRA a critic takes adapters of the same base, rank '
      f'and targets; there they are {alike(theirs)}.'
    )
  return folder


def make_optimizer(config, method: Method, total_updates: int):
  """An optimizer for every trained role; each needs its entry in config.optimizer."""
  trained = forward.networks(method)['params']
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
  batch, rows = shapes.widest(s, feed.extra), shapes.width(s)
  order = np.zeros((rows, u.epochs), np.int32) if u.minibatches > 1 else None
  return batch.replace(
    order=order,
    aux=feed.aux(state, 0).batch if feed.aux else None,
  )
