"""The policy of a finished or stopped run, for sampling and export."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import config_dict

from jaxrl_llm import assemble, checkpoint
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.types import InputError, Params


class Policy(NamedTuple):
  """A network, its parameters and its Hugging Face tokenizer."""

  decoder: Decoder
  params: Params
  tokenizer: Any


def policy(workdir: str) -> Policy:
  """The newest checkpoint's policy.

  Raises:
    InputError: the folder holds no run, or one without a checkpoint or a policy.
  """
  record = Path(workdir) / 'run.json'
  if not record.exists():
    raise InputError(f'{workdir} holds no run (no run.json).')
  config = config_dict.ConfigDict(json.loads(record.read_text())['config'])
  run = assemble.assemble(config)
  found = checkpoint.restore(workdir, run.state)
  if found is None:
    raise InputError(f'{workdir} has no checkpoint yet.')
  if 'policy' not in found[0].params:
    raise InputError(
      f'{workdir} trains {sorted(found[0].params)} and no policy to sample or export.'
    )
  decoder = Decoder(run.model.config, assemble.DTYPES[config.model.dtype])
  return Policy(decoder, found[0].params['policy'], run.model.tokenizer)
