"""Rejection sampling: a policy's best completions, as demonstrations to learn from.

A config with a section `collect` samples, scores and keeps in place of training.
"""

from collections.abc import Iterator
from pathlib import Path

from jaxrl_llm import assemble, build, log, train
from jaxrl_llm.sources import Drawn
from jaxrl_llm.tasks.records import Task
from jaxrl_llm.types import InputError

FILE = 'kept.jsonl'


def main(config, workdir: str) -> dict[str, float]:
  """Writes <workdir>/kept.jsonl (kind 'demonstrations'), from config.steps batches.

  Args:
    config: as for train.main, of a method that samples. Of a prompt's completions that
      ended and have at least the reward `collect.least`, the best `collect.each`.

  Returns:
    How many were sampled and kept.
  """
  folder = Path(workdir)
  train.check_folder(folder, config)
  if config.source.name != 'on_policy':
    raise InputError("config.collect takes config.source.name='on_policy'.")
  path = folder / FILE
  if not path.exists():
    task = build.made('jaxrl_llm.tasks', config.task.to_dict(), 'config.task')
    with train.claimed(folder, config):
      steps = sampled(config, folder, task)
      rows = [row for step in steps for row in step['rows']]
      if not rows:
        raise InputError(
          f'{folder}: no completion has a reward of at least '
          f'{config.collect.least}. Lower config.collect.least, or sample more.'
        )
      log.write_lines(path, rows)
  size = config.steps * config.source.prompts * config.source.group
  rows = len(log.read_lines(path))
  print(f'{path}: {rows} of {size} completions.')
  return {'sampled': float(size), 'kept': float(rows)}


def sampled(config, folder: Path, task: Task) -> list[dict]:
  """What each step kept. Those of an earlier start are read, the others appended."""
  path, run = folder / 'steps.jsonl', assemble.assemble(config)
  steps = log.read_lines(path)
  log.write_lines(path, steps)  # A last line cut short by a kill would spoil the next.
  for i in range(len(steps), config.steps):
    drawn = run.source(run.state, i)
    steps.append({'step': i, 'rows': list(kept(drawn, task, **config.collect))})
    log.append(path, steps[-1])
    print(f'Step {i + 1} of {config.steps}: {len(steps[-1]["rows"])} kept.')
  return steps


def kept(drawn: Drawn, task: Task, *, least: float, each: int) -> Iterator[dict]:
  """Rows of kind 'demonstrations': a prompt's best completions, no text twice."""
  batch, (b, g) = drawn.batch, drawn.batch.reward.shape
  for i in range(b):
    messages = task.train(int(batch.prompt_id[i])).messages
    rows = [drawn.samples[g * i + j] for j in range(g) if not batch.truncated[i, j]]
    said = {r['completion']: r['reward'] for r in rows if r['completion'].strip()}
    for text in sorted(said, key=said.get, reverse=True)[:each]:
      if said[text] >= least:
        yield {'prompt': messages, 'completion': text, 'reward': said[text]}
