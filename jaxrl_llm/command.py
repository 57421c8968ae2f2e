"""How a script ends."""

import sys
from collections.abc import Callable

from jaxrl_llm.types import InputError


def status(main: Callable[[], None]) -> int:
  """Exit status: 0, or 2 with one message for a mistake of the user's."""
  try:
    main()
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
