"""Models merged into a new folder: python experiments/merge.py CALL FOLDER

CALL is one of jaxrl_llm/models/merging.py:
  "average(models=('runs/a/model', 'runs/b/model'), shares=(0.5, 0.5))"
"""

import argparse
import sys

from jaxrl_llm import command
from jaxrl_llm.models import merging, pretrained, weights


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('call')
  parser.add_argument('folder', help='must not exist yet')
  args = parser.parse_args(argv)
  model = merging.named(args.call, pretrained.load)
  weights.save(args.folder, model.fields, model.params(), tokenizer=model.tokenizer)
  print(f'{args.folder}: config.json, model.safetensors and the tokenizer.')


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
