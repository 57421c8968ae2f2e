r"""Seconds of a step of each loss: python seconds.py WORKDIR --hh=F --labels=F --out=F

Every loss makes five updates of the claim's setting, one after the other on a machine
with nothing else to do; the first, which compiles, is left out. The reference's pass is
within the step (in a run it is made before the first one, and costs as much).
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from claim import METHODS, setting

from jaxrl_llm.log import read_lines, write_json

SHORT = (
  '--config.steps=5',
  '--config.evaluation.every=0',
  '--config.source.cache_reference=False',
  '--config.log.tensorboard=False',
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir', type=Path)
  for name in ('hh', 'labels', 'out'):
    parser.add_argument(f'--{name}', type=Path, required=True)
  args = parser.parse_args()
  found = {}
  for method in METHODS:
    path = args.labels if method == 'kto' else args.hh
    flags = [*setting(method), f'--config.data.path={path}', *SHORT]
    folder = args.workdir / method
    command = [sys.executable, 'experiments/train.py', *flags, f'--workdir={folder}']
    subprocess.run(command, check=True)
    lines = [r for r in read_lines(folder / 'metrics.jsonl') if r['split'] == 'train']
    found[method] = [r['seconds/update'] for r in lines[1:]]
    print(method, statistics.median(found[method]), flush=True)
  write_json(args.out, found)


if __name__ == '__main__':
  main()
