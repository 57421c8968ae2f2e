"""What shapes the data of a step: bonuses, hints, budgets of rollouts, the past."""

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
  controllers,
  filtration,
  forward,
  scaffold,
  sharding,
  types,
)
from jaxrl_llm.models import pretrained
from jaxrl_llm.models.decoder import Decoder
from jaxrl_llm.ops import care
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
