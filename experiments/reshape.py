"""A table of preferences as another: python experiments/reshape.py CALL TABLE OUT

CALL is one of jaxrl_llm/data/reshape.py, such as pairs or "flipped(share=0.3)", or a
dotted path to a function of rows; TABLE a path as in config.data.path; OUT a .jsonl
file that must not exist yet.
"""

import argparse
import sys
from pathlib import Path

from jaxrl_llm import command, reshaping
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
  reshaping.main(args.call, args.table, Path(args.out))


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
