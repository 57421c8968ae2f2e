"""A run for transformers, its policy or reward model: export.py WORKDIR FOLDER"""

import argparse
import sys

from jaxrl_llm import command, forward, restored
from jaxrl_llm.models import lora
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('folder', help='must not exist yet')
  parser.add_argument(
    '--adapters', action='store_true', help="a LoRA run's adapters alone, for PEFT"
  )
  args = parser.parse_args(argv)
  _, method = restored.trained(args.workdir)
  scores = 'reward' in forward.networks(method)['params']
  found = (restored.reward if scores else restored.policy)(args.workdir)
  if not args.adapters:
    restored.export(found, args.folder)
    print(f'{args.folder}: config.json, model.safetensors and the tokenizer.')
    return
  if found.adapters is None or scores:
    why = 'a reward model' if scores else 'without LoRA'
    raise InputError(f'{args.workdir} trained {why}; leave out --adapters.')
  low_rank, params = found.adapters
  with_it = dict(base=found.name, tokenizer=found.tokenizer)
  lora.save(args.folder, found.fields, params, low_rank, **with_it)
  print(f'{args.folder}: adapter_config.json, adapter_model.safetensors, tokenizer.')


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
