r"""Feedback in words as principles: python experiments/principles.py TABLE FOLDER ...

  python experiments/principles.py feedback.jsonl out \
    --by='server(url="http://HOST/v1", model="NAME")' --embed=minilm

TABLE has a row for each feedback, {prompt, completion, annotator, feedback}. --by is a
judge (jaxrl_llm/judges, or a dotted path to your own), --embed one of
jaxrl_llm/embeddings. FOLDER gets said.jsonl, what was read in each feedback;
principles.jsonl, of kind 'principles'; and counts.json, what became of all claims. The
same command goes on where it stopped, and asks nothing twice: another --threshold costs
no question.
"""

import argparse
import sys
from pathlib import Path

from jaxrl_llm import build, command, log
from jaxrl_llm.data import files, reshape, tables
from jaxrl_llm.judges import asked
from jaxrl_llm.principles import extraction, table
from jaxrl_llm.types import InputError


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('table')
  parser.add_argument('folder')
  parser.add_argument('--by', required=True)
  parser.add_argument('--embed', default='minilm')
  parser.add_argument(
    '--threshold', type=float, help="of cosines; the embedding's own if not given"
  )
  parser.add_argument(
    '--columns', default='', help='prompt=context,completion=response'
  )
  parser.add_argument('--batch', type=int, default=64, help='feedbacks asked at once')
  args = parser.parse_args(argv)
  folder = Path(args.folder)
  embedder = build.made(
    'jaxrl_llm.embeddings', build.spelled(args.embed, '--embed'), '--embed'
  )
  threshold = embedder.threshold if args.threshold is None else args.threshold
  rows = read(args.table, files.named(args.columns))
  folder.mkdir(parents=True, exist_ok=True)
  said = extracted(rows, args.by, folder / 'said.jsonl', args.batch)
  found, counts = table.records(rows, said, embedder, threshold)
  log.write_json(folder / 'counts.json', counts | {'threshold': threshold})
  for name, count in counts.items():
    print(f'{count:8d} {name}')
  if not found:
    raise InputError(
      f'{args.table}: no principle is agreed on. {folder}/counts.json says what became '
      'of the claims; a response needs two annotators, and --threshold may be lower.'
    )
  log.write_lines(folder / 'principles.jsonl', found)
  print(f'{folder}/principles.jsonl: {len(found)} rows.')


def read(path: str, columns: dict[str, str]) -> list[table.Feedback]:
  """The rows of a table, with their fields renamed."""
  rows, found = tables.open_table(path), []
  for i in range(len(rows)):
    with tables.located(rows.where(i)):
      found.append(table.feedback(files.renamed(rows[i], columns)))
  return found


def extracted(rows, by: str, path: Path, batch: int) -> list:
  """What each feedback says, from `path` where it is there, else asked and kept."""
  name = lambda row: reshape.digest([by, row.feedback])
  lines = log.read_lines(path)
  log.write_lines(path, lines)  # A last line cut short by a kill would spoil the next.
  known = {x['of']: x['said'] for x in lines}
  due = {name(row): row.feedback for row in rows if name(row) not in known}
  ask = asked.make(build.spelled(by, '--by')) if due else None
  todo = list(due)
  for start in range(0, len(todo), batch):
    turn = todo[start : start + batch]
    told = extraction.extract(ask, [due[k] for k in turn], [*known.values()])
    for of, said in zip(turn, told):
      known[of] = said
      log.append(path, {'of': of, 'said': said})
    print(f'{start + len(turn)} of {len(todo)} feedbacks read.')
  back = lambda said: None if said is None else [extraction.Claim(*x) for x in said]
  return [back(known[name(row)]) for row in rows]


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
