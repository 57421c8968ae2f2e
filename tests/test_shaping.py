"""What shapes the data of a step: bonuses, hints, budgets of rollouts, the past."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import row
from test_identities import close, gradient, off_policy, update

from jaxrl_llm import (
  answers,
  assemble,
  build,
  checkpoint,
  controllers,
  curriculum,
  filtration,
  forward,
  rationing,
  scaffold,
  sharding,
  types,
)
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.ops import allocation, care
from jaxrl_llm.sources import Drawn
from jaxrl_llm.step import clean
from jaxrl_llm.tasks import arithmetic, questions, records
from jaxrl_llm.types import InputError

method = build.method
HELD = dict(floor=0.1, cap=0.95, margin=0.01)


def carried(m):
  """The toy's state with what a method starts from."""
  extra = {k: jnp.array(v, jnp.float32) for k, v in m.extra.items()}
  return toy.state().replace(extra=extra)


# ---- GRPO-CARE -----------------------------------------------------------------------


def test_the_likelihood_by_hand():
  """Answers of probabilities (.5, .125), of (.5) alone, and none: .3125 and .25."""
  logp = jnp.log(jnp.array([[[0.9, 0.5, 0.125], [0.5, 0.1, 0.1], [0.3, 0.3, 0.3]]]))
  answer = jnp.array([[[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]])
  close(care.likelihood(logp, answer), [[0.3125, 0.5, 0]])
  close(care.likelihood(logp, answer, mean='geometric'), [[0.25, 0.5, 0]])
  with pytest.raises(InputError, match="'arithmetic' or 'geometric'"):
    care.likelihood(logp, answer, mean='harmonic')


def test_the_gate_by_hand():
  # H are the first three; q = (.95, .5, .8), mean .75, less .01: .5 is below.
  one = row(1, 1, 1, 1)
  likely = row(0.99, 0.5, 0.8, 0.9)
  close(care.gate(row(1, 1, 1, 0), likely, one, **HELD), row(1, 0, 1, 0))
  # .743 is within the margin of .75 and nothing else: q = (.95, .743, .557).
  near = row(0.99, 0.743, 0.557, 0.9)
  close(care.gate(row(1, 1, 1, 0), near, one, **HELD), row(1, 1, 0, 0))
  strict = HELD | {'margin': 0.0}
  close(care.gate(row(1, 1, 1, 0), near, one, **strict), row(1, 0, 0, 0))
  # Partial credit: the mean is .45, so .4 is not in H. With all at .05 the floor bars.
  close(care.gate(row(0.5, 0.4), row(0.1, 0.9), row(1, 1), **HELD), row(1, 0))
  close(care.gate(row(0.05, 0.05), row(0.9, 0.9), row(1, 1), **HELD), row(0, 0))
  # A row that is not valid counts in no mean, and gets nothing.
  gone = care.gate(row(1, 1, 1), row(0.4, 0.4, 0.9), row(1, 1, 0), **HELD)
  close(gone, row(1, 1, 0))


@pytest.mark.parametrize('p', [0.0, 0.01, 0.5, 1.0])
def test_a_lone_right_answer_always_follows(p):
  """The card's pitfall: of one member the mean is its own."""
  strict = HELD | {'margin': 0.0}
  got = care.gate(row(0, 1, 0), row(0.9, p, 0.9), row(1, 1, 1), **strict)
  close(got, row(0, 1, 0))


def test_equal_likelihoods_all_follow():
  """Seven times .7 has a mean that rounding may put above .7."""
  p = jnp.full((1, 7), 0.7)
  strict = HELD | {'margin': 0.0}
  close(care.gate(jnp.ones((1, 7)), p, jnp.ones((1, 7)), **strict), np.ones((1, 7)))


def answered_group(**fields):
  """A prompt, four completions of two tokens; the second is the answer."""
  batch = types.make_batch(
    np.zeros((1, 1), np.int32),
    np.ones(1, np.int32),
    np.zeros((1, 4, 2), np.int32),
    np.full((1, 4), 2),
  )
  extra = {'answer': np.broadcast_to(np.array([0.0, 1.0], np.float32), (1, 4, 2))}
  p = fields.pop('p')
  logp = jnp.stack([jnp.zeros((1, 4)), jnp.log(jnp.array([p]))], -1)
  return batch.replace(ema_logp=logp, extra=extra | fields.pop('extra', {}), **fields)


def test_grpo_care_by_hand():
  # R = 1.5, 1, 0, 0: mean .625, deviation sqrt((.875^2 + .375^2 + 2 .625^2) / 4).
  batch = answered_group(reward=row(1, 1, 0, 0), p=[0.9, 0.5, 0.99, 0.1])
  m = method('grpo_care')
  state, got = m.prepare(carried(m), batch)
  spread = np.sqrt((0.875**2 + 0.375**2 + 2 * 0.625**2) / 4) + 1e-4
  want = np.array([[0.875, 0.375, -0.625, -0.625]]) / spread
  close(got.advantage[..., 0], want)
  # DenseCons: half of p for the right ones, gate or not.
  dense = method('grpo_care', dense=True).prepare(state, batch)[1]
  close(dense.extra['care_bonus'], row(0.45, 0.25, 0, 0))


def test_what_has_no_answer_gets_no_bonus():
  """The trap: exp(0 / eps) = 1 is the likelihood of an empty answer. Here the best
  completion has none, so the other right one is alone in H.
  """
  batch = answered_group(reward=row(1, 1, 0, 0), p=[0.9, 0.2, 0.5, 0.5])
  extra = batch.extra | {'answer': batch.extra['answer'] * row(0, 1, 1, 1)[..., None]}
  for options in ({}, {'mean': 'geometric'}, {'dense': True}):
    m = method('grpo_care', **options)
    got = m.prepare(carried(m), batch.replace(extra=extra))[1].extra['care_bonus']
    close(got, row(0, 0.1 if options.get('dense') else 0.5, 0, 0))


def test_the_accuracy_may_be_a_part_of_the_reward():
  """Format pays 1 to all; only what is right is looked at."""
  told = {'accuracy': row(0, 1, 0, 0)}
  batch = answered_group(reward=row(1, 2, 1, 1), p=[0.9, 0.2, 0.5, 0.5], extra=told)
  m = method('grpo_care')
  close(m.prepare(carried(m), batch)[1].extra['care_bonus'], row(0, 0.5, 0, 0))


def test_grpo_care_without_a_bonus_is_grpo_without_kl():
  """On policy and off: the average is then only carried."""
  m, batch = method('grpo_care', bonus=0.0), off_policy(toy.batch(1, g=4))
  same = 'group_norm(eps=1e-4)'
  want = method('grpo', beta=0.0, advantage=same)
  close(gradient(m, batch, carried(m)), gradient(want, batch))


def test_grpo_care_says_what_it_lacks():
  m, batch = method('grpo_care'), toy.batch()
  with pytest.raises(InputError, match=r'config\.source\.answer'):
    m.prepare(carried(m), clean(batch.replace(extra={})))


def test_the_average_by_hand():
  """alpha 1/2, every 2 updates: after 1, 2, 3 and 8 of them it moved 0, 1, 1, 4 times.

  From 0 towards 16: 0, 8, 8 and 8 + 8 (1 - 1/8) = 15.
  """
  after, start = controllers.follow(0.5, 2)
  state = toy.state().replace(
    params={'policy': jnp.full(3, 16.0)},
    frozen={'ema': jnp.zeros(3), 'ref': jnp.ones(3)},
    extra={k: jnp.float32(v) for k, v in start.items()},
  )
  seen = []
  for applied in (1, 2, 3, 8):
    state = jax.jit(after)(state.replace(applied=jnp.int32(applied)), None, {})
    seen.append(float(state.frozen['ema'][0]))
  assert seen == [0, 8, 8, 15]
  np.testing.assert_array_equal(state.frozen['ref'], 1)
  with pytest.raises(InputError, match='alpha=2'):
    controllers.follow(2.0, 10)


def test_the_average_counts_optimizer_updates():
  """Two epochs of two minibatches are four updates: with every=4 it moves each step."""
  m = method('grpo_care', every=4, alpha=0.75)
  state, first = carried(m), toy.state().frozen['ema']
  for step in (1, 2):
    state, _ = update(m, state=state, epochs=2, minibatches=2)
    first = 0.75 * first + 0.25 * state.params['policy']
    close(state.frozen['ema'], first)
    assert int(state.applied) == 4 * step
  rare = method('grpo_care', every=5)
  kept = update(rare, state=carried(rare), epochs=2, minibatches=2)[0].frozen['ema']
  np.testing.assert_array_equal(kept, toy.state().frozen['ema'])


TEXTS = {
  '<think>2</think><answer>47</answer>': {'think_format': '47', 'answer_tag': '47'},
  ' <think>2</think>\n<answer>4 </answer>': {'think_format': '4 ', 'answer_tag': '4 '},
  'So <answer>47</answer>.': {'think_format': '', 'answer_tag': '47'},
  '<answer>1</answer><answer>8</answer>': {'think_format': '', 'answer_tag': '8'},
  '<answer>47': {'think_format': '', 'answer_tag': ''},
  '<think></think><answer></answer>': {'think_format': '', 'answer_tag': ''},
}


@pytest.mark.parametrize('model', ['tiny', 'smollm2'])
def test_the_mask_is_of_the_answers_own_tokens(model):
  """Of every form the marked tokens decode to the answer, and no stop token is one."""
  tokenizer = pretrained.load(model).tokenizer
  decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
  coded = [
    [*tokenizer.encode(t, add_special_tokens=False), tokenizer.eos_token_id]
    for t in TEXTS
  ]
  size = [len(c) for c in coded]
  tokens = np.zeros((1, len(coded), max(size)), np.int32)
  for g, ids in enumerate(coded):
    tokens[0, g, : len(ids)] = ids
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1, np.int32), tokens, np.array([size])
  )
  source = lambda state, step: Drawn(batch, {}, [])
  for kind in answers.SPANS:
    mask = answers.answered(source, kind, decode)(None, 0).batch.extra['answer'][0]
    for (text, due), ids, marked in zip(TEXTS.items(), tokens[0], mask):
      assert decode(ids[marked > 0]).strip() == due.get(kind, text).strip()
    assert all(m[n - 1 :].sum() == 0 for m, n in zip(mask, size))
  with pytest.raises(InputError, match='answer_tag'):
    answers.answered(source, 'answer_tags', decode)


def test_a_token_across_a_tag_is_no_answer():
  """Tokens '<answer>4', '7', '</', 'answer>': only the second lies inside."""
  words = ['<answer>4', '7', '</', 'answer>']
  decode = lambda ids: ''.join(words[i] for i in ids)
  assert answers.inside(range(4), decode, 8, 10) == slice(1, 2)
  assert answers.inside(range(4), decode, 9, 10) == slice(1, 2)
  assert answers.inside(range(4), decode, 8, 9) == slice(1, 1)


def test_filtered_rows_keep_their_accuracy():
  batch = jax.tree.map(np.asarray, toy.batch(0, g=4))
  told = np.arange(toy.B * 4, dtype=np.float32).reshape(-1, 4)
  extra = batch.extra | {'accuracy': told}
  batch = batch.replace(reward=told, extra=extra)
  source = filtration.filtered(lambda *_: Drawn(batch, {}, []), 'best_worst')
  got = source(toy.state(), 3).batch
  np.testing.assert_array_equal(got.extra['accuracy'], got.reward)
  np.testing.assert_array_equal(
    got.extra['greedy_reward'], batch.extra['greedy_reward']
  )


@pytest.mark.parametrize('rank', [0, 2])
def test_grpo_care_by_flag(rank):
  """The average is at first the policy, adapters and all; then it lags behind it.

  The update takes its state: an array that stood in two places would be refused.
  """
  c = runs.config('grpo_care', source=dict(accuracy='early'))
  c.method.update(every=1, alpha=0.75)
  c.model.lora.update(rank=rank, targets='q|v')
  run = runs.assembled(c)
  host = lambda tree: jax.tree.map(np.array, jax.device_get(tree))
  first = host(run.state.params['policy'])
  jax.tree.map(np.testing.assert_array_equal, host(run.state.frozen['ema']), first)
  assert run.state.frozen.keys() == ({'ema', 'base'} if rank else {'ema'})
  batch = run.source(run.state, 0).batch
  np.testing.assert_array_equal(2 * batch.extra['accuracy'], batch.reward)
  put = sharding.put_batch(batch, run.mesh)
  state, found = run.update(run.state, put)
  lag = lambda old, new: 0.75 * old + 0.25 * new
  want = jax.tree.map(lag, first, host(state.params['policy']))
  jax.tree.map(lambda a, b: close(a, b, 1e-6), host(state.frozen['ema']), want)
  # At first both say the same: the likelihood is the mean probability of all tokens.
  answer = batch.extra['answer']
  each = (np.exp(batch.behavior_logp) * answer).sum(-1) / np.maximum(answer.sum(-1), 1)
  there = answer.sum(-1) > 0
  assert float(found['answer_likelihood']) == pytest.approx(
    each[there].mean(), rel=1e-3
  )
  run.update(state, put)


def test_the_accuracy_must_be_a_part_of_the_reward():
  with pytest.raises(InputError, match=r"config.source.accuracy='earl'.*'early'"):
    assemble.assemble(runs.config('grpo_care', source=dict(accuracy='earl')))


# ---- Scaf-GRPO -----------------------------------------------------------------------


def scaffolding(**source):
  """Sums, of which nothing that a random model says is right, with hints."""
  c = runs.config(source=dict(hints=4, hints_after=0.0, max_prompt=128) | source)
  c.task = dict(name='arithmetic', low=10, high=99, test_size=8, seed=0)
  c.method.beta = 0.0
  c.rewards = dict(right=dict(name='test_shaping.helped', weight=1.0))
  c.steps = 20
  return c


def helped():
  """1 where the prompt holds the second hint of the plan, or an 'R' comes first."""
  told = lambda text: 'Planning hints' in text and 'Add' in text
  return lambda s: float(told(s.prompt) or s.completion[:1] == 'R')


def test_the_hints_of_a_sum_by_hand():
  """17 + 25 * 3 - 4, worked from left to right after the product, in tens and ones."""
  got = arithmetic.hints([17, 25, 3, 4], ['+', '*', '-'])
  assert got == {
    'knowledge': [
      'Multiply before you add or subtract.',
      'Work from left to right.',
      'Take the tens first, then the ones.',
    ],
    'planning': [
      *('Multiply 25 by 3.', 'Start with 17.', 'Add 70.', 'Add 5.'),
      'Subtract 4.',
    ],
    'solution': [
      *('25 * 3 = 75.', '17 + 70 = 87.', '87 + 5 = 92.'),
      'What is left is 92 - 4.',
    ],
  }
  assert arithmetic.hints([3, 4], ['-'])['solution'] == ['What is left is 3 - 4.']


@pytest.mark.parametrize('terms', [2, 4])
def test_hints_lead_to_the_answer_and_do_not_say_it(terms):
  task = arithmetic.arithmetic(low=-20, high=99, operations='+-*', terms=terms)
  for i in range(50):
    record = task.train(i)
    *steps, last = record.hints['solution']
    whole = last.removeprefix('What is left is ').removesuffix('.')
    assert eval(whole) == int(record.answer)
    assert '=' not in last and all(s.count('=') == 1 for s in steps)


def test_the_hints_of_a_worked_solution():
  """GSM8K's form: no calculator marks, no sentence that says the answer."""
  text = (
    'She sold 48/2 = <<48/2=24>>24 clips in May.\nTom has 3. He ate one! '
    'Together that is 72, or so.\nSo 48+24 = <<48+24=72>>72 clips.\n#### 72'
  )
  want = ['She sold 48/2 = 24 clips in May.', 'Tom has 3.', 'He ate one!']
  assert questions.worked(text, '72') == want
  assert questions.worked(text, '72', 2) == [' '.join(want[:2]), want[2]]
  assert questions.worked('72', '72') == []


def test_hinted_prompts_go_from_the_least_help_to_the_most():
  """Levels of a category add up; no category is made up; the system prompt stays."""
  hints = {'solution': ['S1', 'S2', 'S3'], 'knowledge': ['K1']}
  ask = records.chat('Why?', system='Think.')
  record = records.Record(3, ask, '7', {}, hints)
  asked = scaffold.hinted(record, 2)
  assert [r.messages[1]['content'] for r in asked] == [
    'Question: Why?\nKnowledge hints: K1',
    'Question: Why?\nSolution hints: S1',
    'Question: Why?\nSolution hints: S1 S2',
  ]
  assert all(r.messages[0] == ask[0] and r.answer == '7' for r in asked)
  assert record.messages == ask


def test_a_hinted_row_takes_the_place_of_a_failed_one():
  """A binary group then pays exactly 1, under the first level of its plan that helps;
  what no hint helps is left as it was.
  """
  run = runs.assembled(scaffolding())
  plain = runs.assembled(scaffolding(hints=0)).source(run.state, 5)
  drawn = run.source(run.state, 5)
  batch, before = drawn.batch, plain.batch
  hard = before.reward.max(1) == 0
  assert hard.sum() >= 4
  dead = [int(i) for i in batch.prompt_id[hard]]
  task = build.made('jaxrl_llm.tasks', scaffolding().task.to_dict(), 'task')
  adds = [any('Add' in p for p in task.train(i).hints['planning']) for i in dead]
  np.testing.assert_array_equal(batch.reward[hard].sum(1), adds)
  assert sum(adds) > 0
  np.testing.assert_array_equal(batch.reward[hard][:, 0], adds)
  np.testing.assert_array_equal(batch.reward[~hard], before.reward[~hard])
  np.testing.assert_array_equal(batch.behavior_logp[:, 1:], before.behavior_logp[:, 1:])
  # Its own prompt says the hint, and all others say what they said.
  decode = pretrained.load('tiny').tokenizer.decode
  said = lambda b, g: decode(batch.row_prompt[b, g, : batch.row_prompt_length[b, g]])
  for b in np.flatnonzero(hard):
    asked = task.train(int(batch.prompt_id[b])).messages[-1]['content']
    plan = task.train(int(batch.prompt_id[b])).hints['planning'][:4]
    least = next((i for i, p in enumerate(plan) if 'Add' in p), None)
    if least is None:
      assert said(b, 0) == asked + '\n'
    else:
      hints = ' '.join(plan[: least + 1])
      assert said(b, 0) == f'Question: {asked}\nPlanning hints: {hints}\n'
    assert said(b, 1) == asked + '\n'
  # What it cost: every hinted prompt is one more rollout.
  count = sum(len(scaffold.hinted(task.train(i), 4)) for i in dead)
  assert drawn.metrics['rollouts'] == plain.metrics['rollouts'] + count
  assert drawn.metrics['groups_hard'] == hard.mean()
  assert drawn.metrics['groups_rescued'] == sum(adds) / len(hard)


def test_ratios_are_taken_under_the_hint():
  """The row's log-probs are those of a direct pass over the hinted prompt, and the
  sampler's; under the bare prompt they would be others. Packed rows say the same.
  """
  c = scaffolding(accuracy='right')
  c.plan.update(pack=500)
  run = runs.assembled(c)
  # Sharp enough that a prompt matters.
  bold = jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, run.state.params)
  state = run.state.replace(params=bold)
  batch = run.source(state, 5).batch
  b = int(np.flatnonzero(batch.row_prompt_length[:, 0] > batch.prompt_length)[0])
  np.testing.assert_array_equal(batch.extra['accuracy'], batch.reward)
  assert batch.reward[b, 0] == 1
  model = pretrained.load('tiny')
  see = forward.make_forward({'policy': Decoder(model.config)})
  tell = jax.jit(lambda params, batch: see(params, {}, batch, ('logp',)).logp)
  rows = batch.replace(layout=None)
  mask = np.asarray(rows.mask)
  got = np.where(mask > 0, tell(bold, rows), 0.0)
  np.testing.assert_allclose(got, rows.behavior_logp * mask, atol=1e-4)
  alone = types.make_batch(
    batch.row_prompt[b, :1],
    batch.row_prompt_length[b, :1],
    batch.completions[b : b + 1, :1],
    batch.length[b : b + 1, :1],
  )
  direct = np.where(mask[b, 0] > 0, tell(bold, alone)[0, 0], 0.0)
  np.testing.assert_allclose(got[b, 0], direct, atol=1e-5)
  bare = rows.replace(row_prompt=None, row_prompt_length=None)
  without = np.where(mask > 0, tell(bold, bare), 0.0)
  np.testing.assert_allclose(without[:, 1:], got[:, 1:], atol=1e-4)
  assert abs(without[b, 0] - got[b, 0]).max() > 0.1
  # The update itself, over packed rows.
  found = run.update(state, sharding.put_batch(batch, run.mesh))[1]
  assert float(found['max/mismatch']) < 1e-3


def test_during_the_exemption_nothing_happens():
  """A fifth of 20 steps: step index 3 has none, 4 has hints."""
  c = scaffolding(hints_after=0.2)
  run, plain = runs.assembled(c), runs.assembled(scaffolding(hints=0))
  got, want = run.source(run.state, 3), plain.source(run.state, 3)
  jax.tree.map(np.testing.assert_array_equal, got.batch, want.batch)
  assert got.metrics['rollouts'] == want.metrics['rollouts']
  assert got.metrics['groups_hard'] > 0 and got.metrics['groups_rescued'] == 0
  assert run.source(run.state, 4).metrics['groups_rescued'] > 0


def test_an_evaluation_sees_no_hint():
  """The held-out questions are asked as they are, and answered as without hints."""
  held = [runs.assembled(scaffolding(hints=n)) for n in (4, 0)]
  with_, without = (run.evaluate(run.state) for run in held)
  assert with_ == without
  assert not any('hints' in s['prompt'].lower() for s in with_.samples)


def test_a_task_without_hints_is_refused():
  with pytest.raises(InputError, match='letters has no hints'):
    assemble.assemble(runs.config(source=dict(hints=2)))


# ---- Rollout-GDRO --------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(8))
def test_the_dynamic_programme_is_exact(seed):
  """Against all choices of four bins and five arms that keep the budget."""
  rng = np.random.default_rng(seed)
  counts, logp = rng.integers(1, 5, 4), rng.normal(size=(4, 5))
  arms, mean = np.arange(2, 7), 4
  value = lambda chosen: sum(row[a] for row, a in zip(logp, chosen))
  spent = lambda chosen: sum(c * arms[a] for c, a in zip(counts, chosen))
  every = itertools.product(range(5), repeat=4)
  best = max(value(c) for c in every if spent(c) == mean * counts.sum())
  got = allocation.choose(counts, logp, arms, mean)
  assert spent(got) == mean * counts.sum()
  assert value(got) == pytest.approx(best, abs=1e-12)


def test_equal_arms_are_the_mean_for_all():
  got = allocation.choose([3, 1, 7], np.zeros((3, 11)), range(2, 13), 4)
  assert got == [2, 2, 2]
  with pytest.raises(InputError, match='make 9 a prompt'):
    allocation.choose([1, 1], np.zeros((2, 3)), [2, 3, 4], 9)


def simulated(v, mean, sign, steps=1500):
  """Completions that bins of known v, equally full, get when their loss is v / n."""
  m = method('rollout_gdro', count=len(v), mean=mean, gamma=0.0, sign=sign)
  extra = {k: jnp.array(x, jnp.float32) for k, x in m.extra.items()}
  arms = np.arange(2, 13)
  moved = jax.jit(
    lambda extra, n: allocation.moved(
      extra['arm_score'],
      jnp.array(v) / n,
      n,
      extra['arms'],
      0.0,
      ema=0.4,
      mean=float(mean) if sign == 'code' else None,
    )
  )
  for _ in range(steps):
    logp = allocation.arm_logp(extra['arm_score'], eta=0.65, gamma=0.0)
    chosen = allocation.choose([4] * len(v), np.asarray(logp), arms, mean)
    n = arms[np.array(chosen)]
    assert n.sum() == mean * len(v)
    extra['arm_score'] = moved(extra, jnp.array(n, jnp.float32))
  return n


@pytest.mark.parametrize(
  ('v', 'mean'), [((1.0, 4.0, 16.0), 7), ((9.0, 9.0, 1.0, 25.0), 6)]
)
def test_the_square_root_law(v, mean):
  """Eq. 20 as printed finds it by trial; the numbers are whole: (3, 6, 12) is one."""
  law = allocation.square_root(np.array(v), np.full(len(v), 1 / len(v)), mean)
  np.testing.assert_allclose(law, np.round(law))
  np.testing.assert_array_equal(simulated(v, mean, 'paper'), np.round(law))


def test_the_law_minimises_its_proxy():
  """Unequal shares: no exchange of a little between two bins does better."""
  v, share = np.array([1.0, 2.0, 9.0]), np.array([0.5, 0.3, 0.2])
  n = allocation.square_root(v, share, 4.0)
  assert (share * n).sum() == pytest.approx(4.0)
  proxy = lambda n: (share * v / n).sum()
  for i, j in itertools.permutations(range(3), 2):
    other = n.copy()
    other[i] += 0.01 / share[i]
    other[j] -= 0.01 / share[j]
    assert proxy(other) > proxy(n)
  assert proxy(n) < proxy(np.full(3, 4.0))


def test_arms_by_hand():
  # Bin 0 drew n = 3 and lost 2, bin 1 drew 2 and lost -1; price .5, EMA .25.
  score, arms = jnp.ones((3, 2)), jnp.array([2.0, 3.0])
  drawn = (jnp.array([2.0, -1.0, 9.0]), jnp.array([3.0, 2.0, 0.0]), arms, 0.5)
  got = allocation.moved(score, *drawn, ema=0.25)
  close(got, [[1, 0.75 - 0.25 * 3.5], [0.75 - 0.25 * 0.0, 1], [1, 1]])
  # The code's: 1 + 2 - .5 (3 - 4), and 1 - 1 - .5 (2 - 4).
  got = allocation.moved(score, *drawn, ema=0.25, mean=4)
  close(got, [[1, 3.5], [1, 1], [1, 1]])
  # Scores 0 and log 3: .25 and .75, mixed with a half each by a fifth: .3 and .7.
  logp = allocation.arm_logp(jnp.log(jnp.array([[1.0, 3.0]])), eta=1.0, gamma=0.2)
  close(jnp.exp(logp), [[0.3, 0.7]])


def test_the_two_signs_pull_apart():
  """Losses 1 / n and 4 / n. The code's sum grows where a bin loses, so the first choice
  feeds itself and is the only one for ever.
  """
  np.testing.assert_array_equal(simulated((1.0, 4.0), 6, 'paper'), [4, 8])
  np.testing.assert_array_equal(simulated((1.0, 4.0), 6, 'code', 30), [6, 6])


def ragged(n, which):
  """A toy batch of groups of four of which n [B] are there; the bins of the prompts."""
  batch = toy.batch(2, g=4)
  valid = jnp.arange(4)[None] < jnp.array(n)[:, None]
  m = method('rollout_gdro', prompts=16, history=4, count=3, most=4, mean=3)
  state = carried(m)
  stored = jnp.zeros(16).at[: toy.B].set(jnp.array(which, jnp.float32))
  state = state.replace(extra=state.extra | {'gdro_bin': stored})
  return state, batch.replace(valid=valid.astype(jnp.float32))


def test_the_price_moves_only_when_the_budget_is_missed():
  """.05 (2.75 - 3) for 22 completions of 24; nothing for 24; absent groups are none."""
  m = method('rollout_gdro', prompts=16, history=4, count=3, most=4, mean=3)
  which = [0] * 4 + [1] * 4
  price = lambda n: float(update(m, *reversed(ragged(n, which)))[0].extra['arm_price'])
  assert price([2] * 4 + [4] * 4) == 0
  assert price([3] * 8) == 0
  assert price([2] * 5 + [4] * 3) == pytest.approx(-0.05 * 0.25)
  assert price([3] * 4 + [0] * 4) == 0


def test_losses_move_the_arms_that_were_drawn():
  """signal='reward': minus the mean reward of each bin, EMA .5; bin 2 is absent."""
  options = dict(prompts=16, history=4, count=3, most=4, mean=3, ema=0.5)
  m = method('rollout_gdro', signal='reward', **options)
  state, batch = ragged([2] * 4 + [4] * 4, [0] * 4 + [1] * 4)
  reward = jnp.where(jnp.arange(toy.B)[:, None] < 4, 0.25, 1.0) * jnp.ones((toy.B, 4))
  got = update(m, batch.replace(reward=reward), state)[0].extra
  close(got['arm_score'], [[0.125, 0, 0], [0, 0, 0.5], [0, 0, 0]])
  want = allocation.arm_logp(got['arm_score'], eta=0.65, gamma=0.01)
  close(got['arm_logp'], want)


def test_on_policy_no_arm_ever_moves():
  """The card's trap, with groups of unequal size: every loss is 0."""
  m = method('rollout_gdro', prompts=16, history=4, count=3, most=4, mean=3, beta=0.0)
  state, batch = ragged([2] * 4 + [4] * 4, [0] * 4 + [1] * 4)
  got = update(m, batch, state)[0].extra
  close(got['arm_score'], 0.0)
  off = update(m, off_policy(batch), state, minibatches=2)[0].extra
  assert abs(off['arm_score']).max() > 1e-3


def test_rollout_gdro_is_grpo_of_ragged_groups():
  """Whatever stands in the rows that are not there."""
  m = method('rollout_gdro', prompts=16, history=4, count=3, most=4, mean=3)
  want = method('grpo', clip_high=0.28, beta=0.001)
  state, batch = ragged([2, 4, 3, 3, 2, 4, 2, 4], [0] * 8)
  batch = off_policy(batch)
  there = batch.valid[..., None] > 0
  other = batch.replace(
    completions=jnp.where(there, batch.completions, 1),
    reward=jnp.where(batch.valid > 0, batch.reward, 7.0),
  )
  got = gradient(m, other, state)
  close(got, gradient(want, batch))
  alone = jax.tree.map(lambda x: x[:1, :2] if x.ndim > 1 else x[:1], batch)
  alone = alone.replace(prompts=batch.prompts[:1])
  first = batch.replace(valid=batch.valid.at[1:].set(0.0))
  close(gradient(m, first, state), gradient(want, alone))


def test_rollout_gdro_refuses():
  for options in ({'sign': 'minus'}, {'mean': 13}, {'least': 1}, {'signal': 'luck'}):
    with pytest.raises(InputError, match='rollout_gdro'):
      method('rollout_gdro', **options)
  with pytest.raises(InputError, match=r'rationed.*rollout_gdro'):
    run = runs.assembled(runs.config('grpo', source=dict(name='rationed')))
    run.source(run.state, 0)
  c = runs.config('rollout_gdro', source=dict(group=3))
  with pytest.raises(InputError, match=r'group=3 is to be config\.method\.most=4'):
    run = runs.assembled(c)
    run.source(run.state, 0)


def steered(run, rng):
  """The state with bins at random, and arms that love extremes."""
  extra = dict(run.state.extra)
  extra['gdro_bin'] = jnp.array(
    rng.integers(0, 10, len(extra['gdro_bin'])), jnp.float32
  )
  extra['arm_logp'] = jnp.array(rng.normal(size=extra['arm_logp'].shape), jnp.float32)
  return run.state.replace(extra=extra)


def test_the_budget_is_exact_and_bins_are_the_prompts_own():
  """Every step decodes mean * prompts rows, whatever the arms say; a prompt's number
  is that of its stored bin, and not of its place.
  """
  run = runs.assembled(runs.config('rollout_gdro'))
  seen, rng = set(), np.random.default_rng(0)
  for step in range(6):
    state = steered(run, rng)
    drawn = run.source(state, step)
    batch, number = drawn.batch, drawn.batch.valid.sum(1)
    assert number.sum() == 3 * len(number) == drawn.metrics['rollouts']
    stored = np.asarray(state.extra['gdro_bin'])
    which = stored[batch.extra['question'] % len(stored)]
    for b in np.unique(which):
      assert set(number[which == b]) == {drawn.metrics[f'gdro_rollouts/{int(b)}']}
    seen |= {*number}
    absent = batch.valid == 0
    assert absent.sum() == len(number)
    assert not batch.length[absent].any() and not batch.mask[absent].any()
    assert batch.length[~absent].min() >= 1
  assert seen == {2, 3, 4}
  # The sampler's log-probs, scattered to their places, are the trainer's.
  found = run.update(run.state, sharding.put_batch(batch, run.mesh))[1]
  assert float(found['max/mismatch']) < 1e-4


def test_turned_prompts_take_their_number_with_them():
  run = runs.assembled(runs.config('rollout_gdro'))
  state = steered(run, np.random.default_rng(3))
  ids = list(range(8))
  which, number = rationing.rations(state, ids, 4)
  turned, again = rationing.rations(state, ids[::-1], 4)
  assert len({*number}) > 1
  np.testing.assert_array_equal(which, turned[::-1])
  np.testing.assert_array_equal(number, again[::-1])


def test_what_is_first_is_the_mean_for_all():
  """Before anything is known, and the draws are those of groups of so many."""
  run = runs.assembled(runs.config('rollout_gdro'))
  batch = run.source(run.state, 0).batch
  np.testing.assert_array_equal(batch.valid, [[1, 1, 1, 0]] * 8)


def test_a_question_keeps_its_number_in_the_next_pass(files):
  """A task that shuffles each pass: the id told is the row's, not the draw's."""
  rows = [{'question': f'{i}?', 'answer': str(i)} for i in range(8)]
  paths = {
    k: files(k, r)
    for k, r in (('train', rows), ('test', [rows[0] | {'question': 't'}]))
  }
  c = runs.config('rollout_gdro', source=dict(max_prompt=8))
  c.task = dict(
    name='questions', train_path=paths['train'], test_path=paths['test'], seed=0
  )
  run = runs.assembled(c)
  asked = [run.source(run.state, step).batch for step in (0, 1)]
  decode = pretrained.load('tiny').tokenizer.decode
  texts = [[decode(p[:n]) for p, n in zip(b.prompts, b.prompt_length)] for b in asked]
  numbers = [[f'{q}?\n' for q in b.extra['question']] for b in asked]
  assert texts == numbers and texts[0] != texts[1]


@pytest.fixture
def files(tmp_path):
  """Writes rows as JSON lines; returns the path."""

  def write(name, rows):
    path = tmp_path / f'{name}.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)

  return write


# ---- Curriculum ----------------------------------------------------------------------


def test_the_frontier_by_hand():
  """Solved, failed, half and a quarter of the time, and never asked; floor .05."""
  got = curriculum.weights(np.array([1.0, 0.0, 0.5, 0.25, -1.0]), 0.05)
  close(got, [0.05, 0.05, 0.3, 0.2375, 0.3])


def test_questions_are_drawn_by_their_weights():
  """Two of five over 4,000 steps. The first of two is drawn by weight alone:
  p = w / sum(w); the second by what is left, by enumeration. Within 5 errors.
  """
  rate = np.array([1.0, 0.0, 0.5, 0.25, -1.0])
  p = curriculum.weights(rate, 0.05)
  p /= p.sum()
  due = p + sum(np.where(np.arange(5) != i, p[i] * p / (1 - p[i]), 0) for i in range(5))
  state = toy.state().replace(extra={'pass_rate': jnp.array(rate, jnp.float32)})
  index, n = curriculum.by_rate(2, 0.05), 4000
  rows = np.array([index(state, step) for step in range(n)])
  assert (rows[:, 0] != rows[:, 1]).all()
  found = np.bincount(rows.ravel(), minlength=5) / n
  assert (abs(found - due) < 5 * np.sqrt(due * (1 - due) / n)).all()


def test_pass_rates_by_hand():
  """EMA .25: the first visit's share, then a quarter of the way; absent groups stay."""
  m = curriculum.tracked(method('grpo'), pool=16, prompts=8, ema=0.25)
  reward = jnp.tile(row(1, 1, 1, 0), (toy.B, 1))
  batch = toy.batch(g=4).replace(reward=reward)
  batch = batch.replace(valid=batch.valid.at[0].set(0.0).at[1, 3].set(0.0))
  state, _ = update(m, batch, carried(m))
  close(state.extra['pass_rate'], [-1, 1] + [0.75] * 6 + [-1] * 8)
  state, _ = update(m, batch.replace(reward=0 * reward), state)
  close(state.extra['pass_rate'], [-1, 0.75] + [0.5625] * 6 + [-1] * 8)
  told = batch.extra | {'accuracy': jnp.ones_like(reward)}
  state, _ = update(m, batch.replace(extra=told), carried(m))
  close(state.extra['pass_rate'], [-1] + [1] * 7 + [-1] * 8)


def test_tracking_changes_no_gradient():
  m = method('prompt_gdro', prompts=16)
  kept = curriculum.tracked(m, pool=16, prompts=8, ema=0.5)
  batch = off_policy(toy.batch())
  close(gradient(kept, batch, carried(kept)), gradient(m, batch, carried(m)), 0.0)
  assert kept.extra.keys() - m.extra.keys() == {'pass_rate'}


def test_a_curriculum_survives_a_restart(tmp_path):
  """Questions come by the state: after a checkpoint the same ones as without it."""
  c = runs.config(source=dict(pool=24))
  run = runs.assembled(c)
  state, asked = run.state, []
  for step in range(3):
    batch = run.source(state, step).batch
    asked.append(set(batch.prompt_id.tolist()))
    state, _ = run.update(state, sharding.put_batch(batch, run.mesh))
  assert all(len(a) == 8 and max(a) < 24 for a in asked)
  known = np.flatnonzero(np.asarray(state.extra['pass_rate']) >= 0)
  assert {*known} == set.union(*asked)
  checkpoint.save(tmp_path, state, {}, keep=1)
  again = checkpoint.restore(tmp_path, runs.assembled(c).state)[0]
  first, second = (run.source(s, 3).batch for s in (state, again))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_curriculum_refuses():
  with pytest.raises(InputError, match='pool=4'):
    assemble.assemble(runs.config(source=dict(pool=4)))
  with pytest.raises(InputError, match="on_policy', not 'until_mixed'"):
    assemble.assemble(runs.config(source=dict(pool=24, name='until_mixed')))
