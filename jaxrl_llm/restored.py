"""A network of a finished or stopped run: to sample, to export, to score with."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from jaxrl_llm import checkpoint, forward, initial, wrapped
from jaxrl_llm.models import lora, pretrained, weights
from jaxrl_llm.models.config import Lora
from jaxrl_llm.models.decoder import DTYPES, Decoder
from jaxrl_llm.types import InputError, Method, Params


class Network(NamedTuple):
  """A network, its parameters and its Hugging Face tokenizer."""

  decoder: Decoder
  params: Params  # Adapters, if any, merged.
  tokenizer: Any
  fields: dict[str, Any]  # The model's config.json.
  name: str  # The pretrained model's.
  adapters: tuple[Lora, Params] | None
  config: config_dict.ConfigDict  # The run's,
  method: Method  # and its method.


def policy(workdir: str) -> Network:
  """The newest checkpoint's policy."""
  return network(workdir, 'policy')


def reward(workdir: str) -> Network:
  """The newest checkpoint's reward model, if it is a network with a head and no more.

  Raises:
    InputError: as of network; the method adds arrays of its own, or scores tokens.
  """
  found = network(workdir, 'reward')
  needs = {*forward.all_needs(found.method)} - {'score', 'attributes', 'own'}
  if needs or found.method.serve or found.method.soft:
    raise InputError(
      f'{workdir} trained {found.config.method.name}, which is more than one score of '
      f'a whole completion {sorted(needs)}: no classifier of transformers has that.'
    )
  return found


def export(network: Network, folder: str | Path) -> None:
  """A new Hugging Face folder of a network, with its tokenizer (weights.save)."""
  weights.save(folder, network.fields, network.params, tokenizer=network.tokenizer)


def configured(workdir: str) -> config_dict.ConfigDict:
  """The config of the run in a folder."""
  record = Path(workdir) / 'run.json'
  if not record.exists():
    raise InputError(f'{workdir} holds no run (no run.json).')
  return config_dict.ConfigDict(json.loads(record.read_text())['config'])


def trained(workdir: str) -> tuple[config_dict.ConfigDict, Method]:
  """A run's config, and its method."""
  config = configured(workdir)
  return config, wrapped.make_method(config)


def own(workdir: str, network: 'Network') -> Params:
  """What the newest checkpoint has of the method's own arrays."""
  width = network.decoder.config.width
  shapes = jax.eval_shape(lambda: network.method.own(jax.random.key(0), width))
  return checkpoint.restore(workdir, {'params': {initial.OWN: shapes}})[0]['params'][
    initial.OWN
  ]


def network(workdir: str, role: str) -> Network:
  """What the newest checkpoint has of a trained role, on the default device.

  Nothing else is read.

  Raises:
    InputError: the folder holds no run, or one without a checkpoint or that role.
  """
  config = configured(workdir)
  method = wrapped.make_method(config)
  has = forward.networks(method)['params']
  if role not in has:
    raise InputError(f'{workdir} trains {sorted(has)} and no {role}.')
  model = pretrained.configured(config.model)
  low_rank = initial.lora(config.model)
  key = jax.random.key(0)  # Of heads that the checkpoint has.
  params = initial.role_tree(model.params(), role, method.heads, key)
  several = lambda x: x
  if role == initial.ENSEMBLE:
    several = lambda x: initial.several(x, method.members, key)
  if low_rank is None:
    start = params
  else:
    own = initial.head(role, model.config.width, method.heads, key)
    start = lora.init(model.config, low_rank) | own
  shapes = jax.eval_shape(several, start)
  found = checkpoint.restore(workdir, {'params': {role: shapes}})
  if found is None:
    raise InputError(f'{workdir} has no checkpoint yet.')
  own = found[0]['params'][role]
  whole = own
  if low_rank is not None:
    merge = lambda x: params | x | {'layers': lora.merge(params, x, low_rank)['layers']}
    whole = jax.vmap(merge)(own) if role == initial.ENSEMBLE else merge(own)
  scores = initial.scores(role, method.heads)
  return Network(
    Decoder(model.config, **DTYPES[config.model.dtype], scores=scores),
    whole,
    model.tokenizer,
    model.fields,
    config.model.name,
    None if low_rank is None else (low_rank, own),
    config,
    method,
  )
