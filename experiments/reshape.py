"""A table of preferences as another: python experiments/reshape.py CALL TABLE OUT

CALL is one of jaxrl_llm/data/reshape.py, such as pairs or "flipped(share=0.3)"; TABLE a
path as in config.data.path; OUT a .jsonl file that must not exist yet.
"""

import argparse
import sys
from pathlib import Path

from jaxrl_llm import build, command, log
from jaxrl_llm.data import reshape, tables
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('call')
  parser.add_argument('table')
  parser.add_argument('out')
  args = parser.parse_args(argv)
  if Path(args.out).exists():
    raise InputError(f'{args.out} is there already. Name another file.')
  table = tables.open_table(args.table)
  change = build.function(reshape.__name__, args.call, 'CALL')
  at = ['']
  try:
    rows = list(change(read(table, at)))
  except InputError as error:
    raise InputError(f'{at[0]}: {error}') from error
  if not rows:
    raise InputError(f'{args.call}: of {len(table)} rows none is left.')
  log.write_lines(Path(args.out), rows)
  print(f'{args.out}: {len(rows)} rows, of {len(table)}.')


def read(table, at: list[str]):
  """Rows in turn; `at` says where the last one stands."""
  for i in range(len(table)):
    at[0] = table.where(i)
    yield table[i]


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
