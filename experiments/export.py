"""A run's policy for transformers: python experiments/export.py WORKDIR FOLDER"""

import argparse
import sys

from jaxrl_llm import restored
from jaxrl_llm.models import weights
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('folder', help='must not exist yet')
  args = parser.parse_args(argv)
  policy = restored.policy(args.workdir)
  weights.save(
    args.folder, policy.decoder.config, policy.params, tokenizer=policy.tokenizer
  )
  print(f'{args.folder}: config.json, model.safetensors and the tokenizer.')


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
