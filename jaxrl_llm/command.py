"""How a script starts, so that it is quick, and how it ends."""

import os
import pathlib
import platform
import sys
from collections.abc import Callable

import jax

from jaxrl_llm.types import InputError

# Programs compiled once are read from here by later runs of this user.
CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')) / 'jaxrl_llm/xla'

# Without these, every step asks the kernel for its buffers page by page.
GUARD = 'JAXRL_LLM_ALLOCATOR'
GLIBC = {
  'MALLOC_MMAP_MAX_': '0',
  'MALLOC_TRIM_THRESHOLD_': '34359738368',
  'MALLOC_TOP_PAD_': '268435456',
  'MALLOC_ARENA_MAX': '1',
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  GUARD: '1',
}


def restart(*, allocator: bool = True) -> None:
  """With `allocator` starts the script again, once, with glibc tuned for large buffers,
  and with the options that the interpreter was given.
  """
  if allocator and platform.libc_ver()[0] == 'glibc' and GUARD not in os.environ:
    print('Starting again with glibc tuned for large buffers (off: --noallocator).')
    sys.stdout.flush()
    again = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, again, os.environ | GLIBC)


def keep_programs() -> None:
  """Compiled programs are kept in CACHE, or where JAX_COMPILATION_CACHE_DIR says."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(CACHE.expanduser()))


def status(main: Callable[[], None]) -> int:
  """Runs a script, which keeps its programs. Exit status: 0, or 2 with one message for
  a mistake of the user's.
  """
  keep_programs()
  try:
    main()
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
