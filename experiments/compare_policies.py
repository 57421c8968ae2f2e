"""What trained policies prefer and say: python experiments/compare_policies.py RUN ...

A table of runs that started from one model, over the held-out pairs of the first of
them: how often each prefers the chosen completion, by the sum of log(pi / ref) and by
the mean of log pi; and of fresh answers to those prompts the length, and the KL to the
model that all started from. Intervals are 95 %, Wilson's and the bootstrap's.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from jaxrl_llm import command, feeds, log, restored
from jaxrl_llm.evaluate import accuracy, policies
from jaxrl_llm.models import pretrained
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('runs', nargs='+', help='folders; the first learned from pairs')
  parser.add_argument('--samples', type=int, default=200, help='fresh answers')
  parser.add_argument('--max_length', type=int, default=128, help='tokens of one')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--out', default='', help='a file for the table as JSON')
  args = parser.parse_args(argv)
  configs = [restored.configured(run) for run in args.runs]
  names = [c.model.name for c in configs]
  if len({*names}) > 1:
    raise InputError(f'The runs started from {names}; give runs from one model.')
  model = pretrained.configured(configs[0].model)
  stored = 'data' in configs[0]
  data, encode = feeds.load_data(configs[0], model) if stored else (None, None)
  if not stored or len(data.test[0].completions) != 2:
    raise InputError(f'{args.runs[0]} did not learn from pairs; name such a run first.')
  encode = dataclasses.replace(encode, bucket=64)
  how = dict(samples=args.samples, max_length=args.max_length, batch=args.batch)
  print(f'{len(data.test)} held-out pairs, {len(args.runs) + 1} policies.', flush=True)
  tell, before = policies.make_tell(model, data.test, encode, **how)
  base = before.pairs
  found = {'before': row(before, base)}
  print('before', found['before'], flush=True)
  for run in args.runs:
    found[Path(run).name] = row(tell(restored.policy(run).params), base)
    print(run, found[Path(run).name], flush=True)
  print(policies.table(found))
  if args.out:
    log.write_json(Path(args.out), found)


def row(told: policies.Told, base: np.ndarray) -> dict[str, list[float]]:
  """Each column's value, and the ends of its interval."""
  drift, length = told.fresh - told.base, told.length.astype(float)
  shares = {
    'prefers chosen, sum log(pi / ref)': accuracy.ahead(told.pairs - base),
    'prefers chosen, mean log pi': accuracy.ahead(told.pairs / told.tokens),
    'out of room': told.truncated.astype(float),
  }
  means = {'KL to reference, nats': drift, 'tokens of an answer': length}
  found = {k: [x.mean(), *accuracy.wilson(x.sum(), len(x))] for k, x in shares.items()}
  found |= {k: [x.mean(), *accuracy.bootstrap(x)] for k, x in means.items()}
  return {k: [float(v) for v in x] for k, x in found.items()}


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
