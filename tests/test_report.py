"""The health of a run: lights by hand, what they catch, a page that stands alone."""

import importlib.util
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import runs

from jaxrl_llm import health, log, report, train
from jaxrl_llm.evaluate import diversity
from jaxrl_llm.types import InputError

spec = importlib.util.spec_from_file_location(
  'experiments_report', runs.ROOT / 'experiments/report.py'
)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


# ---- Diversity -----------------------------------------------------------------------


def test_distinct_by_hand():
  # 'a b a b' and 'b a': bigrams ab ba ab ba, two of four; unigrams a, b of six.
  assert diversity.distinct(['a b a b', 'b a'], 2) == 0.5
  assert diversity.distinct(['a b a b', 'b a'], 1) == pytest.approx(2 / 6)
  assert diversity.distinct(['a', ''], 2) == 0
  assert diversity.distinct(['abab'], 2) == pytest.approx(2 / 3)  # Letters.


def test_adjusted_distinct_by_hand():
  # Two tokens of two draws from V = 2: an even draw has 2 (1 - 1/4) = 3/2 of them.
  assert diversity.adjusted_distinct(2, 2, 2) == pytest.approx(4 / 3)
  # 180 of 200 of 50257: 180 / (50257 (1 - (50256 / 50257)^200)).
  due = 180 / (50257 * -math.expm1(200 * math.log1p(-1 / 50257)))
  assert diversity.adjusted_distinct(180, 200, 50257) == pytest.approx(due)
  # An even draw has 1 whatever its length, where distinct-1 falls.
  rng = np.random.default_rng(0)
  for count in (1000, 100_000):
    different = len(np.unique(rng.integers(0, 500, count)))
    assert diversity.adjusted_distinct(different, count, 500) == pytest.approx(1, 0.02)


def test_self_bleu_by_hand():
  assert diversity.self_bleu(['a b c d e'] * 3) == pytest.approx(1)
  # 'a b' against 'a c': precisions 1/2 and, for none of one, 1/2; no brevity penalty.
  assert diversity.self_bleu(['a b', 'a c']) == pytest.approx(0.5)
  # 'a b' against 'a b c d': 1, 1, and exp(1 - 4/2); the other way 2/4, 1/3, and halves
  # of 2 and of 1.
  long = (2 / 4 * 1 / 3 * 0.5 / 2 * 0.5 / 1) ** 0.25
  due = (math.exp(-1) + long) / 2
  assert diversity.self_bleu(['a b', 'a b c d']) == pytest.approx(due)
  assert diversity.self_bleu(['a b']) == diversity.self_bleu(['', 'a']) == 0


def test_samples_are_compared_within_a_prompt():
  row = lambda prompt, text: {'prompt': prompt, 'completion': text}
  rows = [row('p', 'a b'), row('p', 'a b'), row('q', 'a b'), row('q', 'c d')]
  found = diversity.of_samples(rows)
  # p: 1 of 2 bigrams, 2 of 4 words; q: all of them.
  assert found['distinct-2'] == pytest.approx((1 / 2 + 1) / 2)
  assert found['distinct-1'] == pytest.approx((2 / 4 + 1) / 2)
  alone = [row('p', 'a b'), row('q', 'a b')]
  assert diversity.of_samples(alone)['distinct-2'] == 0.5


# ---- Lights --------------------------------------------------------------------------


def history(steps=40, every=10, samples=(), **metrics):
  """A run whose metrics are functions of t from 0 to 1; `gold` is held out."""
  gold = metrics.pop('gold', lambda t: 0.5)
  at = lambda t: {k: f(t) for k, f in metrics.items()}
  train_ = [{'step': s, 'split': 'train', **at(s / steps)} for s in range(1, steps + 1)]
  held = [
    {
      'step': s,
      'split': 'eval',
      'eval/score': (x := gold(s / steps)),
      'eval/accuracy': x,
    }
    | {'eval/low': x - 0.04, 'eval/high': x + 0.04}
    for s in range(0, steps + 1, every)
  ]
  return health.split([*train_, *held], samples)


def colour(found, name):
  return {light.name: light.colour for light in health.lights(found)}.get(name)


def test_a_planted_reward_bug_is_caught_where_the_reward_curve_looks_well():
  """The reward counts letters by mistake: it rises all the time, and answers get
  longer and worse.
  """
  run = history(
    reward=lambda t: 0.2 + 0.6 * t,
    length=lambda t: 20 + 40 * t,
    gold=lambda t: 0.5 - t / 4,
  )
  rewards = health.values(run.train, 'reward')
  assert rewards == sorted(rewards)
  red = {x.name for x in health.lights(run) if x.colour == health.RED}
  assert red == {'reward hacking', 'growing length', 'forgetting'}


@pytest.mark.parametrize(
  ('gold', 'length', 'due'),
  [
    (lambda t: 0.5 + t / 4, lambda t: 20, 'green'),
    (lambda t: 0.5, lambda t: 20, 'amber'),  # The reward rises alone.
    (lambda t: 0.5, lambda t: 20 + 20 * t, 'red'),  # And completions get longer.
    (lambda t: 0.5 - t / 4, lambda t: 20, 'red'),
    (lambda t: 0.5 - t / 100, lambda t: 20, 'amber'),  # Less than a standard error.
    (lambda t: 0.5 - t / 12, lambda t: 20, 'amber'),  # 1.5 of the difference's.
    (lambda t: 0.5 + t / 4, lambda t: 20 + 20 * t, 'green'),
  ],
)
def test_hacking_is_a_reward_that_rises_alone(gold, length, due):
  run = history(reward=lambda t: t, length=length, gold=gold)
  assert colour(run, 'reward hacking') == due


def test_a_reward_that_only_wavers_hacks_nothing():
  rng = np.random.default_rng(0)
  run = history(reward=lambda t: rng.normal() + 0.1 * t, gold=lambda t: 0.5 - t / 4)
  assert colour(run, 'reward hacking') == 'green'
  assert colour(history(steps=10, reward=lambda t: t), 'reward hacking') is None


@pytest.mark.parametrize(
  ('name', 'metrics', 'colours'),
  [
    # The last five of forty steps are at t = 0.95 on the mean.
    ('sampler mismatch', 'mismatch_k3', {0.004: 'green', 0.009: 'amber', 0.02: 'red'}),
    ('groups without a signal', 'groups_tied', {0.5: 'green', 0.6: 'amber', 1: 'red'}),
    ('clipping', 'clipped', {0.2: 'green', 0.4: 'amber', 0.7: 'red'}),
    ('out of room', 'truncated', {0.1: 'green', 0.3: 'amber', 0.6: 'red'}),
  ],
)
def test_lights_of_a_level(name, metrics, colours):
  for value, due in colours.items():
    assert colour(history(**{metrics: lambda t, v=value: v}), name) == due


def test_lights_of_a_change():
  # From t = .075 (the first five steps) to .95: (1 - .95 a) / (1 - .075 a).
  for a, due in {0.4: 'green', 0.7: 'amber', 0.95: 'red'}.items():
    run = history(entropy=lambda t, a=a: 1 - a * t)
    assert colour(run, 'collapse of entropy') == due
  for a, due in {0.2: 'green', 0.4: 'amber', 0.9: 'red'}.items():
    assert colour(history(length=lambda t, a=a: 1 + a * t), 'growing length') == due


def test_the_distance_is_of_completions():
  # 0.3 nats a token of 40 tokens are 12 nats; of 60 tokens 18.
  for length, due in {30: 'green', 40: 'amber', 60: 'red'}.items():
    run = history(kl_ref=lambda t: 0.3, length=lambda t, n=length: n)
    assert colour(run, 'distance from the reference') == due


def test_forgetting_is_by_intervals():
  # +-0.04 each: apart where the fall is above 0.08, and amber above 0.04.
  for fall, due in {0.03: 'green', 0.06: 'amber', 0.1: 'red'}.items():
    run = history(reward=lambda t: 0, gold=lambda t, f=fall: 0.5 - f * t)
    assert colour(run, 'forgetting') == due


def table(step, texts, rewards=None):
  rewards = rewards or [0.0] * len(texts)
  row = {'step': step, 'split': 'train', 'prompt': 'p'}
  return [row | {'completion': t, 'reward': r} for t, r in zip(texts, rewards)]


def test_lights_of_samples():
  first = table(1, ['a b', 'c d', 'e f', 'g h'])
  same = table(9, ['a b'] * 4)  # One bigram of four, after four of four.
  assert colour(history(samples=[*first, *same]), 'sameness') == 'red'
  assert (
    colour(history(samples=[*first, *table(9, ['a b', 'c d'])]), 'sameness') == 'green'
  )
  longer = ['a' * n for n in range(1, 17)]
  for rewards, due in ((range(16), 'red'), (range(16, 0, -1), 'green')):
    rows = table(1, longer, [*rewards])
    assert colour(history(samples=rows), 'length bias') == due
  fewer = health.lights(history(samples=rows[:15]))
  assert 'length bias' not in {light.name for light in fewer}


def test_skipped_updates():
  for count, due in {0: 'green', 1: 'amber', 4: 'red'}.items():
    run = history(skipped=lambda t, n=count: n, applied=lambda t: 40)
    assert colour(run, 'skipped updates') == due


def test_a_run_without_records_has_no_lights():
  assert health.lights(health.History((), ())) == []
  stored = health.split([{'step': 1, 'split': 'train', 'loss': 1.0}])
  assert health.lights(stored) == []


# ---- Live ----------------------------------------------------------------------------


def test_a_light_that_turns_red_is_told_once(tmp_path):
  """At the evaluation where it does, and not at the next ones."""
  run = history(steps=60, reward=lambda t: t, gold=lambda t: 0.5 - max(0, t - 0.4))
  records = sorted([*run.train, *run.held], key=lambda r: r['step'])
  said = []
  sinks = SimpleNamespace(say=said.append)
  for step in range(0, 61, 10):
    known = [r for r in records if r['step'] <= step]
    log.write_lines(tmp_path / 'metrics.jsonl', known)
    train.warn_of_lights(tmp_path, sinks)
    if said:
      break
  # The score begins to fall after step 24, and at step 30 it is 0.1 lower.
  names = ['RED LIGHT, reward hacking', 'RED LIGHT, forgetting']
  assert (step, [text.partition(':')[0] for text in said]) == (30, names)
  log.write_lines(tmp_path / 'metrics.jsonl', [r for r in records if r['step'] <= 40])
  train.warn_of_lights(tmp_path, sinks)
  assert len(said) == 2


# ---- The page ------------------------------------------------------------------------


def test_a_run_has_a_page_that_needs_nothing_else(tmp_path, capsys):
  folder = tmp_path / 'run'
  shutil.copytree(runs.finished(), folder)
  script.main([str(folder)])
  text = (folder / 'report.html').read_text()
  assert not re.search(r'<script|<link|<img|src=|@import|url\(https?', text)
  assert not re.search(r'href="(?!#)', re.sub(r'xlink:href="#', 'href="#', text))
  # Reward, length, KL, groups, room, mismatch, clip and diversity.
  titles = ['reward, its parts', 'length, tokens', 'KL to the reference', 'diversity']
  assert text.count('<svg') >= 7
  assert all(title in text for title in titles)
  lights = health.lights(
    health.split(
      log.read_lines(folder / 'metrics.jsonl'), log.read_lines(folder / 'samples.jsonl')
    )
  )
  assert {'groups without a signal', 'sampler mismatch'} <= {x.name for x in lights}
  out = capsys.readouterr().out
  assert all(f'{x.colour:6} {x.name}: ' in out and x.name in text for x in lights)


def test_what_a_model_wrote_cannot_break_the_page():
  evil = '</td><script>alert(1)</script>'
  rows = table(1, [evil, 'b', 'c', 'd'])
  page = report.page(evil, history(samples=rows, reward=lambda t: t), {})
  assert '<script' not in page
  assert '&lt;script&gt;' in page
  json.dumps(page)


def test_the_table_of_samples_shows_first_and_last_steps():
  rows = [r for step in range(1, 40) for r in table(step, ['a', 'b', 'c', 'd', 'e'])]
  found = re.findall(r'<tr><td>(\d+)</td>', report.samples_table(rows))
  assert found[:4] == ['1'] * report.SHOWN_ROWS
  assert found[-1] == '39'
  assert len(set(found)) <= report.SHOWN_STEPS + 1


def test_a_folder_without_a_run(tmp_path):
  with pytest.raises(InputError, match='holds no run'):
    script.main([str(tmp_path)])
