r"""What batches drawn ahead (source.ahead) gain in time, and cost in reward.

  PYTHONPATH=. python experiments/benchmarks/overlap.py [--steps=60 --seeds=3]

configs/smoke.py's work. Time: seconds of a step from its record, quartiles, the arms in
turn, with a verifier that sleeps so many seconds a batch. Reward: mean of the last ten
steps, of runs that differ in their root key. `uncorrected` is what a run refuses.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import smoke
from jaxrl_llm import assemble, feeds, log, train
from jaxrl_llm.rewards import checker
from jaxrl_llm.rewards.sample import Batched

ARMS = {
  'in turn': (False, {}),
  'ahead, importance': (True, dict(importance='token')),
  'ahead, trust_sampler': (True, dict(trust_sampler=True)),
  'ahead, uncorrected': (True, {}),
}
SLEEPS = (0.0, 0.05, 0.5)
LAST = 10  # Steps whose reward is averaged.
pause = [0.0]  # Seconds that `slow` sleeps, the same program for all of them.


def slow(*, task):
  """The task's own verdict, after a pause for every batch."""
  reward = checker.checker(task=task)

  def score(samples):
    time.sleep(pause[0])
    return [reward(s) for s in samples]

  return Batched(score)


def assembled(ahead: bool, plan: dict, steps: int) -> assemble.Run:
  """configs/smoke.py's run with this source and plan."""
  c = smoke.get_config()
  c.steps = steps
  c.source.ahead = ahead
  c.plan.update(plan)
  c.rewards = dict(letter=dict(name=f'{__name__}.slow', weight=1.0))
  return assemble.assemble(c)


def records(run: assemble.Run, seed: int, steps: int) -> list[dict]:
  """The metrics of the first steps of a run with this root key."""
  state = jax.tree.map(jnp.copy, run.state).replace(key=jax.random.key(seed))
  meta, found = {'step': 0, 'rollouts': 0.0}, []
  for _ in range(steps):
    state, metrics, _ = train.one_step(run, state, meta)
    found.append(metrics)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--out', type=Path, help='a JSON file of what was found')
  options = parser.parse_args()
  feeds.refuse_uncorrected = lambda *_: None
  runs = {name: assembled(*arm, options.steps) for name, arm in ARMS.items()}
  learned = []
  for name, run in runs.items():  # Compiles, for what is timed.
    for seed in range(options.seeds):
      last = records(run, seed, options.steps)[-LAST:]
      mean = {k: float(np.mean([r.get(k, 0.0) for r in last])) for k in SHOWN}
      learned.append({'arm': name, 'seed': seed} | mean)
      print(json.dumps(learned[-1]), flush=True)
  found = {'learned': learned, 'seconds': seconds(runs, options)}
  print(json.dumps(found['seconds']), flush=True)
  log.keep(options.out, found)


SHOWN = ('reward', 'staleness', 'lag_k3', 'mismatch_k3')


def seconds(runs, options) -> dict[str, dict[str, list]]:
  """Quartiles of a step's seconds, by what the verifier sleeps and by arm."""
  found = {}
  for pause[0] in SLEEPS:
    spent = {name: [] for name in runs}
    for _ in range(options.seeds):
      for name, run in runs.items():
        some = records(run, 0, options.steps // 2)[2:]
        spent[name] += [r['tokens'] / r['tokens_per_second'] for r in some]
    quartiles = lambda x: np.quantile(x, (0.25, 0.5, 0.75)).tolist()
    found[str(pause[0])] = {k: quartiles(x) for k, x in spent.items()}
  return found


if __name__ == '__main__':
  main()
