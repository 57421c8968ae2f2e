"""Benchmarks of rewards: rules of scoring by hand, and what they rest on."""

import importlib.util
import itertools
import json
import math

import numpy as np
import pytest
import runs

from jaxrl_llm.evaluate import benchmarks, best_of_n, calibration
from jaxrl_llm.rewards.characters import characters
from jaxrl_llm.rewards.likelihood import likelihood
from jaxrl_llm.rewards.sample import Batched, Sample
from jaxrl_llm.tasks import records
from jaxrl_llm.types import InputError

spec = importlib.util.spec_from_file_location(
  'experiments_score_benchmark', runs.ROOT / 'experiments/score_benchmark.py'
)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def item(subset, right=1, id='0', count=2):
  return benchmarks.Item('?', ('x',) * count, right, subset, id)


def table(name, items, scores):
  found = benchmarks.BENCHMARKS[name].table(items, [np.array(s) for s in scores])
  return {k: pytest.approx(v) for k, (v, _) in found.items()}


def scored(name, items, scorer):
  return table(name, items, script.by_reward(scorer, items))


# ---- RewardBench ---------------------------------------------------------------------


def test_reward_bench_by_hand():
  # Chat: easy 1/2 of weight 100, length 1 of weight 95; a tie is wrong.
  items = [item('alpacaeval-easy'), item('alpacaeval-easy'), item('alpacaeval-length')]
  items += [item('math-prm'), item('hep-cpp'), item('other')]
  scores = [(1, 0), (1, 1), (2, 1), (1, 0), (0, 1), (1, 0)]
  chat, reasoning = (100 * 0.5 + 95) / 195, 984 / (984 + 164)
  assert table('reward_bench', items, scores) == {
    'alpacaeval-easy': 0.5,
    'alpacaeval-length': 1,
    'math-prm': 1,
    'hep-cpp': 0,
    'other': 1,
    'Chat': chat,
    'Reasoning': reasoning,
    'overall': (chat + reasoning) / 2,
  }


def test_reward_bench_weighs_math_like_all_code():
  weights = benchmarks.SECTIONS['Reasoning']
  assert weights['math-prm'] == sum(w for k, w in weights.items() if k != 'math-prm')
  # The published numbers of rows, 2985 with math's own 447.
  rows = sum(sum(w.values()) for w in benchmarks.SECTIONS.values())
  assert rows - 984 + 447 == 2985


def test_reward_bench_2_by_hand():
  # Math 1 of 2, a tie with a wrong one being wrong; Focus 1 of 1; no ties.
  items = [item('Math', count=4), item('Math', count=4), item('Focus', count=4)]
  scores = [(4, 3, 2, 1), (4, 4, 2, 1), (1, 0, 0, 0)]
  found = table('reward_bench_2', items, scores)
  assert found == {'Math': 0.5, 'Focus': 1, 'overall': 0.75}


def ties(*rows):
  """Rows (id, right scores, wrong scores) as items and scores."""
  items = [item('Ties', len(r), id, len(r) + len(w)) for id, r, w in rows]
  return items, [np.array([*r, *w], float) for _, r, w in rows]


def test_ties_by_hand():
  # k = 1: gap_tied 3 - 1 = 2, spread 4 - 3 = 1, gap_ref 5 - 2 = 3: all of it, and
  # tanh(2 / 1 - 1). k = 2: gap_tied 1 - 2 = -1, spread 3 - 1 = 2, gap_ref 1: ref alone,
  # and tanh(-1 / 2 - 1).
  rows = [('ref:1', [5], [2]), ('tied:1', [4, 3], [1, 0])]
  rows += [('ref:2', [1], [0]), ('tied:2', [3, 1], [2])]
  bonus = (math.tanh(1) + math.tanh(-1.5)) / 2
  due = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * bonus
  assert benchmarks.ties_score(*ties(*rows)) == pytest.approx(due)


def test_ties_without_a_spread():
  # Spread 0: a gap above 0 is infinitely larger, tanh(inf) = 1; a gap of 0 is nothing.
  both = ('ref:1', [1], [0]), ('tied:1', [2, 2], [1])
  assert benchmarks.ties_score(*ties(*both)) == pytest.approx(1.01)
  flat = ('ref:1', [0], [0]), ('tied:1', [0, 0], [0])
  assert benchmarks.ties_score(*ties(*flat)) == 0
  with pytest.raises(InputError, match="both a row 'ref:k' and"):
    benchmarks.ties_score(*ties(('ref:1', [1], [0])))
  with pytest.raises(InputError, match="'other:1' of Ties"):
    benchmarks.ties_score(*ties(('other:1', [1], [0])))


# ---- RM-Bench and JudgeBench ---------------------------------------------------------


def styles(domain, right, wrong, id='0'):
  return benchmarks.Item('?', (*right, *wrong), 3, domain, id)


LENGTHS = ['x', 'xx', 'xxx']


def test_rm_bench_of_length_is_easy_and_never_hard():
  """Responses of three lengths: chosen_i beats rejected_j where i > j."""
  items = [styles('chat', LENGTHS, LENGTHS), styles('code', LENGTHS, LENGTHS)]
  found = scored('rm_bench', items, characters())
  assert found == {
    'chat': 3 / 9,
    'code': 3 / 9,
    'easy': 1,
    'normal': 0,
    'hard': 0,
    'overall': 3 / 9,
  }


def test_rm_bench_of_a_constant_is_nothing_and_of_truth_everything():
  items = [styles('chat', LENGTHS, LENGTHS)]
  constant = table('rm_bench', items, [np.ones(6)])
  assert set(x.expected for x in constant.values()) == {0}
  truth = table('rm_bench', items, [np.array([1, 1, 1, 0, 0, 0])])
  assert set(x.expected for x in truth.values()) == {1}


def test_the_halves_of_safety_are_one_domain():
  # Chat 1, safety (1 + 0) / 2, though there are three rows of refusals.
  items = [styles(d, '', '') for d in ('chat', *['safety-refuse'] * 3)]
  items.append(styles('safety-response', '', ''))
  right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
  found = table('rm_bench', items, [right] * 4 + [wrong])
  assert found['overall'] == (1 + 0.5) / 2
  assert found['hard'] == found['easy'] == (1 + 0.5) / 2


def judged(label, source='mmlu-pro-law'):
  row = dict(pair_id='1', source=source, question='?', label=label)
  return row | dict(response_A='a', response_B='b')


def test_judge_bench_puts_the_right_response_first():
  read = benchmarks.BENCHMARKS['judge_bench'].read
  assert read(judged('A>B'), 0).responses == ('a', 'b')
  assert read(judged('B>A'), 0).responses == ('b', 'a')
  sources = ['mmlu-pro-law', 'livebench-math', 'livebench-reasoning', 'livecodebench']
  found = [read(judged('A>B', source), 0).subset for source in sources]
  assert found == ['knowledge', 'math', 'reasoning', 'coding']
  items = [item('math'), item('math'), item('coding')]
  assert table('judge_bench', items, [(1, 0), (1, 1), (1, 0)]) == {
    'math': 0.5,
    'coding': 1,
    'overall': 2 / 3,
  }


ROWS = {
  'reward_bench': dict(prompt='?', chosen='yes', rejected='no', subset='math-prm'),
  'reward_bench_2': dict(
    id='7', prompt='?', chosen=['yes'], rejected=['no', 'n', 'o'], subset='Math'
  ),
  'rm_bench': dict(id=8, prompt='?', chosen=LENGTHS, rejected=LENGTHS, domain='chat'),
  'judge_bench': judged('B>A'),
}


@pytest.mark.parametrize('name', ROWS)
def test_a_file_of_its_schema_is_scored_by_one_command(name, tmp_path, capsys):
  path, out = tmp_path / 'rows.json', tmp_path / 'out.json'
  path.write_text(json.dumps([ROWS[name]] * 3))
  script.main([name, str(path), '--limit=2', f'--out={out}'])
  found = json.loads(out.read_text())
  # 'yes' is longer than 'no'; of the same three lengths a third; 'b' is as long as 'a'.
  due = {'rm_bench': 1 / 3, 'judge_bench': 0.0}.get(name, 1.0)
  assert found['table']['overall'] == [pytest.approx(due), 2]
  assert found['table']['length correlation'][0] in (pytest.approx(1), 0)
  assert f'| overall | {due:.4f} | 2 |' in capsys.readouterr().out


@pytest.mark.parametrize('name', ROWS)
def test_a_row_that_does_not_fit_is_named(name, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'prompt': '?'}))
  with pytest.raises(InputError, match=f'line 1: no row of {name}: KeyError'):
    benchmarks.load(name, str(path))
  with pytest.raises(InputError, match='no benchmark'):
    benchmarks.load('none', str(path))


def test_what_was_scored_is_not_scored_again(tmp_path):
  """A reward that stops in the middle; another reward, or another text, is scored."""
  path, seen = tmp_path / 'scores.jsonl', []
  items = [
    benchmarks.Item('?', ('a' * n, 'b'), 1, 'Math', str(n)) for n in range(1, 41)
  ]

  def score(some):
    seen.extend(item.id for item in some)
    if '33' in seen and len(seen) < 45:
      raise KeyboardInterrupt
    return [np.array([len(r) for r in item.responses]) for item in some]

  with pytest.raises(KeyboardInterrupt):
    script.remembered(score, items, 'characters', path)
  with path.open('a') as file:
    file.write('{"key": "cut')  # By a kill.
  found = script.remembered(score, items, 'characters', path)
  assert [x.tolist() for x in found] == [[n, 1] for n in range(1, 41)]
  assert seen == [str(n) for n in [*range(1, 41), *range(33, 41)]]
  again = script.remembered(score, items, 'characters', path)
  assert [x.tolist() for x in again] == [x.tolist() for x in found]
  assert len(seen) == 48
  script.remembered(score, items[:1], 'another', path)
  script.remembered(score, [items[0]._replace(prompt='!')], 'another', path)
  assert seen[48:] == ['1', '1']


def test_judges_of_pairs_play_both_games():
  """One that always prefers the first place wins nothing: a tie is wrong."""
  items = [item('math'), item('math')]
  prefers = Batched(lambda pairs: [0.0, 1.0])
  assert table('judge_bench', items, script.by_pairs(prefers, items))['overall'] == 0.5
  with pytest.raises(InputError, match='more responses'):
    script.by_pairs(prefers, [item('Math', count=4)])


def test_a_judge_is_not_shown_which_response_is_right():
  assert {x.record.answer for x in script.samples([item('math')])} == {''}


def test_likelihood_adds_up_whatever_it_is_batched_with():
  row = lambda text: Sample('?', text, 0, False, records.Record(0, ASKED, '', {}))
  ASKED = records.chat('ab')
  texts = ['a', 'abcabc', 'b']
  mean = likelihood(model='tiny', max_prompt=8, max_length=8, batch=2)
  whole = likelihood(model='tiny', max_prompt=8, max_length=8, batch=2, total=True)
  rows = [row(text) for text in texts]
  # A token a character, and the stop token.
  counts = np.array([len(text) + 1 for text in texts])
  np.testing.assert_allclose(mean.score(rows) * counts, whole.score(rows), rtol=1e-5)
  np.testing.assert_allclose(mean.score(rows[2:]), mean.score(rows)[2:], rtol=1e-5)


# ---- Best of n -----------------------------------------------------------------------


def test_kl_of_best_of_n():
  # log 4 - 3 / 4 = 1.386294 - 0.75.
  assert best_of_n.kl(1) == 0
  assert best_of_n.kl(4) == pytest.approx(0.636294, abs=1e-6)


def test_discrete_kl_by_hand_and_in_the_limit():
  # Two even completions, n = 2: the best is 1/4, 3/4.
  due = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
  assert best_of_n.discrete_kl([0.5, 0.5], 2) == pytest.approx(due)
  found = [best_of_n.discrete_kl(np.full(m, 1 / m), 16) for m in (50, 500, 50_000)]
  assert found == sorted(found)
  assert found[-1] < best_of_n.kl(16) < found[-1] + 1e-3


def test_expected_best_counts_subsets():
  proxy, gold = np.array([0.1, 0.7, 0.4, 0.9, 0.2]), np.array([1.0, 2, 5, 0, 3])
  for n in range(1, 6):
    best = [max(s, key=lambda i: proxy[i]) for s in itertools.combinations(range(5), n)]
    due = np.mean([gold[i] for i in best])
    assert best_of_n.expected(proxy, gold, n) == pytest.approx(due)
  with pytest.raises(InputError, match='n=6 of 5'):
    best_of_n.expected(proxy, gold, 6)


def test_the_laws_are_fitted_where_they_hold():
  d = np.linspace(0.2, 5, 30)
  for law, gain in {
    'best_of_n': d * (1 - 0.25 * d),
    'rl': d * (1 - 0.25 * np.log(d)),
  }.items():
    assert best_of_n.fit(d, gain, law=law) == pytest.approx((1, 0.25))
  with pytest.raises(InputError, match="law='bon'"):
    best_of_n.fit(d, d, law='bon')


# ---- Calibration ---------------------------------------------------------------------


def test_expected_calibration_error_by_hand():
  # Bin [.6, .7): p .6, .65 with outcomes 1, 0: |.5 - .625| of half of all. Bin of 1:
  # outcome 1 and 0: |.5 - 1| of the other half. 0.5 * 0.125 + 0.5 * 0.5.
  found = calibration.expected_error([0.6, 0.65, 1.0, 1.0], [1, 0, 1, 0])
  assert found == pytest.approx(0.3125)
  assert calibration.expected_error([0, 1, 0.5, 0.5], [0, 1, 0, 1]) == 0
  for wrong in (([], []), ([0.5], [1, 0]), ([1.5], [1]), ([float('nan')], [1])):
    with pytest.raises(InputError, match='between 0 and 1'):
      calibration.expected_error(*wrong)


def test_preferences_are_a_sigmoid_that_does_not_overflow():
  found = calibration.preferences(np.array([1.2, 1e9, -1e9]), np.array([0.3, 0, 0]))
  assert found == pytest.approx([1 / (1 + math.exp(-0.9)), 1, 0])


def test_agreement_and_kappa_by_hand():
  # Agreement 3/4; by chance 1/2 * 3/4 + 1/2 * 1/4 = 1/2; (3/4 - 1/2) / (1/2).
  one, other = list('AABB'), list('AAAB')
  assert calibration.agreement(one, other) == 0.75
  assert calibration.kappa(one, other) == pytest.approx(0.5)
  assert calibration.kappa(['A'], ['A']) == 0


def test_length_by_hand():
  assert calibration.length_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
  assert calibration.length_correlation([1, 0, 1], [1, 2, 3]) == pytest.approx(0)
  assert calibration.length_correlation([1, 1], [1, 2]) == 0
  # The longer one wins, loses, ties; the last pair is of one length and does not count.
  scores, lengths = [[2, 1], [1, 2], [1, 1], [1, 0]], [[5, 3], [9, 3], [1, 2], [4, 4]]
  assert calibration.longer_wins(scores, lengths) == pytest.approx(0.5)
