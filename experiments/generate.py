"""Samples from a run: python experiments/generate.py WORKDIR --prompt='2 + 3 ='"""

import argparse
import sys

import jax
import numpy as np

from jaxrl_llm import command, restored
from jaxrl_llm.data import chat
from jaxrl_llm.models import pretrained
from jaxrl_llm.rollout import draw
from jaxrl_llm.rollout.sampler import make_sampler
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('--prompt', required=True, help='the user message')
  parser.add_argument(
    '--plain', action='store_true', help='the prompt is text, without a chat template'
  )
  parser.add_argument('--samples', type=int, default=1)
  parser.add_argument('--temperature', type=float, default=0.0, help='0 is greedy')
  parser.add_argument('--top_k', type=int, default=0, help='0 is all')
  parser.add_argument('--top_p', type=float, default=1.0)
  parser.add_argument('--min_p', type=float, default=0.0)
  parser.add_argument('--max_length', type=int, default=64, help='tokens')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  for name, lowest in {
    'samples': 1,
    'max_length': 1,
    'temperature': 0,
  }.items():
    if (value := vars(args)[name]) < lowest:
      raise InputError(f'--{name}={value}; give at least {lowest}.')
  truncation = draw.truncation(vars(args))
  draw.check('Flags: ', **truncation)
  policy = restored.policy(args.workdir)
  tokenizer = policy.tokenizer
  asked = [{'role': 'user', 'content': args.prompt}]
  ids = chat.plain(tokenizer, args.prompt) if args.plain else None
  ids = ids or pretrained.encode_chat(tokenizer, asked)
  if (need := len(ids) + args.max_length) > policy.decoder.config.max_positions:
    raise InputError(
      f'Prompt and completion need {need} positions; the model has '
      f'{policy.decoder.config.max_positions}. Shorten one of them.'
    )
  sample = make_sampler(policy.decoder, group=args.samples, max_length=args.max_length)
  how = draw.options(
    1,
    max_length=args.max_length,
    stop_ids=pretrained.stop_ids(tokenizer),
    temperature=args.temperature,
    **truncation,
  )
  arrays = [[ids], [len(ids)], [0]]
  prompt = (np.array(x, np.int32) for x in arrays)
  rollout = sample(policy.params, *prompt, how, jax.random.key(args.seed), 0)
  for row, length in zip(rollout.tokens[0], rollout.length[0]):
    print(tokenizer.decode(row[:length], skip_special_tokens=True))


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
