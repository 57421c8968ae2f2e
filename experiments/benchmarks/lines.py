"""What every side of a benchmark prints: a JSON line per step. Needs no package."""

import json
import resource


def say(**said) -> None:
  """Prints a step's seconds by phase, loss and tokens, and the memory's peak so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(json.dumps(said | {'peak_gib': peak}), flush=True)
