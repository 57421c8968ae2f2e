"""Compares mathematical answers by math-verify, in a process of its own.

Started by workers.py as a script. math-verify reads text by sympy, which can take any
time and memory, so this process may be killed at any moment. Its memory is limited, it
writes no file, and it starts no process and no connection where inside.py's filter of
system calls works.
"""

import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path


def limited(memory):
  """Limits on this process, after its imports."""
  for number, value in (
    (resource.RLIMIT_AS, memory << 20),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  ):
    resource.setrlimit(number, (value, value))
  runpy.run_path(str(Path(__file__).with_name('inside.py')))['filter_calls']()


def compared(package, gold, text):
  """Whether math-verify takes the text for the gold answer. It is not symmetric."""
  read = lambda x: package.parse(x, parsing_timeout=None)
  try:
    due = read(f'\\boxed{{{gold}}}')
    return bool(package.verify(due, read(text), timeout_seconds=None))
  except Exception:
    return False


def main():
  # What sympy prints goes nowhere.
  lines, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
  for number in (0, 1):
    os.dup2(2, number)
  job = json.loads(lines.readline())

  def write(message):
    out.write(json.dumps({'nonce': job['nonce'], **message}) + '\n')
    out.flush()

  sys.path[:] = job['path']
  try:
    import math_verify

    compared(math_verify, '1/2', '\\boxed{\\frac{1}{2}}')  # The first one is slow.
    limited(job['memory'])
  except Exception as error:
    return write({'error': f'{type(error).__name__}: {error}'})
  write({'ready': True})
  for line in lines:
    message = json.loads(line)
    # It ends by itself where nobody is left to kill it.
    signal.setitimer(signal.ITIMER_REAL, job['seconds'] + 1)
    value = compared(math_verify, message['gold'], message['text'])
    signal.setitimer(signal.ITIMER_REAL, 0)
    write({'call': message['call'], 'value': value})


if __name__ == '__main__':
  main()
