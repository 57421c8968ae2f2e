"""The policy of a finished or stopped run, for sampling and export."""

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


class Policy(NamedTuple):
  """A network, its parameters and its Hugging Face tokenizer."""

  decoder: Decoder
  params: Params  # Adapters, if any, merged.
  tokenizer: Any
  fields: dict[str, Any]  # The model's config.json.
  name: str  # The pretrained model's.
  adapters: tuple[Lora, Params] | None


def policy(workdir: str) -> Policy:
  """The newest checkpoint's policy, on the default device; nothing else is read.

  Raises:
    InputError: the folder holds no run, or one without a checkpoint or a policy.
  """
  record = Path(workdir) / 'run.json'
  if not record.exists():
    raise InputError(f'{workdir} holds no run (no run.json).')
  config = config_dict.ConfigDict(json.loads(record.read_text())['config'])
  method = assemble.make_method(config)
  trained = forward.roles(assemble.all_needs(method))['params']
  if 'policy' not in trained:
    raise InputError(
      f'{workdir} trains {sorted(trained)} and no policy to sample or export.'
    )
  model = pretrained.load(config.model.name)
  low_rank = initial.lora(config.model)
  params, adapters = model.params(), None
  start = params if low_rank is None else lora.init(model.config, low_rank)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), start)
  found = checkpoint.restore(workdir, {'params': {'policy': shapes}})
  if found is None:
    raise InputError(f'{workdir} has no checkpoint yet.')
  trained = found[0]['params']['policy']
  if low_rank is not None:
    adapters = (low_rank, trained)
    trained = lora.merge(params, trained, low_rank)
  return Policy(
    Decoder(model.config, assemble.DTYPES[config.model.dtype]),
    trained,
    model.tokenizer,
    model.fields,
    config.model.name,
    adapters,
  )
