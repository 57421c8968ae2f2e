"""Programs to write, in HumanEval's format (2021), https://arxiv.org/abs/2107.03374.

A row is {task_id, prompt, entry_point, canonical_solution, test}: the head of a
function, and the source of check(candidate). What checks a program never meets it: see
sandbox/programs.py.
"""

import hashlib
import json
from typing import Any

from jaxrl_llm.rewards import code
from jaxrl_llm.sandbox import levels
from jaxrl_llm.tasks import questions, records
from jaxrl_llm.tasks.records import Record, Task
from jaxrl_llm.types import InputError

ASK = 'Complete this function. Answer with the whole function in one code block.\n\n'


def human_eval(
  *,
  test_path: str,
  train_path: str = '',
  allow_execution: bool = False,
  isolation: str = 'namespaces',
  seconds: float = 5.0,
  memory: int = 512,
  ask: str = ASK,
  limit: int = 0,
  seed: int = 0,
) -> Task:
  """Training rows whose prompt is a test row's are left out.

  Args:
    test_path, train_path: see tables.open_table; without train_path the task is to
      evaluate only, and training draws are refused.
    allow_execution, isolation, seconds, memory: as of the reward `code`.
    ask: before the prompt, in the user's message.
    limit: test rows to use at most, the first ones; 0 is all.
  """
  level = code.allowed(allow_execution, isolation, 'config.task (human_eval)')
  limits, digest = levels.Limits(seconds=seconds, memory=memory), hashlib.sha256()

  def record(row: dict[str, Any], number: int, where: str) -> Record:
    digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    prompt, name, test = (
      questions.field(row, k) for k in ('prompt', 'entry_point', 'test')
    )
    # The prompt's own helpers are part of some tests.
    tests = {'name': name, 'prompt': prompt, 'check': f'{prompt}\n{test}'}
    asked = records.chat(f'{ask}{prompt}')
    solution = str(row.get('canonical_solution', ''))
    extra = {'tests': tests, 'task_id': row.get('task_id')}
    return Record(number, asked, solution, extra, where=where)

  test = questions.read(test_path, record)
  test = test[:limit] if limit else test
  train = questions.read(train_path, record) if train_path else []
  train, left_out = questions.apart(train, test)

  def check(text: str, record: Record) -> float:
    grade = code.passed(text, record, level=level, limits=limits)
    return float(grade.right == grade.total)

  draw = records.Cycle(train, seed) if train else none_to_train
  report = [f'{len(train)} programs to train on, {len(test)} held out{left_out}.']
  return Task('human_eval', draw, tuple(test), check, digest.hexdigest(), report)


def none_to_train(index: int) -> Record:
  raise InputError(
    'config.task (human_eval): train_path is not set, so there is nothing to train on.'
  )
