"""Stages one after another, each a config.

  c.stages = dict(sft=<config>, ppo=<config>);  c.order = ('sft', 'ppo')

A stage's folder is <workdir>/<its name>. In a later stage's config the text
'stage:sft' is that folder, and 'stage:sft/model' an export of its policy, in quotes in
a call too (models/merging.py). The same command goes on in the stage, and at the step,
where the last one stopped.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from jaxrl_llm import (
  checkpoint,
  collect,
  log,
  reshaping,
  restored,
  sections,
  train,
  wrapped,
)
from jaxrl_llm.types import InputError

# Alone, or in quotes within a call.
STAGE = re.compile("""(?:^|(?<=['"]))stage:([^/'"]*)(/[^'"]*)?(?=['"]|$)""")


def main(config, workdir: str | None = None, *, profile: bool = False) -> dict:
  """Runs the stages in `config.order` and returns what each says at its end.

  Args:
    config: `name`, `stages` and `order`. A stage with a section `collect` samples and
      keeps (collect.py), one of {reshape: a call, table: a path} makes kept.jsonl of a
      table (reshaping.py), any other one trains (train.main).
    workdir: None is runs/<name>-<hash of the config>.
    profile: see train.main.

  Raises:
    InputError: a stage is not there, refers to one that does not come before it, is no
      config, or was made of what another stage no longer holds.
  """
  check(config)
  folder = Path(workdir or f'runs/{config.name}-{train.digest(config)}')
  wanted = {text for name in config.order for text in references(config.stages[name])}
  found = {}
  for i, name in enumerate(config.order):
    print(f'Stage {i + 1} of {len(config.order)}: {name}.')
    check_inputs(folder, name, config.stages[name])
    stage = placed(config.stages[name], folder)
    if 'reshape' in stage:
      found[name] = reshaped(stage, folder / name)
      continue
    if 'collect' in stage:
      found[name] = collect.main(stage, str(folder / name))
      continue
    found[name] = train.main(stage, str(folder / name), profile=profile)
    if (checkpoint.read_meta(folder / name) or {'step': 0})['step'] < stage.steps:
      break  # It was stopped, and said so.
    if f'stage:{name}/model' in wanted:
      export(folder / name)
  return found


def check(config) -> None:
  """Refuses stages that cannot follow each other, before the first one runs."""
  before: list[str] = []
  for name in config.order:
    if name not in config.stages:
      raise InputError(
        f'config.order: there is no stage {name!r}; there are {sorted(config.stages)}.'
      )
    stage = config.stages[name]
    if 'reshape' in stage:
      reshaping.function(stage.reshape)
    else:
      sections.check(stage)
      wrapped.make_method(stage)
    for text in references(stage):
      if (other := STAGE.fullmatch(text)[1]) not in before:
        raise InputError(
          f'config.stages.{name} reads {text!r}, and before it come {before}. Put '
          f'{other!r} before it in config.order, or name a folder or file instead.'
        )
    before.append(name)


def check_inputs(folder: Path, name: str, stage) -> None:
  """Notes in <folder>/inputs.json what a stage is made of: which runs of the stages
  before it, and for a table how. Refuses one that is there and was made of others.
  """
  path = folder / 'inputs.json'
  known = json.loads(path.read_text()) if path.exists() else {}
  read = sorted({STAGE.fullmatch(text)[1] for text in references(stage)})
  made = {other: made_by(folder / other) for other in read}
  if 'reshape' in stage:
    made |= stage.to_dict()
  if (folder / name).exists() and known.get(name, made) != made:
    changed = [k for k in made if known[name].get(k) != made[k]]
    raise InputError(
      f'{folder / name} was made of what has changed since: {changed}. Remove that '
      'folder, and those of the stages after it, to make them anew.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  log.write_json(path, known | {name: made})


def made_by(folder: Path) -> str:
  """A digest of the record of the run in a folder, or of what a stage has kept."""
  paths = [folder / name for name in ('run.json', collect.FILE)]
  said = b''.join(p.read_bytes() for p in paths if p.exists())
  return hashlib.blake2b(said, digest_size=8).hexdigest()


def reshaped(stage, folder: Path) -> dict[str, float]:
  """<folder>/kept.jsonl, if it is not there."""
  folder.mkdir(parents=True, exist_ok=True)
  if not (path := folder / collect.FILE).exists():
    reshaping.main(stage.reshape, stage.table, path)
  return {'kept': float(len(log.read_lines(path)))}


def references(value: Any) -> Iterator[str]:
  """The texts in a config that name a stage."""
  if isinstance(value, config_dict.ConfigDict):
    for inner in value.values():
      yield from references(inner)
  elif isinstance(value, str):
    yield from (m.group() for m in STAGE.finditer(value))


def placed(value: Any, folder: Path) -> Any:
  """The config with folders in the place of references."""
  if isinstance(value, config_dict.ConfigDict):
    return config_dict.ConfigDict({k: placed(x, folder) for k, x in value.items()})
  if not isinstance(value, str):
    return value
  return STAGE.sub(lambda m: f'{folder}/{m[1]}{m[2] or ""}', value)


def export(folder: Path) -> None:
  """<folder>/model, the policy as a Hugging Face folder, if it is not there."""
  if not (folder / 'model').exists():
    restored.export(restored.policy(str(folder)), folder / 'model')
