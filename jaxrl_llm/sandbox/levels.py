"""How well a program can be shut in here, and the command that does it.

  bubblewrap  bwrap: namespaces, a read-only root of what Python needs, no network
  namespaces  the same without bubblewrap (confine.py), by root or where users may
  limits      limits on time, memory, files and processes. No sandbox: it sees the disk

All of them also run inside.py's limits and, on x86-64 and arm64 Linux, its filter of
system calls, in an empty environment. A level counts as there only when a program run
in it has tried the disk and the network in vain (`active`).
"""

import functools
import json
import os
import shutil
import site
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from jaxrl_llm import build
from jaxrl_llm.types import InputError

HERE = Path(__file__).parent
DISK = 16 << 20  # Bytes of the program's own /tmp.
NOBODY = 65534


class Limits(NamedTuple):
  """What a program may use."""

  seconds: float = 5.0
  memory: int = 512  # MiB of address space.
  answer: int = 1 << 20  # Bytes of one answer.


def python() -> list[str]:
  """The interpreter, isolated, with inside.py's text."""
  text = (HERE / 'inside.py').read_text()
  return [os.path.realpath(sys.executable), '-I', '-S', '-B', '-c', text]


def shown() -> list[str]:
  """What of the disk Python needs: itself, its library, the system's libraries."""
  own = Path(sys.base_prefix).resolve()
  library = os.path.realpath(sysconfig.get_path('stdlib'))
  linked = [str(p) for p in sorted((own / 'lib').glob('libpython*.so*'))]
  system = ['/usr/lib', '/usr/lib64', '/lib', '/lib64', '/etc/ld.so.cache']
  found = [p for p in (*system, python()[0], library, *linked) if os.path.lexists(p)]
  inside = lambda p: any(p.startswith(f'{q}/') for q in found if not os.path.islink(q))
  return [p for p in found if not inside(p)]


def hidden() -> list[str]:
  """Folders of packages within what is shown; data may lie there."""
  library = os.path.realpath(sysconfig.get_path('stdlib'))
  sites = {os.path.realpath(p) for p in site.getsitepackages()}
  sites |= {f'{library}/site-packages', f'{library}/dist-packages'}
  sites |= {'/usr/lib/python3/dist-packages'}
  trees = [p for p in shown() if not os.path.islink(p)]
  within = lambda p: any(p.startswith(f'{tree}/') for tree in trees)
  return sorted(p for p in sites if os.path.isdir(p) and within(p))


def bubblewrap(limits: Limits) -> list[str]:
  words = ['bwrap', '--unshare-all', '--unshare-user', '--die-with-parent']
  words += ['--new-session', '--clearenv', '--cap-drop', 'ALL']
  for path in shown():
    if os.path.islink(path):
      words += ['--symlink', os.readlink(path), path]
    else:
      words += ['--ro-bind', path, path]
  for path in hidden():
    words += ['--tmpfs', path, '--remount-ro', path]
  words += ['--size', str(DISK), '--tmpfs', '/tmp', '--remount-ro', '/']
  return [*words, '--chdir', '/tmp', *python()]


def namespaces(limits: Limits) -> list[str]:
  plan = dict(
    parent=os.getpid(),
    shown=shown(),
    hidden=hidden(),
    disk=DISK,
    seconds=limits.seconds + 1,
    command=python(),
  )
  own = [os.path.realpath(sys.executable), '-I', '-S', str(HERE / 'confine.py')]
  return [*own, json.dumps(plan)]


def limits_only(limits: Limits) -> list[str]:
  return python()


# Level -> its command, best first.
LEVELS = {
  'bubblewrap': bubblewrap,
  'namespaces': namespaces,
  'limits': limits_only,
}


def user(level: str) -> dict:
  """Whom subprocess.Popen starts it as: without a sandbox never root."""
  if level != 'limits' or os.geteuid():
    return {}
  return dict(user=NOBODY, group=NOBODY, extra_groups=())


def usable(level: str) -> bool:
  """Whether the level can be tried here at all."""
  if level == 'bubblewrap':
    return shutil.which('bwrap') is not None
  return level == 'limits' or sys.platform == 'linux'


TRY = """
import os, socket

def attempt(path):
  seen, written = os.path.exists(path), []
  for place in ('/', os.path.dirname(path), '/usr/lib', os.path.dirname(os.__file__)):
    try:
      name = os.path.join(place, 'written')
      open(name, 'x').close()
      os.remove(name)
      written.append(place)
    except OSError:
      pass
  try:
    links = [name for _, name in socket.if_nameindex() if name != 'lo']
  except OSError:
    links = []
  return [seen, written, links]
"""


@functools.cache
def works(level: str) -> bool:
  """Whether a program runs at this level and reaches neither files nor a network."""
  from jaxrl_llm.sandbox import programs

  if not usable(level):
    return False
  case = {'args': [str(HERE / 'levels.py')], 'expected': [False, [], []]}
  tests = {'name': 'attempt', 'cases': [case]}
  if level == 'limits':
    tests, text = {'name': 'f', 'cases': [{'args': [], 'expected': 1}]}, 'f = lambda: 1'
  else:
    text = TRY
  try:
    return programs.graded(tests, text, level=level, limits=Limits()).right == 1
  except OSError:  # Nobody may not start this Python.
    return False


@functools.cache
def active(least: str) -> str:
  """The best level that works here.

  Raises:
    InputError: it is below `least`.
  """
  if least not in LEVELS:
    raise InputError(f'isolation={least!r}. {build.near(least, LEVELS)}')
  names = list(LEVELS)
  for level in names[: names.index(least) + 1]:
    if works(level):
      return level
  raise InputError(
    f'isolation={least!r}: no such sandbox works here. Install bubblewrap, or let '
    "this user make namespaces. isolation='limits' runs the model's code with limits "
    'on time and memory alone; it can read the disk then.'
  )


def said(level: str) -> str:
  """A line for the person who starts the run."""
  if level == 'limits':
    return (
      'Code of the model runs with resource limits only. That is no sandbox: it can '
      'read this disk.'
    )
  return f'Code of the model runs in a sandbox ({level}): no network, no files of ours.'
