"""Starts a command in namespaces of its own: python -I -S confine.py PLAN

For Linux where bubblewrap is not installed: no network, no other processes, a root that
holds what PLAN names and nothing else, read-only, and a small /tmp. It waits outside,
where what it started cannot reach it, and kills it when its time is up. Standard
library alone.
"""

import ctypes
import json
import os
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
  *(0x00020000, 0x04000000, 0x08000000),
  *(0x10000000, 0x20000000, 0x40000000),
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH, PIVOT_ROOT = 2, {'x86_64': 155, 'aarch64': 41}
NOBODY = 65534
# Flags that a mount in a new user namespace must keep, by statvfs's numbers.
KEPT = {2: NOSUID, 4: NODEV, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}


def check(result, what):
  if result:
    raise OSError(ctypes.get_errno(), what)


def mount(source, target, kind, flags, data=''):
  words = [x.encode() if x else None for x in (source, target, kind)]
  check(LIBC.mount(*words, ctypes.c_ulong(flags), data.encode()), f'mount {target}')


def map_user(uid, gid):
  """The same user inside as outside, with rights over the new namespaces alone."""
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{uid} {uid} 1'),
    ('gid_map', f'{gid} {gid} 1'),
  ):
    with open(f'/proc/self/{name}', 'w') as file:
      file.write(text)


def bind(path):
  """A file or folder of the old root at its own place, read-only; links stay links."""
  old = '/old' + path
  os.makedirs(os.path.dirname(path), exist_ok=True)
  if os.path.islink(old):
    return os.symlink(os.readlink(old), path)
  if os.path.isdir(old):
    os.makedirs(path, exist_ok=True)
  else:
    os.close(os.open(path, os.O_CREAT))
  mount(old, path, None, BIND | REC)
  has = os.statvfs(path).f_flag
  keep = sum(flag for bit, flag in KEPT.items() if has & bit)
  return mount(None, path, None, BIND | REMOUNT | RDONLY | NOSUID | NODEV | keep)


def make_root(plan):
  """A root of its own; the old one is gone afterwards."""
  mount(None, '/', None, REC | PRIVATE)
  mount('tmpfs', '/tmp', 'tmpfs', NOSUID | NODEV, 'size=1m,mode=755')
  os.chdir('/tmp')
  os.mkdir('old')
  number = PIVOT_ROOT[os.uname().machine]
  check(LIBC.syscall(number, b'/tmp', b'/tmp/old'), 'pivot_root')
  os.chdir('/')
  for path in plan['shown']:
    bind(path)
  for path in plan['hidden']:
    mount('tmpfs', path, 'tmpfs', RDONLY, 'size=4k')
  os.makedirs('/tmp', exist_ok=True)
  mount('tmpfs', '/tmp', 'tmpfs', NOSUID | NODEV, f'size={plan["disk"]},mode=1777')
  check(LIBC.umount2(b'/old', DETACH), 'umount')
  os.rmdir('/old')
  mount(None, '/', None, REMOUNT | RDONLY | NOSUID | NODEV, 'size=1m,mode=755')
  os.chdir('/tmp')


def become(plan, root):
  """The command, without rights, in the process that is first of its namespace."""
  os.setsid()
  if root:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
  check(LIBC.prctl(38, 1, 0, 0, 0), 'no new privileges')
  os.execve(plan['command'][0], plan['command'], {})


def main():
  plan = json.loads(sys.argv[1])
  uid, gid = os.getuid(), os.getgid()
  spaces = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (NEWUSER if uid else 0)
  check(LIBC.unshare(spaces), 'unshare')
  if uid:
    map_user(uid, gid)
  make_root(plan)
  child = os.fork()
  if not child:
    try:
      become(plan, root=not uid)
    finally:
      os._exit(1)
  end = lambda *_: os.kill(child, signal.SIGKILL)
  for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
    signal.signal(number, end)
  LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)  # The trainer's death is the child's,
  if os.getppid() != plan['parent']:  # also where it came before this.
    end()
  signal.setitimer(signal.ITIMER_REAL, plan['seconds'])
  os.waitpid(child, 0)


if __name__ == '__main__':
  main()
