r"""Times this library against a peer on the same work, in turn.

  python experiments/benchmarks/versus.py --peer=trl --python=VENV/bin/python \
    --work=dpo --rounds=2 [--tuned]

VENV is an environment of your own with the peer in it (README.md has versions);
nothing is installed here. Both start from one checkpoint of SmolLM2-135M-Instruct and
see the same prompts, in float32. `--tuned` gives both the allocator settings that
experiments/train.py has. The first step of a run is left out: it compiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxrl_llm import command, log
from jaxrl_llm.models import pretrained, weights

HERE = Path(__file__).parent
PEERS = {'trl': 'trl_peer.py', 'tunix': 'tunix_peer.py'}
PHASES = ('step', 'rollout', 'update')
ALIKE = 1e-4  # Of losses; float32 has made 2.1e-5 of it (README.md).


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--peer', choices=PEERS, required=True)
  parser.add_argument('--python', required=True, help="the peer's interpreter")
  parser.add_argument('--work', choices=('grpo', 'dpo', 'sft'), required=True)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--folder', type=Path, default=Path('runs/benchmarks'))
  parser.add_argument('--tuned', action='store_true')
  parser.add_argument('--out', type=Path, help='a JSON file of all steps')
  options = parser.parse_args()
  prepare(options.folder)
  pair = {
    'ours': [sys.executable, str(HERE / 'ours.py')],
    options.peer: [options.python, str(HERE / PEERS[options.peer])],
  }
  found = {name: [] for name in pair}
  for _ in range(options.rounds):
    for name, script in pair.items():
      found[name].append(run(script, options))
      print(name, json.dumps(found[name][-1][-1]), flush=True)
  log.keep(options.out, found)
  report(found, options)


def prepare(folder: Path) -> None:
  """The checkpoint and the token ids, once."""
  model = pretrained.load('smollm2')
  if not (folder / 'model').exists():
    folder.mkdir(parents=True, exist_ok=True)
    params = model.params(lambda path, shape: None)
    fields = model.fields | {'torch_dtype': 'float32'}
    weights.save(folder / 'model', fields, params, tokenizer=model.tokenizer)
  texts = [f'What is {a} + {a * 3 + 7}? Answer with a number.' for a in range(11, 91)]
  ids = [
    pretrained.encode_chat(model.tokenizer, [{'role': 'user', 'content': text}])
    for text in texts
  ]
  length = np.array([len(x) for x in ids], np.int32)
  prompts = np.zeros((len(ids), length.max()), np.int32)
  for row, x in zip(prompts, ids):
    row[: len(x)] = x
  vocab = range(model.config.vocab)
  np.savez(
    folder / 'work.npz',
    texts=np.array(texts),
    prompts=prompts,
    length=length,
    pairs=np.random.default_rng(0).integers(3, 49152, (len(ids), 2, 64)).astype('i4'),
    stop_ids=np.array(pretrained.stop_ids(model.tokenizer), np.int32),
    digits=np.array(
      [i for i in vocab if model.tokenizer.decode([i]).strip().isdigit()], np.int32
    ),
  )


def run(script, options) -> list[dict]:
  """One process's steps, the first left out."""
  env = os.environ | {'PYTHONPATH': str(HERE.parents[1])}
  env |= command.GLIBC if options.tuned else {}
  out = subprocess.run(
    [*script, options.work, str(options.folder), str(options.steps)],
    env=env,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  lines = [json.loads(x) for x in out.stdout.splitlines() if x.startswith('{"step"')]
  return lines[1:]


def report(found, options) -> None:
  """Medians by phase and the ratio round by round; an error unless the losses agree."""
  (_, ours), (peer, theirs) = found.items()
  for name, rounds in found.items():
    steps = [s for r in rounds for s in r]
    shown = [f'{p} {statistics.median(s[p] for s in steps):.2f}' for p in PHASES]
    total = lambda key: sum(s[key] for s in steps)
    tokens, rate = total('tokens') / len(steps), total('tokens') / total('step')
    peak = max(s['peak_gib'] for s in steps)
    of = f'{tokens:.0f} tokens a step, {rate:.0f} a second, {peak:.1f} GiB'
    print(f'{name}: {", ".join(shown)} s, {of}')
  middle = lambda steps: statistics.median(s['step'] for s in steps)
  ratios = [middle(t) / middle(o) for o, t in zip(ours, theirs)]
  print(f'{peer} / ours, round by round: {", ".join(f"{r:.2f}" for r in ratios)}')
  if options.work != 'grpo':  # With grpo each learns from completions of its own.
    pairs = [two for rounds in zip(ours, theirs) for two in zip(*rounds)]
    gap = max(abs(a['loss'] - b['loss']) for a, b in pairs)
    print(f'largest difference of the losses: {gap:.1e}')
    if not gap < ALIKE:
      raise SystemExit(f'That is not the same work: it is to be below {ALIKE:.0e}.')


if __name__ == '__main__':
  main()
