"""The tables of this claim: python data.py GSM8K HH FOLDER

GSM8K is the folder with model_solutions.jsonl, HH a file of hh-rlhf's harmless-base.
Of each source some pairs of an answer that keeps a principle and one that does not:

  GSM8K's graded solutions: correct, short, form, calculations shown (data/solutions.py)
  hh-rlhf, first turns alone: harmless, as its labellers chose
  feedback in words (principles/grammar.py): what is extracted of three annotators'
    sentences, and agreed on, by minilm's embedding

FOLDER gets pairs.jsonl for bradley_terry, judgements.jsonl, the same for rlbff, and of
other questions test.jsonl and test_judgements.jsonl.
"""

import random
import sys
from pathlib import Path

from jaxrl_llm import log
from jaxrl_llm.data import reshape, solutions, tables
from jaxrl_llm.embeddings.minilm import minilm
from jaxrl_llm.principles import extraction, grammar, matched, table

# Pairs to learn from and held out, of each source.
SIZES = {'GSM8K': (500, 200), 'hh-rlhf': (300, 200), 'feedback': (208, 200)}
HARMLESS = 'The answer is harmless.'
TEST_ROWS = 200  # Of GSM8K's 1,319 questions.
LONGEST = 500  # Characters of a question or an answer.


def main(gsm8k: str, hh: str, folder: str) -> None:
  graded = read(f'{gsm8k}/model_solutions.jsonl')
  found = {
    'GSM8K': [of_solutions(graded[:-TEST_ROWS]), of_solutions(graded[-TEST_ROWS:])],
    'hh-rlhf': of_transcripts(read(hh)),
    'feedback': [of_feedback(), [*grammar.pairs(size=300, seed=1)]],
  }
  train, test = [], []
  for source, (known, new) in found.items():
    known, new = ([row for row in rows if fits(row)] for rows in (known, new))
    asked = {row['prompt'] for row in known}
    new = [row for row in new if row['prompt'] not in asked]
    for rows, size, out in zip((known, new), SIZES[source], (train, test)):
      if len(rows) < size:
        sys.exit(f'{source} has {len(rows)} pairs; {size} are due.')
      rows = random.Random(0).sample(rows, size)
      out += [row | {'rule': source} for row in rows]
  random.Random(0).shuffle(train)
  out = Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  log.write_lines(out / 'pairs.jsonl', train)
  log.write_lines(out / 'judgements.jsonl', [*matched.judgements(train)])
  log.write_lines(out / 'test.jsonl', test)
  log.write_lines(out / 'test_judgements.jsonl', [*matched.judgements(test)])
  print(f'{len(train)} pairs to learn from, {len(test)} held out: {out}')


def read(path: str) -> list[dict]:
  rows = tables.open_table(path)
  return [rows[i] for i in range(len(rows))]


def fits(row: dict) -> bool:
  return max(len(row[key]) for key in ('prompt', *reshape.SIDES)) <= LONGEST


def of_solutions(rows):
  return [*matched.pairs(solutions.principles(rows))]


def of_transcripts(rows) -> list[list]:
  """Pairs of one question each; of the file the last two fifths are held out."""
  single = [
    {
      'prompt': row['prompt'][0]['content'],
      **{side: row[side][0]['content'] for side in reshape.SIDES},
      'principle': HARMLESS,
    }
    for row in reshape.transcripts(rows)
    if len(row['prompt']) == 1
  ]
  single = [row for row in reshape.deduplicated(single) if row['chosen'].strip()]
  known = 3 * len(single) // 5
  return [single[:known], single[known:]]


def of_feedback():
  """From sentences to principles as experiments/principles.py does, and their pairs."""
  rows = [*grammar.feedback(size=250, answers=4)]
  given = [table.feedback(row) for row in rows]
  said = extraction.extract(grammar.reader(), [x.feedback for x in given])
  embedder = minilm()
  records, counts = table.records(given, said, embedder, embedder.threshold)
  print(dict(counts))
  return [*matched.pairs(records)]


if __name__ == '__main__':
  main(*sys.argv[1:])
