"""The share of a task's tests that the completion's program passes, or all or nothing.

The program is code that a model wrote. It runs only where that is asked for, in a
process of its own, shut in as well as this machine can (sandbox/levels.py).
"""

import concurrent.futures

from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.sandbox import levels, programs, source
from jaxrl_llm.types import InputError


def code(
  *,
  allow_execution: bool = False,
  isolation: str = 'namespaces',
  partial: bool = False,
  seconds: float = 5.0,
  memory: int = 512,
  workers: int = 2,
) -> Batched:
  """Scores records that have tests, such as those of the task human_eval.

  Args:
    allow_execution: has to be set: the model's code runs on this machine.
    isolation: the least that will do, a name of sandbox/levels.py; what is used is
      printed.
    partial: pays the share of the tests passed, which invites answers made for the
      visible ones; otherwise 1 for all of them and 0 for less.
    seconds, memory: limits of a program, memory in MiB.
    workers: programs at once.

  Raises:
    InputError: execution is not allowed, or no such isolation works here; at a call, a
      record has no tests.
  """
  level = allowed(allow_execution, isolation, 'rewards.code')
  limits = levels.Limits(seconds=seconds, memory=memory)

  def one(sample: Sample) -> float:
    grade = passed(sample.completion, sample.record, level=level, limits=limits)
    return grade.right / grade.total if partial else float(grade.right == grade.total)

  def score(samples):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      return list(pool.map(one, samples))

  return Batched(score)


def allowed(allow: bool, isolation: str, where: str) -> str:
  """The level at which code may run here, which is printed."""
  if not allow:
    raise InputError(
      f"{where}: it runs the model's code on this machine. Set allow_execution=True to "
      'have that.'
    )
  level = levels.active(isolation)
  print(levels.said(level), flush=True)
  return level


def passed(text: str, record, *, level: str, limits: levels.Limits) -> programs.Grade:
  """The grade of a completion."""
  tests = record.extra.get('tests') or {}
  if not tests.get('cases', tests.get('check')):  # Of no tests all would be passed.
    raise InputError(
      f"code: record {record.id} has no extra['tests'] with 'cases' or a 'check'; use "
      'a task that has them, such as human_eval, and leave out records without any.'
    )
  program = source.program(tests.get('prompt', ''), text)
  return programs.graded(tests, program, level=level, limits=limits)
