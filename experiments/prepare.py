"""Tables as one folder: python experiments/prepare.py FOLDER train=PATH test=PATH

Then --config.data.path=tfds:FOLDER/records/1.0.0:train reads it, anywhere.
"""

import argparse
import sys

from jaxrl_llm import command
from jaxrl_llm.data import prepare
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder')
  parser.add_argument(
    'split', nargs='+', help='NAME=PATH; see jaxrl_llm/data/tables.py'
  )
  args = parser.parse_args(argv)
  splits = dict(split.partition('=')[::2] for split in args.split)
  if not all(splits.values()):
    raise InputError(f'Splits are NAME=PATH, not {" ".join(args.split)}.')
  print(f'tfds:{prepare.write(splits, args.folder)}')


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
