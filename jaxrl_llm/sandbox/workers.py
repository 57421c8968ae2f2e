"""Processes that answer questions one at a time, and are killed when they hang."""

import concurrent.futures
import itertools
import queue
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrl_llm.sandbox import programs
from jaxrl_llm.types import InputError

START = 120.0  # Seconds for imports; ours, generous to a busy machine.
LONGEST = 1 << 16  # Bytes of one answer.

Pool = Callable[[Sequence[dict]], list[Any]]


def make_pool(script: Path, *, seconds: float, memory: int, workers: int) -> Pool:
  """Returns `each(questions) -> answers`, in order.

  An answer is None where the worker took longer than `seconds` or died; another one
  takes its place at the next question. Workers start at the first question, and end
  with `each` or with this process.

  Args:
    script: run by this Python, with this process's import path (equations.py shows how
      it talks).
    memory: MiB of address space of a worker.

  Raises:
    InputError: at a call, a worker cannot start.
  """
  idle: queue.SimpleQueue = queue.SimpleQueue()
  for _ in range(workers):
    idle.put(None)
  live: set = set()
  job = dict(path=[p for p in sys.path if p], seconds=seconds, memory=memory)
  numbers = itertools.count()

  def one(question: dict) -> Any:
    worker = idle.get()
    try:
      worker = worker or begun(script, job, live)
      timed = worker._replace(deadline=time.monotonic() + seconds)
      reply = programs.asked(timed, next(numbers), question)
      if 'value' not in reply:
        stopped(worker.process, live)
        worker = None
      return reply.get('value')
    finally:
      idle.put(worker)

  def each(questions: Sequence[dict]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
      return list(threads.map(one, questions))

  weakref.finalize(each, all_stopped, live)
  return each


def begun(script: Path, job: dict, live: set) -> programs.Child:
  """A worker that is ready. Raises InputError with what it says if it is not."""
  command = [sys.executable, '-I', '-B', str(script)]
  process = programs.spawned(command)
  live.add(process)
  nonce, deadline = secrets.token_hex(16), time.monotonic() + START
  child = programs.Child(process, nonce, deadline, LONGEST)
  programs.told(child, job)
  reply = programs.heard(child)
  if not reply.get('ready'):
    stopped(process, live)
    raise InputError(f'{script.name} cannot start: {reply.get("error")}.')
  return child


def stopped(process, live: set) -> None:
  programs.ended(process)
  live.discard(process)


def all_stopped(live: set) -> None:
  for process in list(live):
    stopped(process, live)
