"""A network of a finished or stopped run: to sample, to export, to score with."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from jaxrl_llm import assemble, checkpoint, forward, initial
from jaxrl_llm.models import lora, pretrained
from jaxrl_llm.models.config import Lora
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.types import InputError, Params


class Network(NamedTuple):
  """A network, its parameters and its Hugging Face tokenizer."""

  decoder: Decoder
  params: Params  # Adapters, if any, merged.
  tokenizer: Any
  fields: dict[str, Any]  # The model's config.json.
  name: str  # The pretrained model's.
  adapters: tuple[Lora, Params] | None
  config: config_dict.ConfigDict  # The run's.


def policy(workdir: str) -> Network:
  """The newest checkpoint's policy."""
  return network(workdir, 'policy')


def network(workdir: str, role: str) -> Network:
  """What the newest checkpoint has of a trained role, on the default device.

  Nothing else is read.

  Raises:
    InputError: the folder holds no run, or one without a checkpoint or that role.
  """
  record = Path(workdir) / 'run.json'
  if not record.exists():
    raise InputError(f'{workdir} holds no run (no run.json).')
  config = config_dict.ConfigDict(json.loads(record.read_text())['config'])
  method = assemble.make_method(config)
  trained = forward.roles(assemble.all_needs(method))['params']
  if role not in trained:
    raise InputError(f'{workdir} trains {sorted(trained)} and no {role}.')
  model = pretrained.load(config.model.name)
  low_rank = initial.lora(config.model)
  params = initial.role_tree(model.params(), role)
  if low_rank is None:
    start = params
  else:
    start = lora.init(model.config, low_rank) | initial.head(role, model.config.width)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), start)
  found = checkpoint.restore(workdir, {'params': {role: shapes}})
  if found is None:
    raise InputError(f'{workdir} has no checkpoint yet.')
  own = found[0]['params'][role]
  whole = own if low_rank is None else params | own
  if low_rank is not None:
    layers = lora.merge(params, own, low_rank)['layers']
    whole = whole | {'layers': layers}
  scores = int(role in initial.SCORED)
  return Network(
    Decoder(model.config, assemble.DTYPES[config.model.dtype], scores=scores),
    whole,
    model.tokenizer,
    model.fields,
    config.model.name,
    None if low_rank is None else (low_rank, own),
    config,
  )
