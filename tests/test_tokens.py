"""Which tokens count, and by how much; distillation; offline policy gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_by_hand import one
from test_contract import check_same
from test_identities import close, gradient, off_policy, update

from jaxrl_llm import (
  assemble,
  build,
  default_config,
  packing,
  pretraining,
  process,
  selection,
  sharding,
  types,
)
from jaxrl_llm.ops import advantages, importance, sequences
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


def wrapped(name, plain='grpo', **options):
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
  return update(wrapped(name), epochs=2)


@every_wrapper
def test_a_selection_is_of_the_whole_minibatch(name):
  """Microbatches, packed rows and devices change nothing."""
  check_same(update(wrapped(name), epochs=2, microbatches=4), stepped(name))
  rows = jax.tree.map(np.asarray, toy.batch())
  laid = packing.pack(rows, 2 * (2 * toy.T + toy.P))
  check_same(update(wrapped(name), laid, epochs=2), stepped(name))
  mesh = sharding.make_mesh()
  step = make_update_step(
    toy.forward,
    toy.SGD,
    wrapped(name),
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
  check_same(update(wrapped(name), turned, epochs=2), stepped(name))
  batch = toy.batch()
  inside = batch.mask > 0
  garbage = batch.replace(completions=jnp.where(inside, batch.completions, 4))
  check_same(update(wrapped(name), garbage, epochs=2), stepped(name))


@every_wrapper
def test_a_selection_changes_the_gradient(name):
  """Not a wrapper that does nothing: see what it is compared with below."""
  batch = off_policy(toy.batch())
  gap = gradient(wrapped(name), batch) - gradient(method('grpo'), batch)
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
    assemble.make_method(c)
