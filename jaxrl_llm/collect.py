"""Rejection sampling: a policy's best completions, as demonstrations to learn from, or
pairs of them.

A config with a section `collect` samples, scores and keeps in place of training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxrl_llm import asking, assemble, log, pairing, sources, train
from jaxrl_llm.sources import Drawn
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError

FILE = 'kept.jsonl'


def main(config, workdir: str) -> dict[str, float]:
  """Writes <workdir>/kept.jsonl from config.steps batches: the kind 'demonstrations',
  or with `collect.pair` the kind 'pairs'.

  Args:
    config: as for train.main, of a method that samples. Of a prompt's completions that
      ended and have at least the reward `collect.least`, the best `collect.each`. Of
      `collect.pair` and `collect.margin` see `paired`.

  Returns:
    How many were sampled and kept.
  """
  folder = Path(workdir)
  train.check_folder(folder, config)
  if config.source.name != 'on_policy':
    raise InputError("config.collect takes config.source.name='on_policy'.")
  path = folder / FILE
  if not path.exists():
    with train.claimed(folder, config):
      steps = sampled(config, folder)
      rows = [row for step in steps for row in step['rows']]
      if not rows:
        raise InputError(
          f'{folder}: nothing is kept with config.collect={config.collect.to_dict()}. '
          'Lower what it asks for, or sample more.'
        )
      log.write_lines(path, rows)
  size = config.steps * config.source.prompts * config.source.group
  rows = len(log.read_lines(path))
  print(f'{path}: {rows} of {size} completions.')
  return {'sampled': float(size), 'kept': float(rows)}


def sampled(config, folder: Path) -> list[dict]:
  """What each step kept. Those of an earlier start are read, the others appended."""
  path, run = folder / 'steps.jsonl', assemble.assemble(config)
  task = asking.make_task(config, assemble.make_text(config, run.model))
  steps = log.read_lines(path)
  log.write_lines(path, steps)  # A last line cut short by a kill would spoil the next.
  for i in range(len(steps), config.steps):
    drawn, rng = run.source(run.state, i), sources.host_rng(run.state, i)
    keep = config.collect.to_dict()
    pair = 'pair' in keep
    rows = paired(drawn, task, rng, **keep) if pair else kept(drawn, task, **keep)
    steps.append({'step': i, 'rows': list(rows)})
    log.append(path, steps[-1])
    print(f'Step {i + 1} of {config.steps}: {len(steps[-1]["rows"])} kept.')
  return steps


def kept(drawn: Drawn, task: Task, *, least: float, each: int) -> Iterator[dict]:
  """Rows of kind 'demonstrations': a prompt's best completions, no text twice."""
  for record, said in ended(drawn, task):
    for text in sorted(said, key=said.get, reverse=True)[:each]:
      if said[text] >= least:
        yield asked(record) | {'completion': text, 'reward': said[text]}


def paired(
  drawn: Drawn, task: Task, rng, *, pair: str, margin: float = 0.0
) -> Iterator[dict]:
  """Rows of kind 'pairs', of a prompt's completions by `pairing.two`.

  A row's `margin` is the difference of their rewards. With pair='answer' the better one
  is the task's own answer, its reference where it has one, and the worse one the first
  of another text, without a margin: SPIN's.
  """
  if pair != 'answer':
    pairing.check(pair, margin, 'config.collect')
  for record, said in ended(drawn, task):
    texts, answer = list(said), record.extra.get('reference', record.answer)
    if pair == 'answer':
      other = [text for text in texts if text.strip() != answer.strip()]
      both = (answer, other[0]) if other else None
    else:
      found = pairing.two(np.array([said[t] for t in texts]), pair, margin, rng)
      both = found and tuple(texts[i] for i in found)
    if both:
      told = asked(record) | {'chosen': both[0], 'rejected': both[1]}
      scored = pair != 'answer'
      yield told | ({'margin': said[both[0]] - said[both[1]]} if scored else {})


def asked(record: Record) -> dict:
  """A row's fields that say what was asked, as data.fields.template reads them."""
  options = dict(record.template)
  tools = options.pop('tools', None)
  found = {'prompt': record.messages, 'tools': tools, 'chat_template_kwargs': options}
  return {k: v for k, v in found.items() if v}


def ended(drawn: Drawn, task: Task) -> Iterator[tuple[Record, dict[str, float]]]:
  """Each prompt's record, and the reward of each text that came to an end.

  Of texts that differ in the space around them alone, which tables take for one, the
  first.
  """
  batch, (b, g) = drawn.batch, drawn.batch.reward.shape
  for i in range(b):
    rows = [drawn.samples[g * i + j] for j in range(g) if not batch.truncated[i, j]]
    first = {}
    for row in rows:
      first.setdefault(row['completion'].strip(), row)
    said = {r['completion']: r['reward'] for words, r in first.items() if words}
    yield task.train(int(batch.prompt_id[i])), said
