"""The loop: draw a batch, update, log, evaluate, save. The same command resumes."""

import contextlib
import hashlib
import json
import signal
import time
from pathlib import Path

import jax

from jaxrl_llm import assemble, checkpoint, figure, log, sharding
from jaxrl_llm.types import InputError


def main(
  config, workdir: str | None = None, *, profile: bool = False
) -> dict[str, float]:
  """Trains to `config.steps` and returns the last held-out metrics.

  Args:
    config: a ConfigDict (configs/*.py).
    workdir: a folder of this run's own; None is runs/<name>-<hash of the config>.
    profile: writes a trace of the third step for TensorBoard to <workdir>/profile.

  Raises:
    InputError: the config names what is not there, or the folder holds another run.
  """
  folder = Path(workdir or f'runs/{config.name}-{digest(config)}')
  claim(folder, config)
  run = assemble.assemble(config)
  state, meta = run.state, {'step': 0, 'rollouts': 0.0, 'held_out': {}}
  if (found := checkpoint.restore(folder, state)) is not None:
    state, meta = found
  sinks = log.open_sinks(folder, config, meta['step'])
  say = sinks.say
  say(f'Run folder {folder}, step {meta["step"]} of {config.steps}.')

  with stop_on_signal(say) as stopping, contextlib.closing(sinks):
    if meta['step'] == 0:
      meta['held_out'] = evaluate(run, state, 0, sinks)
    while meta['step'] < config.steps and not stopping:
      with traced(folder, profile and meta['step'] == 2):
        state, metrics, samples = one_step(run, state, meta)
      step = meta['step']
      sinks.write(step, 'train', metrics)
      if due(step - 1, config.log.samples_every, config.steps):
        sinks.table(step, samples)
      if due(step, config.evaluation.every, config.steps):
        meta['held_out'] = evaluate(run, state, step, sinks)
      if due(step, config.checkpoint.every, config.steps) or stopping:
        checkpoint.save(folder, state, meta, keep=config.checkpoint.keep)
    if stopping:
      say(f'Stopped and saved at step {meta["step"]}. The same command goes on.')

  return finish(folder, meta, say)


# ---- One step and one evaluation -----------------------------------------------------


def one_step(run: assemble.Run, state, meta):
  """Draws, updates and measures; moves `meta` on. Returns state, metrics, samples."""
  step, start = meta['step'], time.perf_counter()
  drawn = run.source(state, step)
  rates = {f'lr/{role}': float(r(state.applied)) for role, r in run.rates.items()}
  begun = time.perf_counter()
  state, found = run.update(state, sharding.put_batch(drawn.batch, run.mesh))
  found = {k: float(v) for k, v in jax.device_get(found).items()}
  done = time.perf_counter()
  metrics = drawn.metrics | found | rates | {'seconds/update': done - begun}
  metrics['tokens_per_second'] = metrics['tokens'] / (done - start)
  if 'rollouts' in metrics:
    meta['rollouts'] = metrics['rollouts'] = meta['rollouts'] + metrics['rollouts']
  meta['step'] = step + 1
  return state, metrics, drawn.samples


def evaluate(run: assemble.Run, state, step: int, sinks) -> dict[str, float]:
  """Held-out metrics, logged and said."""
  start = time.perf_counter()
  held = run.evaluate(state)
  metrics = held.metrics | {'seconds/eval': time.perf_counter() - start}
  sinks.write(step, 'eval', metrics)
  if held.samples:
    sinks.table(step, held.samples, 'held out')
  shown = ', '.join(
    f'{k.removeprefix("eval/")} {v:.3f}' for k, v in held.metrics.items()
  )
  sinks.say(f'Held out at step {step}: {shown}')
  return held.metrics


def traced(folder: Path, on: bool):
  """Records what happens inside for TensorBoard's profile page, if `on`."""
  return jax.profiler.trace(folder / 'profile') if on else contextlib.nullcontext()


def due(step: int, every: int, last: int) -> bool:
  """Whether something done `every` so many steps, and at the last, is due."""
  return every > 0 and (step % every == 0 or step == last)


# ---- The run folder ------------------------------------------------------------------


def digest(config) -> str:
  """A short hash of a resolved config."""
  return hashlib.sha256(canonical(config).encode()).hexdigest()[:8]


def canonical(config) -> str:
  return json.dumps(config.to_dict(), sort_keys=True, default=str)


def claim(folder: Path, config) -> None:
  """Writes the run's record, or checks that the folder is this very run's."""
  path = folder / 'run.json'
  if path.exists():
    earlier = json.loads(path.read_text())['config']
    differing = differences(earlier, json.loads(canonical(config)))
    if differing:
      raise InputError(
        f'{folder} holds a run of another config; it differs in {differing}. Give '
        'another --workdir, or the first config to go on with that run.'
      )
    return
  if folder.exists() and any(folder.iterdir()):
    raise InputError(
      f'{folder} is not empty and holds no run (no run.json). Give another --workdir.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  log.write_json(path, log.run_record(config))


def differences(a, b, where: str = '') -> list[str]:
  """The dotted paths at which two nested dicts differ."""
  if not (isinstance(a, dict) and isinstance(b, dict)):
    return [] if a == b else [f'{where} ({a!r} there, {b!r} here)']
  keys = sorted({*a, *b})
  inner = lambda k: differences(a.get(k), b.get(k), f'{where}.{k}'.lstrip('.'))
  return [line for k in keys for line in inner(k)]


def finish(folder: Path, meta, say) -> dict[str, float]:
  """Draws the figure and says how it went."""
  metrics = folder / 'metrics.jsonl'
  figure.figure(metrics, folder / 'figure.png')
  held = [r for r in log.read_lines(metrics) if r['split'] == 'eval']
  if held and 'eval/low' in held[0]:
    percent = lambda r, k: f'{100 * r[f"eval/{k}"]:.1f}'
    words = lambda r: (
      f'{percent(r, "accuracy")} % [{percent(r, "low")}, {percent(r, "high")}]'
    )
    say(
      f'Held-out accuracy with 95 % interval: {words(held[0])} before, '
      f'{words(held[-1])} after step {held[-1]["step"]}.'
    )
  say(f'Figure, samples, metrics and checkpoint are in {folder}.')
  return meta['held_out']


# ---- Ctrl-C --------------------------------------------------------------------------


@contextlib.contextmanager
def stop_on_signal(say):
  """Yields a list that SIGINT or SIGTERM fills: the loop then saves and ends."""
  stopping: list[int] = []

  def note(number, frame):
    if stopping:  # The second time is meant.
      raise KeyboardInterrupt
    stopping.append(number)
    say('Stopping after this step; once more to stop at once.')

  numbers = (signal.SIGINT, signal.SIGTERM)
  earlier = {n: signal.signal(n, note) for n in numbers}
  try:
    yield stopping
  finally:
    for n, handler in earlier.items():
      signal.signal(n, handler)
