"""The loop: draw a batch, update, log, evaluate, save. The same command resumes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax

from jaxrl_llm import assemble, checkpoint, figure, health, log, sections, sharding
from jaxrl_llm.types import InputError, State

# What a run writes to its folder before its first checkpoint.
FILES = (
  'run.json',
  'metrics.jsonl',
  'samples.jsonl',
  'tensorboard',
  'profile',
  'reference',
)


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
  born = time.perf_counter()
  sections.check(config)
  folder = Path(workdir or f'runs/{config.name}-{digest(config)}')
  check_folder(folder, config)
  done = checkpoint.read_meta(folder)
  if done and done['step'] >= config.steps and not pending(done, config):
    print(f'{folder} is complete: {config.steps} steps are done. Nothing to do.')
    return finish(folder, done, print)
  run = assemble.assemble(config)
  template = str(run.model.tokenizer.chat_template)
  born_as = checkpoint.fingerprint(run.state, template)
  meta = {'step': 0, 'rollouts': 0.0, 'evaluated': -1, 'held_out': {}}
  meta |= {'data': run.data.digest, 'model': born_as}
  state, found = checkpoint.restore(folder, run.state) or (run.state, meta)
  check_same(folder, found, meta)
  meta = found
  with contextlib.ExitStack() as stack:
    stack.enter_context(claimed(folder, config))
    sinks = log.open_sinks(folder, config, meta['step'], meta['evaluated'])
    stack.callback(sinks.close)
    sinks.say(f'Run folder {folder}, step {meta["step"]} of {config.steps}.')
    for line in run.data.report:
      sinks.say(line)
    if run.scores:
      run.scores.fill(folder / 'reference' / born_as, run.state, sinks.say)
    # The state at birth would stay in memory beside the restored one.
    run = run._replace(state=state)
    stop = stack.enter_context(stop_on_signal())
    told = dict(sinks=sinks, stop=stop, profile=profile, born=born)
    loop(config, run, state, meta, folder, **told)
  if meta['step'] < config.steps:
    where = f'and saved at step {meta["step"]}' if meta['step'] else 'before step 1'
    sinks.say(f'Stopped {where}. The same command goes on.')
  return finish(folder, meta, sinks.say)


def check_same(folder: Path, found: dict, now: dict) -> None:
  """Refuses to go on with other rows, or another model under the same name."""
  what = {'data': 'the data are', 'model': 'the model or its chat template is'}
  for part, words in what.items():
    if found.get(part, now[part]) != now[part]:
      raise InputError(
        f'{folder}: {words} not what this run had up to step {found["step"]}. Put it '
        'back as it was, or give another --workdir.'
      )


def loop(
  config, run, state: State, meta, folder, *, sinks, stop, profile, born
) -> None:
  """Evaluates, saves and steps in turn; moves `meta` on."""
  begun, saved = meta['step'], dict(meta)
  last, keep = config.steps, config.checkpoint.keep
  save = lambda: checkpoint.save(folder, state, meta, keep=keep)
  try:
    while True:
      step = meta['step']
      if pending(meta, config):
        evaluate(run, state, meta, sinks, stop, last=step >= last)
        warn_of_lights(folder, sinks)
      if step > begun and due(step, config.checkpoint.every, last) and not stop.asked:
        save()
        saved = dict(meta)
      if step >= last or stop.asked:
        break
      with traced(folder, profile and step == begun + 2):
        state, metrics, samples = one_step(run, state, meta)
      if step == begun:
        spent = time.perf_counter() - born
        sinks.say(f'First step done {spent:.0f} s after the start.')
      sinks.write(step + 1, 'train', metrics)
      warn_of_skips(metrics, meta, sinks)
      warn_of_mismatch(metrics, meta, sinks)
      if due(step, config.log.samples_every, last):
        sinks.table(step + 1, 'train', samples)
  except Exception:  # A reward failed, say. An update that failed has taken the state.
    whole = not any(x.is_deleted() for x in jax.tree.leaves(state))
    if whole and meta['step'] and meta != saved:
      save()
    raise
  if meta['step'] and meta != saved:
    save()


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


def warn_of_skips(metrics, meta, sinks) -> None:
  """Says so when updates were left out for a gradient that is not finite."""
  if metrics['skipped'] > meta.get('skipped', 0):
    sinks.say(
      f'Step {meta["step"]}: the gradient was not finite and the update was skipped, '
      f'as {metrics["skipped"]:.0f} so far. --debug_nans finds where it is made.'
    )
  meta['skipped'] = metrics['skipped']


def warn_of_mismatch(metrics, meta, sinks) -> None:
  """Says so when the sampler's log-probs are not the trainer's."""
  if (found := metrics.get('mismatch_k3', 0.0)) > health.MISMATCH[1]:
    sinks.say(
      f'Step {meta["step"]}: sampler and trainer disagree by {found:.2g} nats a token '
      '(mismatch_k3). With bfloat16, config.plan.importance=token weighs it out.'
    )


def warn_of_lights(folder: Path, sinks) -> None:
  """Says which lights of the run's health have turned red since the last evaluation."""
  records = log.read_lines(folder / 'metrics.jsonl')
  history = health.split(records, log.read_lines(folder / 'samples.jsonl'))
  for light in health.turned_red(history):
    sinks.say(f'RED LIGHT, {light.name}: {light.said}.')


def evaluate(
  run: assemble.Run, state, meta, sinks, stop: 'Stop', *, last: bool
) -> None:
  """Logs and says the held-out metrics. Ctrl-C drops it; the next start redoes it.

  `last` adds the verdict of the safety test, which is looked at once.
  """
  step, start = meta['step'], time.perf_counter()
  stop.at_once = True
  try:
    held = run.evaluate(state)
    if last and run.safety:
      held = held._replace(metrics=held.metrics | run.safety(state))
  except KeyboardInterrupt:
    return
  finally:
    stop.at_once = False
  sinks.write(
    step, 'eval', held.metrics | {'seconds/eval': time.perf_counter() - start}
  )
  sinks.table(step, 'eval', held.samples)
  short = {k.removeprefix('eval/'): v for k, v in held.metrics.items()}
  shown = ', '.join(f'{k} {v:.3f}' for k, v in short.items())
  sinks.say(f'Held out at step {step}: {shown}')
  meta['evaluated'], meta['held_out'] = step, held.metrics


def pending(meta, config) -> bool:
  """Whether the held-out evaluation of this step is still to be done."""
  step, asked = meta['step'], config.evaluation
  if meta['evaluated'] == step or not (step or asked.get('at_start', True)):
    return False
  return due(step, asked.every, config.steps)


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


def check_folder(folder: Path, config) -> None:
  """Refuses a folder that holds anything but this very run."""
  path = folder / 'run.json'
  if path.exists():
    earlier = json.loads(path.read_text())['config']
    if differing := differences(earlier, json.loads(canonical(config))):
      raise InputError(
        f'{folder} holds a run of another config; it differs in {differing}. Give '
        'another --workdir, or the first config to go on with that run.'
      )
  elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(
      f'{folder} is not an empty folder and holds no run (no run.json). Give another '
      '--workdir.'
    )


@contextlib.contextmanager
def claimed(folder: Path, config):
  """Writes the run's record. A mistake before the first checkpoint takes it back."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'run.json').exists():
      log.write_json(folder / 'run.json', log.run_record(config))
  except OSError as error:
    raise InputError(
      f'{folder} cannot be written ({error}). Give another --workdir.'
    ) from error
  try:
    yield
  except InputError:
    if not checkpoint.steps(folder):
      clear(folder)
    raise


def clear(folder: Path) -> None:
  """Removes what a run wrote, and the folder if nothing else is in it."""
  for path in (folder / name for name in FILES):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
  if not any(folder.iterdir()):
    folder.rmdir()


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
  if not checkpoint.steps(folder):
    return meta['held_out']
  figure.figure(metrics, folder / 'figure.png')
  held = [r for r in log.read_lines(metrics) if r['split'] == 'eval']
  if len(held) > 1 and 'eval/low' in held[0]:
    say(
      f'Held-out accuracy with 95 % interval: {interval(held[0])} before, '
      f'{interval(held[-1])} after step {held[-1]["step"]}.'
    )
  if 'eval/safe' in meta['held_out']:
    say(verdict(meta['held_out']))
  say(f'Figure, samples, metrics and checkpoint are in {folder}.')
  return meta['held_out']


def verdict(metrics: dict) -> str:
  """What the safety test says of a policy."""
  mean, bound = (f'{metrics[f"eval/safety_{k}"]:.3f}' for k in ('cost', 'bound'))
  found = 'passed' if metrics['eval/safe'] else 'No Solution Found'
  return f'Safety test: {found}; mean cost {mean}, bounded by {bound}.'


def interval(record: dict) -> str:
  """'50.0 % [28.0, 72.0]' of a held-out record."""
  value, low, high = (
    f'{100 * record[f"eval/{k}"]:.1f}' for k in ('accuracy', 'low', 'high')
  )
  return f'{value} % [{low}, {high}]'


# ---- Ctrl-C --------------------------------------------------------------------------

# `timeout` and its like send SIGTERM twice, to the process and to its group. Within so
# many seconds that is one request: a second one would end the process while it saves.
SAME_REQUEST = 2.0


@dataclasses.dataclass
class Stop:
  """What a signal asks of the loop."""

  asked: bool = False  # End after this step.
  since: float = 0.0  # When it was asked first.
  at_once: bool = False  # Set by the loop where an interruption loses nothing.


@contextlib.contextmanager
def stop_on_signal():
  """Yields a `Stop` that SIGINT or SIGTERM sets: the loop then saves and ends."""
  stop = Stop()

  def note(number, frame):
    now, again = time.monotonic(), stop.asked
    if again and number == signal.SIGTERM and now - stop.since < SAME_REQUEST:
      return
    stop.asked, stop.since = True, stop.since if again else now
    if again or stop.at_once:  # The second time is meant.
      raise KeyboardInterrupt
    # No print: the signal may have come in the middle of one.
    os.write(2, b'\nStopping after this step; once more to stop at once.\n')

  numbers = (signal.SIGINT, signal.SIGTERM)
  earlier = {n: signal.signal(n, note) for n in numbers}
  try:
    yield stop
  finally:
    for n, handler in earlier.items():
      signal.signal(n, handler)
