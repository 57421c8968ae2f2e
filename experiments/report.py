"""A run's health in one HTML file: python experiments/report.py WORKDIR [--out=FILE]"""

import argparse
import json
import sys
from pathlib import Path

from jaxrl_llm import command, health, log, report
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('--out', default='', help='WORKDIR/report.html if not given')
  args = parser.parse_args(argv)
  folder = Path(args.workdir)
  if not (folder / 'run.json').exists():
    raise InputError(f'{folder} holds no run (no run.json).')
  records = log.read_lines(folder / 'metrics.jsonl')
  history = health.split(records, log.read_lines(folder / 'samples.jsonl'))
  record = json.loads((folder / 'run.json').read_text())
  out = Path(args.out or folder / 'report.html')
  out.write_text(report.page(folder.name, history, record))
  for light in health.lights(history):
    print(f'{light.colour:6} {light.name}: {light.said}')
  print(f'The report is {out}.')


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
