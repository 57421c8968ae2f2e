r"""Scores a reward on a benchmark of reward models, by the benchmark's own rules.

  python experiments/score_benchmark.py rm_bench PATH --by='learned(run="runs/rm")'

--by is any reward of jaxrl_llm/rewards, or a dotted path to your own: `characters`
(length alone), 'likelihood(model="smollm2")', 'judge(by=...)'. `judge_pairs(by=...)` is
asked about pairs, in both orders. On the benchmark principles,
'learned(run=..., principle="@principle")' is asked about each item's own. PATH is
a published file, or a table with its fields. With --progress=FILE the scores are kept
as they come, and the same command goes on where it was cut off.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from jaxrl_llm import build, command, log
from jaxrl_llm.data.reshape import digest
from jaxrl_llm.evaluate import benchmarks, calibration
from jaxrl_llm.rewards import combine
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError

BLOCK = 16  # Items between two writes of --progress.


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('benchmark', choices=sorted(benchmarks.BENCHMARKS))
  parser.add_argument('path')
  parser.add_argument('--by', default='characters')
  parser.add_argument('--limit', type=int, default=0, help='items; 0 is all')
  parser.add_argument('--progress', default='', help='a .jsonl file of scores so far')
  parser.add_argument('--out', default='', help='a file for the result as JSON')
  args = parser.parse_args(argv)
  items = benchmarks.load(args.benchmark, args.path)
  items = items[: args.limit] if args.limit else items
  options = build.spelled(args.by, '--by')
  judge = build.made('jaxrl_llm.rewards', options, '--by')
  pairs = options['name'] == 'judge_pairs'
  score = lambda some: by_pairs(judge, some) if pairs else by_reward(judge, some)
  path = Path(args.progress) if args.progress else None
  scores = remembered(score, items, args.by, path) if path else score(items)
  table = benchmarks.BENCHMARKS[args.benchmark].table(items, scores)
  report = table if pairs else table | about(items, scores)
  print(markdown(report, f'{args.benchmark}, {args.by}'))
  if args.out:
    found = {'by': args.by, 'items': len(items), 'table': report}
    found['scores'] = [[round(float(x), 4) for x in row] for row in scores]
    log.write_json(Path(args.out), found)


def remembered(score, items, by: str, path: Path) -> list[np.ndarray]:
  """The score of each response, item by item; what the file has is not asked again.

  Args:
    by: the reward as it is spelled; the scores of another one do not count.
  """
  rows = log.read_lines(path)
  if path.exists():  # A last line cut short by a kill would spoil the next.
    log.write_lines(path, rows)
  known = {row['key']: row['scores'] for row in rows}
  key = lambda item: digest([by, item.prompt, item.responses, item.extra])
  new = [item for item in items if key(item) not in known]
  for start in range(0, len(new), BLOCK):
    block = new[start : start + BLOCK]
    for item, found in zip(block, score(block), strict=True):
      known[key(item)] = found.tolist()
      log.append(path, {'key': key(item), 'scores': found.tolist()})
    print(f'{len(items) - len(new) + start + len(block)} of {len(items)}', flush=True)
  return [np.array(known[key(item)]) for item in items]


def samples(items) -> list[Sample]:
  """Every response of every item."""
  return [
    Sample(
      item.prompt,
      text,
      0,
      False,
      # No answer: the right response would be shown as a judge's reference.
      records.Record(i, records.chat(item.prompt), '', item.extra),
    )
    for i, item in enumerate(items)
    for text in item.responses
  ]


def by_reward(reward, items) -> list[np.ndarray]:
  """The score of each response, item by item."""
  found = np.array(combine.scored('--by', reward, samples(items)))
  ends = np.cumsum([len(item.responses) for item in items])
  return np.split(found, ends[:-1])


def by_pairs(judge: Batched, items) -> list[np.ndarray]:
  """Two responses' scores, of which the first is higher where the judge prefers it."""
  if any(len(item.responses) != 2 for item in items):
    raise InputError('judge_pairs scores benchmarks of pairs; here are more responses.')
  rows = samples(items)
  found = judge.score(list(zip(rows[::2], rows[1::2])))
  return [np.array([x, -x]) for x in found]


def about(items, scores) -> benchmarks.Table:
  """Calibration of sigmoid(right - wrong), and what length has to do with it."""
  rows = [(s[0], s[item.right]) for item, s in zip(items, scores)]
  lengths = [
    (len(item.responses[0]), len(item.responses[item.right])) for item in items
  ]
  first, second = np.array(rows).T
  # Which of a pair is the right one must not be given away: both orders are outcomes.
  p = calibration.preferences(np.r_[first, second], np.r_[second, first])
  outcome = np.r_[np.ones(len(rows)), np.zeros(len(rows))]
  longer = calibration.longer_wins(np.array(rows), np.array(lengths))
  every = [len(text) for item in items for text in item.responses]
  return {
    'calibration error': (calibration.expected_error(p, outcome), len(rows)),
    'length correlation': (
      calibration.length_correlation(np.concatenate(scores), every),
      len(every),
    ),
    'longer wins': (longer, len(rows)),
  }


def markdown(table: benchmarks.Table, title: str) -> str:
  rows = [
    f'| {name} | {score:.4f} | {count:.0f} |' for name, (score, count) in table.items()
  ]
  return '\n'.join([f'| {title} | score | rows |', '|---|---|---|', *rows])


if __name__ == '__main__':
  sys.exit(command.status(lambda: main(sys.argv[1:])))
