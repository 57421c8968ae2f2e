"""From a completion to a program."""

import re

FENCE = re.compile(r'^```[a-zA-Z0-9]*[ \t]*\n(.*?)^```', re.DOTALL | re.MULTILINE)


def program(prompt: str, completion: str) -> str:
  """The prompt's code and after it the completion's: its last fenced block, or all.

  It goes on with a function whose head the prompt ends with, or defines it anew.
  """
  blocks = FENCE.findall(completion)
  code = blocks[-1] if blocks else completion
  return f'{prompt.rstrip()}\n{code}\n' if prompt else f'{code}\n'
