"""Which tokens count, and by how much; distillation; offline policy gradients."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import check, loss, one, row
from test_contract import check_same
from test_identities import close, gradient, off_policy, update

from jaxrl_llm import (
  build,
  default_config,
  forward,
  packing,
  pretraining,
  process,
  selection,
  sharding,
  types,
  wrapped,
)
from jaxrl_llm.models.config import DecoderConfig
from jaxrl_llm.models.decoder import Decoder, causal, head_kernel
from jaxrl_llm.ops import advantages, divergences, importance, logprobs, sequences
from jaxrl_llm.rewards.combine import weighted
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.step import clean, make_update_step, weigh
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError, Outputs

method = build.method

# ---- Importance ----------------------------------------------------------------------

BANDED = {
  'icepop': importance.icepop,
  'mis': importance.mis,
  'geometric': importance.geometric,
}


def said_twice(weights):
  """Trainer's and sampler's log-probs whose ratio is `weights`, and a mask of 1."""
  w = jnp.asarray(weights, jnp.float32)
  return jnp.log(w) - 2.0, jnp.full_like(w, -2.0), jnp.ones_like(w)


def test_banded_importance_by_hand():
  # Ratios (1, 3, 1/4) and (4, 4, 1): products 3/4 and 16; geometric means .909, 2.52.
  args = said_twice([[[1.0, 3.0, 0.25], [4.0, 4.0, 1.0]]])
  token, whole = importance.icepop(*args, low=0.5, cap=2.0)
  close(token, [[[1, 0, 0], [0, 0, 1]]])
  close(whole, [[0.75, 0]])
  token, whole = importance.mis(*args, low=0.5, cap=2.0)
  close(token, [[[0.75] * 3, [0] * 3]])
  close(whole, [[0.75, 0]])
  token, whole = importance.geometric(*args, low=0.5, cap=2.0)
  close(token, [[[1, 2, 0.25], [0, 0, 0]]])
  close(whole, [[0.75, 0]])
  # A bound of its own for each side: 3/4 is out above 0.8, and nothing else changes.
  token, whole = importance.mis(*args, low=0.8, cap=20.0)
  close(token, [[[0] * 3, [16] * 3]], 1e-4)
  # What the policy did not choose is in no product: 3 of (1, 3, masked).
  masked = (*args[:2], args[2].at[..., 2].set(0.0))
  close(importance.mis(*masked, low=0.5, cap=20.0)[1], [[3, 16]], 1e-4)


@pytest.mark.parametrize('name', BANDED)
def test_a_band_without_bounds_is_no_band(name):
  plain = importance.sequence if name == 'mis' else importance.token
  rng = np.random.default_rng(0)
  args = said_twice(np.exp(rng.normal(size=(3, 2, 4))))
  got = BANDED[name](*args, low=0.0, cap=np.inf)
  jax.tree.map(functools.partial(close, atol=1e-4), got, plain(*args, cap=np.inf))


@pytest.mark.parametrize('name', BANDED)
def test_what_is_out_of_the_band_has_no_gradient(name):
  """A quarter of the completions, said e^3 times too often; the others exactly."""
  weighing = functools.partial(BANDED[name], low=0.5, cap=2.0)
  table = toy.state().params['policy']
  logp = toy.logp(table, toy.batch())
  out = jnp.zeros((toy.B, toy.G, 1)).at[::2, 0].set(1.0)
  exact = toy.batch().replace(behavior_logp=logp)
  m = method('reinforce')
  close(
    update(m, exact, importance=weighing)[0].params['policy'],
    update(m)[0].params['policy'],
  )
  wrong = exact.replace(behavior_logp=logp + 3.0 * out)
  got = update(m, wrong, importance=weighing)[0].params['policy']
  reward = toy.batch().reward * (1 - out[..., 0])
  close(got, update(m, toy.batch().replace(reward=reward))[0].params['policy'])


def test_importance_by_flag():
  plan = dict(importance='icepop', importance_low=0.999, importance_cap=1.001)
  run = runs.assembled(runs.config(plan=plan))
  batch = run.source(run.state, 0).batch
  place = lambda b: sharding.put_batch(b, run.mesh)
  found = run.update(jax.tree.map(jnp.copy, run.state), place(batch))[1]
  assert float(found['grad_norm/policy']) > 0
  off = batch.replace(behavior_logp=batch.behavior_logp - 0.1)
  assert float(run.update(run.state, place(off))[1]['grad_norm/policy']) == 0
  for bad in (dict(importance_low=1.5), dict(importance_cap=0.5)):
    with pytest.raises(InputError, match=r'importance_low=.*importance_cap='):
      runs.assembled(runs.config(plan=dict(importance='mis') | bad))


# ---- Tokens that carry the gradient --------------------------------------------------


def selecting(name, plain='grpo', **options):
  """A method with one of selection.py's wrappers, sharp enough to matter on the toy."""
  m = method(plain, **options)
  if name == 'top_entropy':
    return selection.with_top_entropy(m, share=0.3)
  if name == 'clip_cov':
    return selection.with_clip_cov(m, share=0.2, low=0.0, high=9.0)
  return selection.with_kl_cov(m, share=0.3, coef=0.5)


WRAPPERS = ('top_entropy', 'clip_cov', 'kl_cov')
every_wrapper = pytest.mark.parametrize('name', WRAPPERS)


@functools.cache
def stepped(name):
  """Two minibatch-free epochs, so that the second is off policy."""
  return update(selecting(name), epochs=2)


@every_wrapper
def test_a_selection_is_of_the_whole_minibatch(name):
  """Microbatches, packed rows and devices change nothing."""
  check_same(update(selecting(name), epochs=2, microbatches=4), stepped(name))
  rows = jax.tree.map(np.asarray, toy.batch())
  laid = packing.pack(rows, 2 * (2 * toy.T + toy.P))
  check_same(update(selecting(name), laid, epochs=2), stepped(name))
  mesh = sharding.make_mesh()
  step = make_update_step(
    toy.forward,
    toy.SGD,
    selecting(name),
    epochs=2,
    constrain=sharding.constrain(mesh),
  )
  state = toy.state()
  placed = jax.device_put(state, sharding.state_sharding(state, mesh))
  batch = sharding.put_batch(toy.batch(), mesh)
  check_same(sharding.compile_step(step, state, mesh)(placed, batch), stepped(name))


@every_wrapper
def test_a_selection_knows_no_order_and_no_padding(name):
  turned = jax.tree.map(lambda x: x[::-1], toy.batch())
  check_same(update(selecting(name), turned, epochs=2), stepped(name))
  batch = toy.batch()
  inside = batch.mask > 0
  garbage = batch.replace(completions=jnp.where(inside, batch.completions, 4))
  check_same(update(selecting(name), garbage, epochs=2), stepped(name))


@every_wrapper
def test_a_selection_changes_the_gradient(name):
  """Not a wrapper that does nothing: see what it is compared with below."""
  batch = off_policy(toy.batch())
  gap = gradient(selecting(name), batch) - gradient(method('grpo'), batch)
  assert abs(gap).max() > 1e-2


def test_a_selection_of_everything_is_none():
  batch, plain = off_policy(toy.batch()), method('grpo')
  want = gradient(plain, batch)
  close(gradient(selection.with_top_entropy(plain, share=1.0), batch), want)
  empty = selection.with_clip_cov(plain, share=1.0, low=9.0, high=9.0)
  close(gradient(empty, batch), want)
  close(gradient(selection.with_kl_cov(plain, share=1.0, coef=0.0), batch), want)
  # On policy the penalty of kl_cov has its minimum, and no slope.
  close(gradient(selection.with_kl_cov(plain, share=1.0, coef=1.0)), gradient(plain))


def test_the_highest_by_hand():
  score, mask = one(5, 1, 3, 9, 3), one(1, 1, 1, 0, 1)
  number = lambda share: selection.count(share, mask)
  assert [int(number(x)) for x in (0.1, 0.25, 0.5, 1.0)] == [1, 1, 2, 4]
  close(selection.top(score, mask, number(0.25)), one(1, 0, 0, 0, 0))
  close(selection.top(score, mask, number(0.5)), one(1, 0, 1, 0, 1))  # A tie.
  close(selection.top(score, mask, number(1.0)), mask)
  assert int(selection.count(0.2, jnp.ones((1, 1, 35)))) == 7  # Not 6.99.


def test_the_covariance_by_hand():
  # log-probs -1, -2, -3 (mean -2), A = (2, 2, -1) (mean 1), a fourth token masked.
  batch = clean(toy.batch())
  batch = batch.replace(mask=one(1, 1, 1, 0), advantage=one(2, 2, -1, 7))
  got = selection.covariance(one(-1, -2, -3, -50), batch)
  close(got * batch.mask, one(1, 0, 2, 0))


def test_top_entropy_by_hand():
  """As if the other tokens had no advantage; their weights stay in the sum."""
  m = method('reinforce')
  batch = toy.batch(1)
  entropy = np.asarray(toy.entropy(toy.state().params['policy'], batch))
  inside = np.asarray(batch.mask) > 0
  size = int(0.3 * inside.sum())
  least = np.sort(entropy[inside])[-size]
  kept = jnp.asarray(inside & (entropy >= least), jnp.float32)
  assert size <= kept.sum() < inside.sum()

  def prepare(state, batch):
    state, batch = m.prepare(state, batch)
    return state, batch.replace(advantage=batch.advantage * kept)

  want = gradient(m._replace(prepare=prepare), batch)
  close(gradient(selection.with_top_entropy(m, share=0.3), batch), want)


def covariances(batch):
  """numpy's, of the toy's policy and reinforce's advantage, over all tokens."""
  logp = np.asarray(toy.logp(toy.state().params['policy'], batch))
  inside = np.asarray(batch.mask) > 0
  adv = np.broadcast_to(np.asarray(batch.reward)[..., None], logp.shape)
  return (logp - logp[inside].mean()) * (adv - adv[inside].mean()), inside


def test_kl_cov_marks_the_highest_covariances():
  m = selection.with_kl_cov(method('reinforce'), share=0.2, coef=0.5)
  batch = clean(toy.batch())
  old = batch.replace(old_logp=-jnp.ones_like(batch.mask) * batch.mask)
  logp = toy.logp(toy.state().params['policy'], batch) * batch.mask
  ready = weigh(m.prepare(toy.state(), old)[1], m)
  ready = m.measure(Outputs(logp=logp), ready)
  cov, inside = covariances(batch)
  size = int(0.2 * inside.sum())
  marked = inside & (cov >= np.sort(cov[inside])[-size])
  np.testing.assert_array_equal(ready.extra['kl_cov'], marked)
  plain = method('reinforce').loss(Outputs(logp=logp), ready)[0]
  gap = jnp.sum(ready.weight * marked * jnp.abs(logp + 1.0))
  close(m.loss(Outputs(logp=logp), ready)[0], plain + 0.5 * gap)


def test_clip_cov_silences_a_random_share_of_the_band():
  m = selection.with_clip_cov(method('reinforce'), share=0.1, low=0.1, high=1.0)
  batch, state = clean(toy.batch()), toy.state()
  logp = toy.logp(state.params['policy'], batch) * batch.mask

  def silenced(state):
    ready = m.prepare(state, batch)[1]
    before = np.asarray(ready.advantage * batch.mask)
    after = np.asarray(m.measure(Outputs(logp=logp), ready).advantage)
    kept = (after != 0) | (before == 0)
    np.testing.assert_array_equal(after[kept], before[kept])
    return ~kept

  cov, inside = covariances(batch)
  band = inside & (cov > 0.1) & (cov < 1.0)
  draws = [silenced(state.replace(step=jnp.int32(i))) for i in range(40)]
  assert band.sum() > int(0.1 * inside.sum()) == draws[0].sum() == draws[1].sum()
  np.testing.assert_array_equal(draws[0], silenced(state))
  # In the end every token of the band has had its turn, and no other.
  np.testing.assert_array_equal(np.any(draws, 0), band)


def test_the_critic_and_the_penalty_see_every_token():
  """Tokens without an advantage stay in ppo's value loss and in grpo's KL."""
  few = lambda m: selection.with_top_entropy(m, share=0.05)
  want = update(method('ppo'))[0].params['critic']
  close(update(few(method('ppo')))[0].params['critic'], want)
  even = toy.batch().replace(reward=jnp.zeros((toy.B, toy.G)))
  m = method('grpo', beta=1.0, kl='k2')
  close(gradient(few(m), even), gradient(m, even))
  assert abs(gradient(m, even)).max() > 1e-2


def test_selections_refuse():
  with pytest.raises(InputError, match='trains no policy'):
    selection.with_top_entropy(method('bradley_terry'), share=0.2)
  with pytest.raises(InputError, match=r'top_entropy=1\.2'):
    selection.with_top_entropy(method('grpo'), share=1.2)
  with pytest.raises(InputError, match='advantages of tokens'):
    update(selection.with_top_entropy(method('gspo'), share=0.2))
  with pytest.raises(InputError, match='advantages of tokens'):
    update(selection.with_top_entropy(method('dpo'), share=0.2))


def test_selections_by_flag():
  """All three at once, through the real networks: a rewarded step that is not 0."""
  plan = dict(top_entropy=0.2, clip_cov=0.1, clip_cov_low=0.0, kl_cov=0.2, epochs=2)
  run = runs.assembled(runs.config(plan=plan))
  batch = run.source(run.state, 0).batch
  found = run.update(run.state, sharding.put_batch(batch, run.mesh))[1]
  assert float(found['kl_cov']) > 0
  assert float(found['grad_norm/policy']) > 0


# ---- Steps ---------------------------------------------------------------------------


def test_process_supervision_by_hand():
  # Steps end at tokens 2 and 4 | 3; rewards (0, 1 | 2): mean 1, deviation sqrt(2/3).
  # Normalised (-s, 0 | s) with s = sqrt(3/2); what is still to come of each token.
  end = jnp.array([[[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]])
  reward = jnp.array([[[9.0, 0.0, 9.0, 1.0], [9.0, 9.0, 2.0, 9.0]]])
  s = np.sqrt(1.5)
  got = advantages.group_steps(reward, end, eps=0.0)
  close(got, [[[-s, -s, 0, 0], [s, s, s, 0]]])
  tie = advantages.group_steps(jnp.full_like(reward, 0.1), end)
  np.testing.assert_array_equal(tie, jnp.zeros_like(reward))


def test_one_step_is_outcome_supervision():
  batch = off_policy(toy.batch(1, g=4))
  last = sequences.at_last(jnp.ones_like(batch.reward), batch.mask)
  steps = {'step_end': last, 'step_reward': last * batch.reward[..., None]}
  got = gradient(method('grpo_process'), batch.replace(extra=steps))
  close(got, gradient(method('grpo'), batch))
  with pytest.raises(InputError, match=r'config\.source\.steps'):
    update(method('grpo_process'), batch.replace(extra={}))


def test_steps_are_scored_as_far_as_they_are_written():
  """The reward counts letters: 'ab', then 'abba' and the rest."""
  decode = lambda ids: ''.join('?ab'[i] for i in ids)
  batch = types.make_batch(
    np.zeros((1, 1), np.int32),
    np.ones(1, np.int32),
    np.array([[[1, 2, 2, 1, 0], [1, 1, 2, 1, 1]]], np.int32),
    np.array([[4, 2]], np.int32),
  )
  whole = Sample('', '', 9, False, Record(0, (), '', {}))
  samples = [whole._replace(completion='abba'), whole._replace(completion='aa')]
  reward = weighted({'length': (2.0, lambda s: s.tokens + len(s.completion))})
  got = process.with_steps(batch, samples, decode, reward, 'b').extra
  np.testing.assert_array_equal(got['step_end'], [[[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]])
  want = [[[0, 8, 12, 16, 0], [0, 8, 0, 0, 0]]]
  np.testing.assert_array_equal(got['step_reward'], want)


def test_steps_of_a_run():
  """The last step's reward is the completion's; filtered rows take theirs along."""
  run = runs.assembled(runs.config('grpo_process', source=dict(filter='best_worst')))
  batch = run.source(run.state, 0).batch
  end, reward = batch.extra['step_end'], batch.extra['step_reward']
  assert end.shape == batch.mask.shape
  last = np.take_along_axis(reward, batch.length[..., None] - 1, 2)[..., 0]
  np.testing.assert_array_equal(last, batch.reward)
  assert batch.reward.std() > 0
  assert (end <= batch.mask).all()


# ---- Demonstrations beside -----------------------------------------------------------


def with_demonstrations(batch):
  """The batch with other completions, one a prompt, as its second stream."""
  return batch.replace(aux=toy.batch(9, g=1))


def test_pretraining_adds_the_gradient_of_sft():
  batch = with_demonstrations(toy.batch())
  m = pretraining.with_pretraining(method('ppo'), coef=3.0)
  want = gradient(method('ppo')) + 3.0 * gradient(method('sft'), batch.aux)
  close(gradient(m, batch), want, 2e-6)
  got = update(m, batch, microbatches=4)
  check_same(got, update(m, batch))
  close(got[1]['nll_pretrain'], update(method('sft'), batch.aux)[1]['nll'])
  laid = packing.pack(jax.tree.map(np.asarray, batch), 2 * (2 * toy.T + toy.P))
  check_same(update(m, laid), got)


def test_pretraining_refuses():
  with pytest.raises(InputError, match='second stream of its own'):
    pretraining.with_pretraining(method('kto'), coef=1.0)
  with pytest.raises(InputError, match=r'pretrain\.coef=0'):
    pretraining.with_pretraining(method('ppo'), coef=0.0)


def test_pretraining_of_a_run():
  """Demonstrations of the step, shuffled by the seed; a run of ppo learns them."""
  c = runs.config('ppo')
  c.pretrain = default_config.pretraining(10.0, 8, 4)
  c.pretrain.data = dict(name='letters', kind='demonstrations', length=3, size=20)
  run = runs.assembled(c)
  state, seen, ids = run.state, [], []
  for step in range(4):
    batch = run.source(state, step).batch
    state, found = run.update(state, sharding.put_batch(batch, run.mesh))
    seen.append(float(found['nll_pretrain']))
    ids += batch.aux.prompt_id.tolist()
  assert seen[-1] < seen[0] - 0.1
  assert sorted(ids[:20]) == list(range(20))  # An epoch has each once.
  c.data = c.pretrain.data
  with pytest.raises(InputError, match=r'not beside config\.data'):
    wrapped.make_method(c)


# ---- Distillation --------------------------------------------------------------------


def logs(*rows):
  return jnp.log(jnp.array(rows, jnp.float32))


def test_the_jsd_by_hand():
  # p = (1/2, 1/2), q = (1, 0) but for 1e-30, beta 1/2: m = (3/4, 1/4).
  p, q = logs([0.5, 0.5]), logs([1.0, 1e-30])
  want = 0.5 * np.log(4 / 3) + 0.25 * (np.log(2 / 3) + np.log(2))
  close(divergences.jsd(p, q, jnp.float32(0.5)), [want])
  # With m's share of q 1/4: m = (5/8, 3/8).
  want = 0.25 * np.log(8 / 5) + 0.375 * (np.log(4 / 5) + np.log(4 / 3))
  close(divergences.jsd(p, q, jnp.float32(0.25)), [want])


@pytest.mark.parametrize('beta', [0.0, 1.0])
def test_the_ends_of_the_jsd_are_its_limits(beta):
  """Of jsd / beta at 0, KL(q || p), and of jsd / (1 - beta) at 1, KL(p || q)."""
  with toy.float64():
    p, q = (jnp.log(jnp.array([x])) for x in ([0.2, 0.5, 0.3], [0.6, 0.1, 0.3]))
    near = abs(beta - 1e-6)
    want = divergences.jsd(p, q, jnp.float64(near)) / 1e-6
    close(divergences.jsd(p, q, jnp.float64(beta)), want, 1e-5)
    of = lambda x, b: divergences.jsd(jax.nn.log_softmax(x), q, b).sum()
    slope = lambda b: jax.grad(of)(p, b)
    close(slope(jnp.float64(beta)), slope(jnp.float64(near)) / 1e-6, 1e-5)
    kl = lambda a, b: (jnp.exp(a) * (a - b)).sum()
    close(want, [kl(p, q) if beta else kl(q, p)], 1e-5)


@pytest.mark.parametrize(
  ('name', 'options'),
  [('gkd', {'beta': b}) for b in (0.0, 0.3, 1.0)] + [('minillm', {})],
)
def test_a_teacher_like_the_student_teaches_nothing(name, options):
  state = toy.state()
  state = state.replace(frozen=state.frozen | {'teacher': state.params['policy']})
  m = method(name, **options)
  moved, found = update(m, state=state)
  close(moved.params['policy'], state.params['policy'])
  close(found['divergence'], 0.0)
  assert abs(gradient(m)).max() > 1e-2  # Of another teacher.


def test_gkd_is_the_slope_of_the_kl_of_its_direction():
  """beta 0: KL(teacher || pi), beta 1: KL(pi || teacher), of each token's state."""
  state, batch = toy.state(), toy.batch()
  w = batch.mask / batch.mask.sum()
  teacher = toy.distribution(state.frozen['teacher'], batch)

  def apart(table, forward):
    p = toy.distribution(table, batch)
    a, b = (teacher, p) if forward else (p, teacher)
    return jnp.sum(w * jnp.sum(jnp.exp(a) * (a - b), -1))

  for beta in (0.0, 1.0):
    want = jax.grad(apart)(state.params['policy'], beta == 0)
    close(gradient(method('gkd', beta=beta)), want)


def test_minillm_has_the_gradient_of_the_sequences_kl():
  """Over all completions of two tokens after '0', each with its probability."""
  pairs = np.array([[i, j] for i in range(toy.V) for j in range(toy.V)], np.int32)
  batch = types.make_batch(
    np.zeros((1, 1), np.int32), np.ones(1, np.int32), pairs[None], np.full((1, 25), 2)
  )
  batch = jax.tree.map(jnp.asarray, batch)
  state = toy.state()
  every = lambda table: toy.logp(table, batch).sum(-1)
  teacher = every(state.frozen['teacher'])

  def kl(table):
    return jnp.sum(jnp.exp(every(table)) * (every(table) - teacher))

  chance = jnp.exp(every(state.params['policy']))
  share = lambda mask: mask * chance[..., None]
  m = method('minillm', length_norm=False, aggregate=share)
  close(gradient(m, batch), jax.grad(kl)(state.params['policy']))
  # gkd at beta 1 has the present token's part alone.
  rest = gradient(method('gkd', beta=1.0, aggregate=share), batch)
  assert abs(rest - gradient(m, batch)).max() > 1e-2


def test_minillm_by_hand():
  # log(teacher / old) = (9, 1, 3), then masked: sums of what follows 4, 3, 0; means
  # 2, 3, 0. Ratios (1, 1, 2): gain (2 + 3 + 0) / 3, divergence (3 + 0 + 0) / 3.
  batch = types.make_batch(
    np.zeros((1, 1), np.int32),
    np.ones(1, np.int32),
    np.zeros((1, 1, 4), np.int32),
    np.array([[3]]),
  ).replace(old_logp=one(-9, -9, -9, 0), teacher_logp=one(0, -8, -6, 0))
  out = Outputs(
    logp=one(-9, -9, -9 + np.log(2.0), 0.0), divergence=one(3.0, 0.0, 0.0, 0.0)
  )
  for norm, adv in ((True, (2, 3, 0, 0)), (False, (4, 3, 0, 0))):
    m = method('minillm', length_norm=norm)
    ready = weigh(m.prepare(None, batch)[1], m)
    close(ready.advantage, one(*adv))
    close(m.loss(out, ready)[0], 1.0 - sum(adv) / 3)


SMALL = DecoderConfig(
  vocab=11, width=16, layers=1, heads=2, kv_heads=1, mlp_width=24, head_dim=8
)
LARGE = dataclasses.replace(SMALL, width=24, layers=2, logit_cap=3.0)


def test_a_larger_teacher_is_read_without_its_whole_logits():
  """The sensor, padded and packed, against two softmaxes over everything."""
  rng = np.random.default_rng(0)
  batch = types.make_batch(
    rng.integers(0, 11, (3, 4)).astype(np.int32),
    np.array([4, 1, 2], np.int32),
    rng.integers(0, 11, (3, 2, 5)).astype(np.int32),
    rng.integers(1, 6, (3, 2)).astype(np.int32),
  )
  warmth = rng.uniform(0.5, 2.0, (3, 2)).astype(np.float32)
  beta = np.full(3, 0.3, np.float32)
  batch = batch.replace(temperature=warmth, extra={'jsd_beta': beta})
  zero = jnp.zeros((1, 1, 1), jnp.int32)
  nets = {'policy': Decoder(SMALL), 'teacher': Decoder(LARGE)}
  trees = {
    k: jax.tree.map(
      lambda x: 10 * x, net.init(jax.random.key(i), zero, zero, causal(1))
    )
    for i, (k, net) in enumerate(nets.items())
  }
  trees = {k: v['params'] for k, v in trees.items()}
  params, frozen = {'policy': trees['policy']}, {'teacher': trees['teacher']}
  see = jax.jit(forward.make_forward(nets), static_argnums=3)

  def said(params, batch):
    return see(params, frozen, batch, ('divergence',)).divergence * batch.mask

  def whole(params, batch):
    found = []
    for role, tree in (('policy', params['policy']), ('teacher', frozen['teacher'])):
      before = forward.padded(nets[role], tree, batch)[0]
      cap = nets[role].config.logit_cap
      flat = logprobs.logits(
        before.reshape(-1, before.shape[-1]), head_kernel(tree), cap
      )
      warm = jnp.repeat(jnp.asarray(warmth).ravel(), 5)[:, None]
      found.append(jax.nn.log_softmax(flat / warm))
    each = divergences.jsd(*found, jnp.float32(0.3))
    return each.reshape(batch.mask.shape) * batch.mask

  rows = jax.tree.map(jnp.asarray, batch)
  want = whole(params, rows)
  assert float(want.max()) > 0.1
  close(said(params, rows), want, 1e-5)
  slope = lambda fn, rows: jax.grad(lambda p: (fn(p, rows) ** 2).sum())(params)
  exact = slope(whole, rows)
  chex.assert_trees_all_close(slope(said, rows), exact, atol=1e-4, rtol=1e-4)
  m = method('gkd', beta=0.3)
  plain, laid = (
    make_update_step(forward.make_forward(nets), toy.SGD, m)(
      toy.state().replace(params=params, frozen=frozen, opt_state=toy.SGD.init(params)),
      b,
    )
    for b in (rows, packing.pack(batch, 20))
  )
  check_same(laid, plain, 1e-4)


# ---- Offline policy gradients --------------------------------------------------------


def test_a_lol_by_hand():
  # R = (2, 1), V = (1/2, 3): A = (3/2, 0). Token ratios (e, 1/4) product .68; nll 3.
  e = np.e
  logp = jnp.array([[[-1.0, -2.0], [-1.0, -1.0]]])
  ref = logp - jnp.log(jnp.array([[[e, 0.25], [1.0, 1.0]]]))
  value = jnp.array([[[0.5, 9.0], [3.0, 9.0]]])
  fields = dict(reward=row(2, 1), ref_logp=ref, old_value=value)
  out = Outputs(logp=logp, value=value)
  error = (1.5**2 + 2.0**2) / 4
  due = {
    'sequence': 1.5 * (e / 4) * 3,
    'token': 1.5 * (1.9 * 1 + 0.25 * 2),
    'free': 1.5 * 3,
    'kl': 1.5 * 3 + 0.1 * np.log(e / 4),
  }
  for variant, want in due.items():
    m = method('a_lol', variant=variant)
    batch = types.make_batch(
      np.zeros((1, 1), np.int32),
      np.ones(1, np.int32),
      np.zeros((1, 2, 2), np.int32),
      np.full((1, 2), 2),
    ).replace(**fields)
    ready = weigh(m.prepare(toy.state(), batch)[1], m)
    found = m.loss(out, ready)
    close(found[0], want / 2 + error, 1e-5)
    total, weight = found[1]['kept']
    close(total / weight, 0.5)
  # R = (2, 1) themselves, the sequence's ratios .68 and 1: (2 * .68 * 3 + 1 * 2) / 2.
  check(loss('r_lol', {}, out, **fields), (2 * (e / 4) * 3 + 2) / 2)


@pytest.mark.parametrize('variant', ['sequence', 'token', 'free', 'kl'])
def test_a_row_no_better_than_expected_teaches_nothing(variant):
  """With the critic at 0 rewards of -1, or of 0, are as good as no row."""
  state = toy.state()
  state = state.replace(params=state.params | {'critic': jnp.zeros(toy.V)})
  m = method('a_lol', variant=variant)
  batch = toy.batch(1, g=1)
  good = batch.replace(valid=batch.valid * (batch.reward > 0))
  share = float(good.valid.sum() / batch.valid.sum())
  assert 0 < share < 1
  want = share * gradient(m, good, state)
  assert abs(want).max() > 1e-2
  close(gradient(m, batch, state), want)
  zero = batch.replace(reward=jnp.maximum(batch.reward, 0.0))
  close(gradient(m, zero, state), want)


def test_a_lol_without_a_ratio_is_weighted_imitation():
  """A = 1 everywhere and no ratio: the negative log-likelihood, summed."""
  state = toy.state()
  state = state.replace(params=state.params | {'critic': jnp.zeros(toy.V)})
  batch = toy.batch(1, g=1).replace(reward=jnp.ones((toy.B, 1)))
  want = gradient(method('sft', aggregate='seq_sum'), batch)
  close(gradient(method('a_lol', variant='free'), batch, state), want)
  close(gradient(method('r_lol', variant='free'), batch), want)
  # At the reference every ratio is 1, and has no gradient of its own.
  at = state.replace(frozen=state.frozen | {'ref': state.params['policy']})
  for variant in ('sequence', 'token'):
    close(gradient(method('a_lol', variant=variant), batch, at), want)
    close(gradient(method('r_lol', variant=variant), batch, at), want)
  rest = gradient(method('a_lol', critic_steps=1), batch, at)
  np.testing.assert_array_equal(rest, jnp.zeros_like(rest))


def test_a_lol_learns_the_value_of_a_prompt():
  """The critic's gradient: V - R at the prompt's last token, a mean over rows."""
  state, batch = toy.state(), toy.batch(1, g=1)
  moved = update(method('a_lol'), batch, state)[0].params['critic']
  first = toy.previous(batch)[:, 0, 0]
  error = (state.params['critic'][first] - batch.reward[:, 0]) / toy.B
  want = jnp.zeros(toy.V).at[first].add(error)
  close(state.params['critic'] - moved, want)


def test_a_lol_refuses():
  with pytest.raises(InputError, match="variant='ratio'"):
    method('a_lol', variant='ratio')
