"""The picture of a run, from its metrics.jsonl."""

from pathlib import Path

from matplotlib.figure import Figure

from jaxrl_llm.log import read_lines

# Training curves, in order of preference; the first four that a run has are drawn.
CURVES = {
  'reward': 'reward',
  'kl_ref': 'KL to the reference, nats per token',
  'length': 'completion length, tokens',
  'loss': 'loss',
  'accuracy': 'pairs ranked right',
  'nll': 'negative log-likelihood, nats',
}
INK, SOFT = '#1f4e79', '#9dbcd4'


def figure(metrics: Path, out: Path) -> None:
  """Held-out accuracy with its interval where there is one, then training curves."""
  records = read_lines(metrics)
  train = [r for r in records if r['split'] == 'train']
  held = [r for r in records if r['split'] == 'eval' and 'eval/accuracy' in r]
  names = [n for n in CURVES if any(r.get(n) is not None for r in train)]
  names = names[: 3 if held else 4]
  count = len(names) + bool(held)
  if not count:
    return
  # Not pyplot, which would take over a notebook's own figures.
  fig = Figure(figsize=(3.6 * count, 3), layout='tight')
  panels = list(fig.subplots(1, count, squeeze=False)[0])
  if held:
    draw_held_out(panels.pop(0), held)
  for axis, name in zip(panels, names):
    points = [(r['step'], r[name]) for r in train if r.get(name) is not None]
    draw_curve(axis, points, CURVES[name])
  fig.savefig(out, dpi=150)


def draw_held_out(axis, held) -> None:
  step = [r['step'] for r in held]
  value = [100 * r['eval/accuracy'] for r in held]
  title = 'held-out accuracy, %'
  if 'eval/low' in held[0]:
    title += ' (95 % interval)'
    low, high = ([100 * r[f'eval/{k}'] for r in held] for k in ('low', 'high'))
    axis.fill_between(step, low, high, color=SOFT, alpha=0.5, lw=0)
  axis.plot(step, value, 'o-', color=INK, ms=4)
  finish(axis, title)


def draw_curve(axis, points, title: str) -> None:
  """Each step, and the mean of the last ten."""
  step, value = zip(*points)
  smooth = [
    sum(value[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(len(value))
  ]
  axis.plot(step, value, color=SOFT, lw=1)
  axis.plot(step, smooth, color=INK, lw=1.8)
  finish(axis, title)


def finish(axis, title: str) -> None:
  axis.set_title(title, fontsize=9)
  axis.set_xlabel('step', fontsize=8)
  axis.tick_params(labelsize=8)
  axis.grid(alpha=0.25)
  for side in ('top', 'right'):
    axis.spines[side].set_visible(False)
