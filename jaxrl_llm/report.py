"""A run's health as one HTML file that needs nothing beside it."""

import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from jaxrl_llm import figure, health
from jaxrl_llm.evaluate import diversity

COLOURS = {health.GREEN: '#2e8b57', health.AMBER: '#e0a030', health.RED: '#c03030'}
# Panels: title, and the training metrics in it where a run has them.
PANELS = {
  'length, tokens': ('length',),
  'KL to the reference, nats per token': ('kl_ref',),
  'entropy, nats': ('entropy',),
  'share clipped': ('clipped',),
  'share of groups without a signal': ('groups_tied',),
  'share out of room': ('truncated',),
  'sampler mismatch, nats per token': ('mismatch_k3',),
}
SHOWN_STEPS, SHOWN_ROWS, CELL = 6, 4, 400  # Of the table of samples.
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px;
  color: #222; }
table { border-collapse: collapse; margin: .6em 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: left;
  vertical-align: top; }
td.text { white-space: pre-wrap; max-width: 30em; overflow-wrap: anywhere;
  font: 12px ui-monospace, monospace; }
.light { display: inline-block; width: .9em; height: .9em; border-radius: 50%; }
"""


def page(title: str, history: health.History, record: dict) -> str:
  """The whole document.

  Args:
    record: the run's run.json, for what it was.
  """
  parts = [f'<h1>{html.escape(title)}</h1>', about(record)]
  parts += ['<h2>Lights</h2>', lights_table(health.lights(history))]
  parts += ['<h2>Curves</h2>', curves(history)]
  if history.samples:
    parts += ['<h2>Samples over time</h2>', samples_table(history.samples)]
  body = '\n'.join(parts)
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    f'<body>\n{body}\n</body></html>\n'
  )


def about(record: dict) -> str:
  config = record.get('config', {})
  facts = {
    'method': config.get('method', {}).get('name'),
    'model': config.get('model', {}).get('name'),
    'task': config.get('task', config.get('data', {})).get('name'),
    'steps': config.get('steps'),
    'started': record.get('started'),
    'commit': record.get('commit'),
  }
  said = ', '.join(f'{k} {v}' for k, v in facts.items() if v is not None)
  return f'<p>{html.escape(said)}</p>'


def lights_table(lights: Sequence[health.Light]) -> str:
  if not lights:
    return '<p>Too few records for any light.</p>'
  rows = [
    f'<tr><td><span class="light" style="background:{COLOURS[light.colour]}"></span> '
    f'{light.colour}</td><td>{html.escape(light.name)}</td>'
    f'<td>{html.escape(light.said)}</td></tr>'
    for light in lights
  ]
  return f'<table>{"".join(rows)}</table>'


def curves(history: health.History) -> str:
  """Reward and its parts against the held-out score, then a panel a metric."""
  parts = sorted({k for r in history.train for k in r if k.startswith('reward/')})
  panels = [('reward, its parts and the held-out score', ('reward', *parts))]
  panels += list(PANELS.items())
  drawn = [svg(title, lines(history, names)) for title, names in panels]
  drawn.append(svg('diversity of the samples', diversity_lines(history.samples)))
  return '\n'.join(filter(None, drawn)) or '<p>No curves.</p>'


def lines(history: health.History, names: Sequence[str]) -> dict[str, list[tuple]]:
  """Name -> (step, value) of those that there are."""
  known = lambda rows, k: [(r['step'], r[k]) for r in rows if r.get(k) is not None]
  found = {name: known(history.train, name) for name in names}
  if 'reward' in names:
    found['held-out score'] = known(history.held, 'eval/score')
  return {name: points for name, points in found.items() if points}


def diversity_lines(samples: Sequence[dict]) -> dict[str, list[tuple]]:
  found: dict[str, list[tuple]] = {}
  for step, rows in health.tables(samples).items():
    for name, value in diversity.of_samples(rows).items():
      found.setdefault(name, []).append((step, value))
  return found


def svg(title: str, found: dict[str, list[tuple]]) -> str:
  """A panel as inline SVG; '' where there is nothing to draw."""
  if not found:
    return ''
  fig = Figure(figsize=(5.2, 2.9), layout='tight')
  axis = fig.subplots()
  if len(found) == 1:
    figure.draw_curve(axis, *found.values(), title)
  else:
    for name, points in found.items():
      axis.plot(*zip(*points), '.-' if len(points) < 30 else '-', label=name, lw=1.2)
    axis.legend(fontsize=7, frameon=False)
    figure.finish(axis, title)
  text = io.StringIO()
  fig.savefig(text, format='svg', metadata={'Date': None})
  return text.getvalue()[text.getvalue().index('<svg') :]


def samples_table(samples: Sequence[dict]) -> str:
  """Some rows of some steps, the same prompts where they come again."""
  by_step = health.tables(samples)
  steps = list(by_step)
  every = max(1, -(-len(steps) // SHOWN_STEPS))
  chosen = sorted({*steps[::every], steps[-1]})
  cell = lambda x: f'<td class="text">{html.escape(str(x)[:CELL])}</td>'
  rows = [
    f'<tr><td>{step}</td>{cell(row["prompt"])}{cell(row["completion"])}'
    f'<td>{row["reward"]:.3g}</td></tr>'
    for step in chosen
    for row in by_step[step][:SHOWN_ROWS]
  ]
  head = '<tr><th>step</th><th>prompt</th><th>completion</th><th>reward</th></tr>'
  return f'<table>{head}{"".join(rows)}</table>'
