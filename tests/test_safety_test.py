"""What a policy costs on held-out questions, and the safety test of the last one."""

import jax
import numpy as np
import pytest
import runs

from jaxrl_llm import asking, beside, log, sections, sources, train
from jaxrl_llm.evaluate import held_out
from jaxrl_llm.rollout import draw
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError, Rollout

share = lambda text: text.count('a') / max(len(text), 1) - 0.1


def config(**safety):
  """Three of the eight held-out questions are the safety test's."""
  return runs.config('safe_rlhf', safety=dict(size=3, threshold=9.0) | safety)


def test_held_out_answers_have_the_costs_of_their_text():
  run = runs.assembled(config())
  held = run.evaluate(run.state)
  due = [share(row['completion']) for row in held.samples]
  assert len(due) == 5
  np.testing.assert_allclose([row['cost'] for row in held.samples], due, atol=1e-6)
  want = {'cost': np.average(due), 'cost/a': np.average(due)}
  want['feasible'] = np.average(np.less_equal(due, 0))
  got = {k: held.metrics[f'eval/{k}'] for k in want}
  assert got == pytest.approx(want, abs=1e-6)


def test_the_bound_of_known_completions_by_hand():
  """Costs 1, 3, 1, 3: mean 2, deviation sqrt(4 / 3), Student's t 1.638 of 3 at .9."""
  records = [Record(i, [{'role': 'user', 'content': 'q'}], '', {}) for i in range(4)]
  keys = []

  def sample(params, tokens, length, ids, how, key, version):
    del tokens, length, version
    keys.append(key)
    assert (how.temperature == 0.5).all()
    said, ones = np.array(params)[ids][:, None, None], np.ones((4, 1))
    rollout = (said, ones.astype(int), ids, 0.0 * said, ones, said, ones, 0)
    return Rollout(*rollout)

  text = sources.Text(lambda messages, template: [1], lambda ids: str(ids[0]), 4)
  score = lambda rows: (np.array([float(r.completion) for r in rows]), {})
  options = lambda n: draw.options(n, max_length=1, temperature=0.5)

  def found(threshold):
    priced = dict(priced=lambda rows, shape: costs(*score(rows), shape))
    how = dict(options=options, threshold=threshold, delta=0.1) | priced
    test = held_out.make_safety(sample, text, records, **how)
    return test(np.array([1, 3, 1, 3]), jax.random.key(7))

  def costs(total, parts, shape):
    return beside.Told({'cost': total.reshape(shape)}, parts, {})

  bound = 2 + 1.6377 / 2 * (4 / 3) ** 0.5
  got = found(bound + 1e-3)
  assert got['eval/safety_cost'] == 2.0
  assert got['eval/safety_bound'] == pytest.approx(bound, abs=1e-4)
  assert [got['eval/safe'], found(bound - 1e-3)['eval/safe']] == [1.0, 0.0]
  # The same state is tested on the same draws: a resumed run has no second look.
  assert keys[0] == keys[1]
  assert keys[0] != jax.random.key(7)


def test_a_run_ends_with_the_verdict(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(train.assemble, 'assemble', runs.assembled)
  found = train.main(config(), str(tmp_path))
  assert found['eval/safe'] == 1.0
  kept = [r for r in log.read_lines(tmp_path / 'metrics.jsonl') if r['split'] == 'eval']
  assert ['eval/safe' in r for r in kept] == [False, False, True]
  said = train.verdict(found)
  assert said.startswith('Safety test: passed; mean cost -0.')
  assert said in capsys.readouterr().out
  train.main(config(), str(tmp_path))  # Nothing is left to do, and it is said again.
  assert said in capsys.readouterr().out
  assert 'No Solution Found' in train.verdict(found | {'eval/safe': 0.0})


def test_the_tests_questions_are_nobody_elses():
  task = reasoning_gym(dataset='gcd', test_size=6)
  rest, apart = asking.set_apart(task, 2)
  assert (*rest.test, *apart) == task.test
  assert len(apart) == 2
  for count in (1, 6, 7):
    with pytest.raises(InputError, match=f'size={count} keeps so many of 6'):
      asking.set_apart(task, count)


def test_nothing_to_test_is_said():
  plain = runs.config('grpo', safety=dict(size=3))
  stored = runs.config('dpo', safety=dict(size=3))
  stored.costs = {'a': {'name': 'x'}}
  never = runs.config('safe_rlhf', safety=dict(size=3), evaluation=dict(every=0))
  for c in (plain, stored, never):
    with pytest.raises(InputError, match=r'takes a task, config\.costs and'):
      sections.check(c)
  with pytest.raises(InputError, match=r'safety\.delta=1\.0'):
    sections.check(config(delta=1.0))


def test_gsm_symbolic_hints_are_sentences_of_its_own_reasons():
  """And none of them says the answer. chain_sum has nothing to tell."""
  task = reasoning_gym(dataset='gsm_symbolic', test_size=20)
  told = [r for r in task.test if r.hints]
  assert len(told) > 10
  for record in told:
    reasons = ' '.join(record.extra['metadata']['answer_cot'].split())
    hints = record.hints['solution']
    assert 1 <= len(hints) <= 4
    for hint in hints:
      assert ' '.join(hint.split()) in reasons
      assert record.answer not in hint.replace('.', ' ').split()
  assert not any(r.hints for r in reasoning_gym(dataset='chain_sum', test_size=9).test)
