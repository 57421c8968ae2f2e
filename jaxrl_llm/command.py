"""How a script ends, and the settings of glibc under which one is quick."""

import sys
from collections.abc import Callable

from jaxrl_llm.types import InputError

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


def status(main: Callable[[], None]) -> int:
  """Exit status: 0, or 2 with one message for a mistake of the user's."""
  try:
    main()
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
