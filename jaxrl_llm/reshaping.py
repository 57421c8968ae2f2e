"""A table of preferences as another: a call of data/reshape.py, from file to file."""

from pathlib import Path

from jaxrl_llm import build, log
from jaxrl_llm.data import reshape, tables
from jaxrl_llm.types import InputError


def function(call: str):
  """The function that a call names, or a dotted path: rows to rows."""
  return build.function(reshape.__name__, call, 'CALL')


def main(call: str, table: str, out: Path) -> None:
  """Writes what `call` makes of a table to `out`, whole or not at all.

  Args:
    call: such as pairs or "flipped(share=0.3)".
    table: a path as in config.data.path.

  Raises:
    InputError: a row does not fit, with its file and line, or none is left.
  """
  change, rows = function(call), tables.open_table(table)
  at = ['']
  try:
    found = list(change(read(rows, at)))
  except InputError as error:
    raise InputError(f'{at[0]}: {error}' if at[0] else str(error)) from error
  if not found:
    raise InputError(f'{call}: of {len(rows)} rows none is left.')
  log.write_lines(out, found)
  print(f'{out}: {len(found)} rows, of {len(rows)}.')


def read(table, at: list[str]):
  """Rows in turn; `at` says where the last one stands, once it could be read."""
  for i in range(len(table)):
    at[0] = ''
    row = table[i]
    at[0] = table.where(i)
    yield row
