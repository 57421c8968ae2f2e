"""Runs one program in a process of its own and lets it be called; no package of ours.

Its text is started by levels.py. Messages are lines of JSON on what were standard input
and output; the program finds both replaced by /dev/null. What a call returns is sent
only if it is made of plain values of exactly the types below, so that an object that
claims to equal everything does not leave the process. The program shares this process
and may say whatever it likes: the answers to compare with are never in it.
"""

import ctypes
import json
import os
import resource
import struct
import sys

PLAIN = (type(None), bool, int, float, str)
TAGS = {tuple: 'tuple', set: 'set', frozenset: 'frozenset'}
TYPES = {tag: kind for kind, tag in TAGS.items()}

# System calls that fail: new processes and threads, programs, sockets, signals to
# others, tracing, mounts, io_uring. By machine: the kernel's name of it, and numbers.
X86 = (41, 53, 56, 57, 58, 59, 62, 101, 129, 165, 200, 234, 272, 310, 311, 322)
ARM = (40, 97, 117, 129, 130, 131, 138, 198, 199, 220, 221, 270, 271, 281)
BOTH = (424, 425, 426, 427, 435)
DENIED = {'x86_64': (0xC000003E, X86 + BOTH), 'aarch64': (0xC00000B7, ARM + BOTH)}
OTHER_ABI = 0x40000000  # x32 calls on x86_64.


def encode(value):
  """A plain value as JSON; TypeError for any other."""
  kind = type(value)
  if kind in PLAIN:
    return value
  if kind is list:
    return [encode(x) for x in value]
  if kind is dict:
    return {'dict': [[encode(k), encode(x)] for k, x in value.items()]}
  if kind in TAGS:
    return {TAGS[kind]: [encode(x) for x in value]}
  raise TypeError(f'{kind.__name__} is no plain value')


def decode(found):
  """The value that `encode` was given."""
  if type(found) is list:
    return [decode(x) for x in found]
  if type(found) is not dict:
    return found
  ((tag, items),) = found.items()
  if tag == 'dict':
    return {decode(k): decode(x) for k, x in items}
  return TYPES[tag](decode(x) for x in items)


def limit(limits):
  """Hard limits on this process. They cannot be raised again."""
  seconds = int(limits['seconds']) + 1
  for name, value in (
    ('RLIMIT_CPU', seconds),
    ('RLIMIT_AS', limits['memory'] << 20),
    ('RLIMIT_FSIZE', 1 << 20),
    ('RLIMIT_NPROC', 1),
    ('RLIMIT_NOFILE', 32),
    ('RLIMIT_CORE', 0),
  ):
    number = vars(resource)[name]
    most = resource.getrlimit(number)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(number, (value, value))


def filter_calls():
  """No new privileges, and a filter of system calls (seccomp) where there is one."""
  arch, denied = DENIED.get(os.uname().machine, (0, ()))
  if not denied or sys.platform != 'linux':
    return
  load = lambda offset: (0x20, 0, 0, offset)
  fail = (0x06, 0, 0, 0x00050001)  # Return EPERM.
  rules = [load(4), (0x15, 1, 0, arch), fail, load(0), (0x35, 0, 1, OTHER_ABI), fail]
  for number in denied:
    rules += [(0x15, 0, 1, number), fail]
  rules.append((0x06, 0, 0, 0x7FFF0000))  # Allow.
  program = b''.join(struct.pack('HBBI', *rule) for rule in rules)
  buffer = ctypes.create_string_buffer(program, len(program))
  header = struct.pack('HxxxxxxP', len(rules), ctypes.addressof(buffer))
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header):
    raise OSError(ctypes.get_errno(), 'seccomp')


def called(space, name, message):
  """One call's value, or what went wrong."""
  try:
    found = space[name](*decode(message['args']), **decode(message['named']))
    return {'value': encode(found)}
  except BaseException as error:
    return {'error': type(error).__name__}


def serve(job, read, write):
  """Answers calls of the program's function until there are no more."""
  space = {'__name__': 'program'}
  try:
    exec(compile(job['source'], 'program', 'exec'), space)
  except BaseException as error:
    return write({'error': type(error).__name__})
  write({'ready': True})
  while message := read():
    write({'call': message['call'], **called(space, job['name'], message)})


def judge(job, read, write):
  """Runs a test whose candidate is in another process; says how it went."""
  count = 0

  def candidate(*args, **named):
    nonlocal count
    count += 1
    write({'call': count, 'args': encode(list(args)), 'named': encode(named)})
    reply = read()
    if 'value' not in reply:
      raise RuntimeError(reply.get('error'))
    return decode(reply['value'])

  space = {'__name__': 'test'}
  try:
    exec(compile(job['source'], 'test', 'exec'), space)
    space[job['name']] = candidate
    space['check'](candidate)
    verdict = True
  except BaseException:
    verdict = False
  write({'verdict': verdict, 'calls': count})


def main():
  # The program's prints go nowhere, and its reads find an end.
  lines, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
  for number in (0, 1):
    os.dup2(2, number)
  job = json.loads(lines.readline())

  def read():
    line = lines.readline()
    return json.loads(line) if line else None

  def write(message):
    out.write(json.dumps({'nonce': job['nonce'], **message}) + '\n')
    out.flush()

  limit(job['limits'])
  filter_calls()
  {'program': serve, 'test': judge}[job['role']](job, read, write)


if __name__ == '__main__':
  main()
