"""The policy of a finished or stopped run, for sampling and export."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from jaxrl_llm import assemble, checkpoint, forward
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.types import InputError, Params


class Policy(NamedTuple):
  """A network, its parameters and its Hugging Face tokenizer."""

  decoder: Decoder
  params: Params
  tokenizer: Any


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
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
  found = checkpoint.restore(workdir, {'params': {'policy': shapes}})
  if found is None:
    raise InputError(f'{workdir} has no checkpoint yet.')
  decoder = Decoder(model.config, assemble.DTYPES[config.model.dtype])
  return Policy(decoder, found[0]['params']['policy'], model.tokenizer)
