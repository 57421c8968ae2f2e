"""What every method must satisfy, whatever its paper. One row per method.

Each (method, variant) compiles once per session; checks share the program.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_embeddings
import toy

from jaxrl_llm import build, default_config, packing, sharding, unread
from jaxrl_llm.forward import OBSERVED
from jaxrl_llm.methods import grpo
from jaxrl_llm.ops import importance
from jaxrl_llm.step import clean, make_update_step, observe, sense, weigh
from jaxrl_llm.types import InputError, Outputs

METHODS = {  # A variant has its own name after a stroke.
  'sft': {},
  'reinforce': {'advantage': 'group_mean'},
  'rloo': {},
  'grpo': {},
  'dr_grpo': {'max_length': 5},
  'dapo': {},
  'gspo': {'clip_low': 0.2, 'clip_high': 0.2},
  'gspo/token': {'clip_low': 0.2, 'clip_high': 0.2, 'token': True},
  'cispo': {},
  'ppo': {},
  'dpo': {},
  'ipo': {},
  'kto': {},
  'kto/batch': dict(baseline='batch'),
  'simpo': {},
  'orpo': {},
  'bradley_terry': {},
  'two_grpo': {},
  'gmpo': {},
  'gpg': {},
  'opo': {},
  'sapo': {},
  'reinforce_pp': {},
  'reinforce_pp_baseline': {},
  'rebel': {},
  'raft': {},
  'raft/prior': {'beta': 0.35},
  'remax': {},
  'ma_rlhf': {'n': 2},
  'rto': {},
  'prime': {},
  'prompt_gdro': {'prompts': 16, 'history': 4, 'count': 3},
  'refuel': {},
  'score_rl': {},
  'safe_rlhf': {'window': 12},
  'hc_rlhf': {'window': 12},
  'think_rm_pairwise': {},
  'pairwise_ppo': {},
  'cgpo_crpg': {},
  'cgpo_codpo': {},
  'cgpo_crraft': {},
  'grpo_care': {},
  'rlbff_generative': {},
  'rollout_gdro': {
    **{'prompts': 16, 'history': 4, 'count': 3},
    **{'least': 2, 'most': 4, 'mean': 2},
  },
  'grpo_process': {},
  'gkd': {},
  'minillm': {},
  'a_lol': {},
  'r_lol': {},
  'online_ipo': {},
  'nash_md': {},
  'plackett_luce': {},
  'regression': {'attributes': 'a,b'},
  'orm': {},
  'prm': {},
  'rlbff': {},
  'multitask_ratings': {'attribute': 'a', 'lowest': -1.0, 'classes': 3},
  'ensemble': {'members': 3},
  'heron': {'factors': 'a,b'},
  'plackett_luce_dpo': {},
  'pro': {},
  'cpl': {},
  'tdpo': {},
  'spin': {},
  'sppo': {'eta': 2.0},
  'inpo': {'eta': 0.5, 'tau': 0.2},
  'cdpo': {},
  'robust_dpo': {},
  'f_dpo': {'link': 'jensen_shannon'},
  'dpo_positive': {},
  'ln_dpo': {},
  'r_dpo': {},
  'tr_dpo': {'every': 2},
  'wpo': {},
  'discopop': {'tau': 0.9},  # With the paper's tau it starts in the wrong basin.
  'apo_zero': {},
  'apo_down': {},
  'aot': {},
  'aot_unpaired': {},
  'cpo': {},
  'slic': {},
  'bco': {},
  'infonca': {},
  'nca': {},
  'exo': {},
  'safe': {},
  'armo': {'attributes': 'a,b', 'hidden': 8},
  'vpl': {'latent': 4, 'hidden': 8},
  'mapl': {},
  't_reg': {},
  'ift': {},
  'p_rlhf': {'count': 2, 'tokens': 2},
  'odin': {},
  'brme': {'attribute': 'a', 'members': 3},
}
GROUPS = {'vpl': 4}  # Completions of a prompt, where they are more than two.
# Other functions of the rewards in dpo's place: for them dpo and infonca stand by
# default, and the longer checks run all.
SAME = ('cdpo', 'robust_dpo', 'f_dpo', 'dpo_positive', 'ln_dpo', 'r_dpo', 'discopop')
SAME += ('apo_zero', 'apo_down', 'cpo', 'slic', 'nca', 'exo', 'mapl')
marked = lambda names: [
  n if n not in SAME else pytest.param(n, marks=pytest.mark.slow) for n in names
]
# All that is checked of a method in turn, while its programs are there.
every_method = pytest.mark.parametrize('name', marked(METHODS), scope='module')


def method(name):
  return build.method(name.partition('/')[0], **METHODS[name])


def start(name, tx=toy.SGD):
  extra = {k: jnp.array(v, jnp.float32) for k, v in method(name).extra.items()}
  return toy.state(tx, own=method(name).own).replace(extra=extra)


traced = collections.Counter()  # How often each update has been compiled.


@functools.cache
def compiled(name, **plan):
  step = make_update_step(toy.forward, toy.SGD, method(name), **plan)

  def counted(state, batch):
    traced[name, *plan] += 1
    return step(state, batch)

  return jax.jit(counted)


def rows(name, seed=0):
  """A batch that says what its sampler would: one structure, so one program."""
  batch = toy.batch(seed, GROUPS.get(name, toy.G))
  batch = toy.contrasted(batch) if name == 't_reg' else batch
  return batch.replace(behavior_logp=jnp.zeros_like(batch.mask))


@functools.cache
def base(name):
  return compiled(name)(start(name), rows(name))


def check_same(got, want, atol=1e-6):
  """Parameters and every metric agree."""
  chex.assert_trees_all_close(got[0].params, want[0].params, atol=atol)
  chex.assert_trees_all_close(got[1], want[1], atol=atol)


# The weights are the step's: by default a method for each of the three.
SAMPLED = [name for name in METHODS if name not in default_config.KINDS]
ON_POLICY = [
  name
  if name in ('grpo', 'gspo', 'ppo', 'rebel', 'cgpo_codpo')
  else pytest.param(name, marks=pytest.mark.slow)
  for name in SAMPLED
]
# By both rows of a pair.
AS_ONE = ('rebel', 'refuel', 'online_ipo', 'inpo', 'cgpo_codpo')


@pytest.mark.parametrize('name', ON_POLICY)
def test_the_samplers_error_is_weighed_out(name):
  """AT-32: what was sampled twice as often as it should be counts half, and a pair of
  such a quarter; without an error nothing changes; of truncated samples the update
  refuses to say.
  """
  weigh = functools.partial(importance.sequence, cap=2.0)
  step = jax.jit(make_update_step(toy.forward, toy.SGD, method(name), importance=weigh))
  logp = toy.logp(start(name).params['policy'], toy.batch())
  exact = toy.batch().replace(behavior_logp=logp)
  state, metrics = step(start(name), exact)
  chex.assert_trees_all_close(state.params, base(name)[0].params, atol=1e-6)
  assert float(metrics['max/mismatch']) < 1e-6
  often = exact.replace(behavior_logp=logp.at[..., 0].add(np.log(2.0)))
  state, metrics = step(start(name), often)
  share = 1 / 4 if name in AS_ONE else 1 / 2
  half = lambda old, new: old + share * (new - old)
  due = jax.tree.map(half, start(name).params, base(name)[0].params)
  chex.assert_trees_all_close(state.params, due, atol=1e-6)
  assert float(metrics['max/mismatch']) == pytest.approx(np.log(2.0), rel=1e-5)
  cut = exact.replace(kept_mass=0.9 * exact.mask)
  with pytest.raises(InputError, match='of one distribution'):
    step(start(name), cut)
  if not method(name).whole:
    step(start(name), cut.replace(keep_within=exact.mask))


FITTED = ('kto', 'bco', 'online_ipo', 'inpo', 'infonca', 'nca', 'exo', 'cgpo_codpo')
FITTED += ('a_lol', 'r_lol', 'plackett_luce_dpo')


@pytest.mark.parametrize('name', FITTED)
def test_a_fit_to_the_reference_is_of_whole_distributions(name):
  """AT-32: of truncated samples too log(pi / ref) is 0 where pi is ref, and what kto
  holds against another prompt was not drawn there.
  """
  state, batch = start(name), toy.batch()
  logp = toy.logp(state.params['policy'], batch)
  cut = dict(kept_mass=0.5 * batch.mask, keep_within=batch.mask)
  batch = batch.replace(behavior_logp=logp - np.log(0.5), **cut)

  def whole(params, frozen, batch, needs):
    assert all(x is None or x.keep_within is None for x in (batch, batch.aux))
    return toy.forward(params, frozen, batch, needs)

  metrics = make_update_step(whole, toy.SGD, method(name))(state, batch)[1]
  assert float(metrics['max/mismatch']) < 1e-5


@pytest.mark.parametrize('name', ['grpo', 'ppo'])
def test_the_sampler_may_be_trusted(name):
  """With an exact sampler nothing changes but the pass that is left out."""
  logp = toy.logp(start(name).params['policy'], toy.batch())
  exact, calls = toy.batch().replace(behavior_logp=logp), []

  def counted(params, frozen, batch, needs):
    calls.append(tuple(needs))
    return toy.forward(params, frozen, batch, needs)

  found = {}
  for trust in (False, True):
    calls.clear()
    plan = dict(minibatches=2, trust_sampler=trust)
    step = jax.jit(make_update_step(counted, toy.SGD, method(name), **plan))
    state, metrics = step(start(name), exact)
    found[trust] = state.params, sum('logp' in needs for needs in calls)
    assert float(metrics['max/mismatch']) < 1e-6
  chex.assert_trees_all_close(found[True][0], found[False][0], atol=1e-6)
  assert found[True][1] == found[False][1] - 1
  off, _ = step(start(name), exact.replace(behavior_logp=logp - 0.5))
  assert abs(off.params['policy'] - found[True][0]['policy']).max() > 1e-3


@pytest.mark.parametrize('name', ['grpo', 'reinforce'])
@pytest.mark.parametrize('trust', [False, True])
def test_agreement_is_of_the_parameters_that_sampled(name, trust):
  """AT-38: whoever reads it, and however many updates a batch has."""
  logp = toy.logp(start(name).params['policy'], toy.batch())
  off = toy.batch().replace(behavior_logp=logp + 0.25)
  plan = dict(epochs=2, minibatches=2, trust_sampler=trust)
  step = jax.jit(make_update_step(toy.forward, toy.SGD, method(name), **plan))
  state, metrics = step(start(name), off)
  assert abs(state.params['policy'] - start(name).params['policy']).max() > 1e-3
  assert float(metrics['mismatch']) == pytest.approx(0.25, abs=1e-6)
  assert float(metrics['max/mismatch']) == pytest.approx(0.25, abs=1e-6)
  gap = np.exp(-0.25) - 1 + 0.25
  assert float(metrics['mismatch_k3']) == pytest.approx(gap, abs=1e-6)


def test_the_sampler_may_not_be_trusted():
  make = functools.partial(make_update_step, toy.forward, toy.SGD, method('grpo'))
  with pytest.raises(InputError, match='twice'):
    make(importance=importance.token, trust_sampler=True)
  step = make(trust_sampler=True)
  with pytest.raises(InputError, match='takes a source that samples'):
    step(toy.state(), toy.batch())
  cut = toy.batch()
  with pytest.raises(InputError, match='of one distribution'):
    step(toy.state(), cut.replace(behavior_logp=-cut.mask, kept_mass=0.9 * cut.mask))


@every_method
def test_jit_changes_nothing(name):
  step = make_update_step(toy.forward, toy.SGD, method(name))
  with jax.disable_jit():
    check_same(step(start(name), rows(name)), base(name))


@every_method
def test_microbatches_change_nothing(name):
  """AT-1, AT-3, AT-7: ragged rows, each prompt alone; gradient, norm, every metric."""
  check_same(compiled(name, microbatches=toy.B)(start(name), rows(name)), base(name))


@every_method
def test_packing_changes_nothing(name):
  """AT-44: pieces of whole groups, as many as the tokens fill, for every method."""
  batch = jax.tree.map(np.asarray, rows(name))
  laid = packing.pack(batch, 2 * (2 * toy.T + toy.P))
  assert 1 < laid.layout.count < toy.B
  check_same(compiled(name)(start(name), laid), base(name))


@every_method
def test_devices_change_nothing(name):
  mesh = sharding.make_mesh()
  step = make_update_step(
    toy.forward, toy.SGD, method(name), constrain=sharding.constrain(mesh)
  )
  state = start(name)
  placed = jax.device_put(state, sharding.state_sharding(state, mesh))
  batch = sharding.put_batch(rows(name), mesh)
  check_same(sharding.compile_step(step, state, mesh)(placed, batch), base(name))


@every_method
def test_padding_is_inert(name):
  """Other tokens in masked slots, and wild numbers in the fields that fill them."""
  batch = rows(name)
  inside = batch.mask > 0
  slots = jnp.arange(toy.P)[None] < batch.prompt_length[:, None]
  garbage = batch.replace(
    completions=jnp.where(inside, batch.completions, 4),
    prompts=jnp.where(slots, batch.prompts, 4),
    behavior_logp=jnp.where(inside, 0.0, jnp.nan),
  )
  check_same(compiled(name)(start(name), garbage), base(name))


@every_method
def test_prompt_order_is_irrelevant(name):
  batch = jax.tree.map(lambda x: x[::-1], rows(name))
  check_same(compiled(name)(start(name), batch), base(name))


@every_method
def test_an_invalid_group_is_as_good_as_absent(name):
  """AT-2, AT-4: the batch with prompt 0 invalid is the batch of the others."""
  batch = rows(name)
  without = batch.replace(valid=batch.valid.at[0].set(0.0))
  others = jax.tree.map(lambda x: x[1:], batch)
  got, want = (compiled(name)(start(name), b) for b in (without, others))
  check_same(got, want)


@every_method
def test_an_empty_batch_moves_nothing(name):
  """AT-4: all rows masked gives a finite loss and a zero gradient."""
  batch = rows(name)
  state, metrics = compiled(name)(
    start(name), batch.replace(valid=jnp.zeros_like(batch.valid))
  )
  chex.assert_trees_all_equal(state.params, start(name).params)
  assert np.isfinite(metrics['loss'])
  assert int(state.applied) == 1


@every_method
def test_needs_are_true(name):
  """Each declared field is read; an undeclared one is None and would raise."""
  m = method(name)
  live = tuple(n for n in m.needs if n not in OBSERVED)
  assert not OBSERVED.keys() & {*m.measure_needs}, 'The batch has it already.'
  state = start(name)

  def loss(poison):
    batch = clean(rows(name))
    names = {n for n in (*m.needs, *m.prepare_needs) if n in OBSERVED}
    batch = observe(toy.forward, state, batch, names)
    if poison in names:
      batch = batch.replace(**{poison: getattr(batch, poison) * jnp.nan})
    batch = weigh(m.prepare(state, batch)[1], m)
    if m.measure is not None:
      out = sense(toy.forward, state.params, state.frozen, batch, m.measure_needs)
      batch = m.measure(poisoned(out, poison), batch)
    out = sense(toy.forward, state.params, state.frozen, batch, live)
    return m.loss(poisoned(out, poison if poison in live else None), batch)[0]

  def poisoned(out: Outputs, name):
    if name is None:
      return out
    if name.startswith('aux/'):
      return out.replace(aux=poisoned(out.aux, name.removeprefix('aux/')))
    found = jax.tree.map(lambda x: x * jnp.nan, getattr(out, name))
    return out.replace(**{name: found})

  assert np.isfinite(loss(None))
  for field in {*m.needs, *m.prepare_needs, *m.measure_needs}:
    assert not np.isfinite(loss(field)), f'{field} is never read'


@pytest.mark.parametrize('name', SAMPLED)
def test_what_a_source_is_asked_for_is_declared(name):
  """What a method does not declare (Method.reads) it does not miss."""
  m, state, found = method(name), start(name), []
  others = {*unread.SAID.values()} - {*m.reads}
  for left_out in (set(), others):
    batch = clean(rows(name))
    extra = {k: x for k, x in batch.extra.items() if k not in left_out}
    names = {n for n in (*m.needs, *m.prepare_needs) if n in OBSERVED}
    batch = observe(toy.forward, state, batch.replace(extra=extra), names)
    found.append(m.prepare(state, batch)[1].replace(extra={}))
  chex.assert_trees_all_equal(*found)


@every_method
def test_no_retrace(name):
  state, _ = compiled(name)(start(name), rows(name))
  before = traced[name,]
  compiled(name)(state, rows(name, 1))
  assert traced[name,] == before


@every_method
def test_gradient_is_the_slope(name):
  """Central differences in float64, along a random direction, off policy."""
  if name in BY_HAND:  # What they detach has a slope of its own.
    return BY_HAND[name]()
  with toy.float64():
    wide = lambda t: jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, t
    )
    m = build.method(name, **DETACHED[name]) if name in DETACHED else method(name)
    exact, numeric = slopes(name, m, wide)
  np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-9)


def slopes(name, m, wide):
  """(autodiff, central difference) of the loss along one direction."""
  state = start(name)
  state = state.replace(params=wide(state.params), frozen=wide(state.frozen))
  batch = clean(wide(rows(name)))
  names = {n for n in (*m.needs, *m.prepare_needs) if n in OBSERVED}
  batch = observe(toy.forward, state, batch, names)
  batch = weigh(m.prepare(state, batch)[1], m)
  params = jax.tree.map(lambda x: x * 1.1 + 0.03, state.params)
  if m.measure is not None:
    out = sense(toy.forward, params, state.frozen, batch, m.measure_needs)
    batch = m.measure(out, batch)
  live = tuple(n for n in m.needs if n not in OBSERVED)
  f = lambda p: m.loss(sense(toy.forward, p, state.frozen, batch, live), batch)[0]
  both = jax.jit(jax.value_and_grad(f))
  rng = np.random.default_rng(7)
  d = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
  at = lambda h: both(jax.tree.map(lambda x, y: x + h * y, params, d))[0]
  numeric = (at(1e-5) - at(-1e-5)) / 2e-5
  products = jax.tree.map(jnp.vdot, both(params)[1], d)
  return sum(jax.tree.leaves(products)), numeric


def check_cispo_slope():
  """d loss / d logp = -w min(r, bound) A: r = e^0.5 and e^2 against a bound of 3."""
  m = build.method('cispo', ratio_max=3.0)
  batch = toy.batch().replace(
    mask=jnp.ones((1, 1, 2)),
    weight=jnp.array([[[0.5, 0.5]]]),
    advantage=jnp.array([[[2.0]]]),
    old_logp=jnp.array([[[-1.0, -3.0]]]),
  )
  logp = jnp.array([[[-0.5, -1.0]]])
  got = jax.grad(lambda x: m.loss(Outputs(logp=x), batch)[0])(logp)
  np.testing.assert_allclose(got, [[[-np.exp(0.5), -3.0]]], rtol=1e-6)


def check_wpo_slope():
  """beta 1, rho (.5, 0): each slope -+w sigmoid(-.5), w = e^(-.5 - -1 + -1 - -1.7)."""
  logp = jnp.array([[[-0.5], [-1.0]]])
  fields = dict(mask=jnp.ones((1, 2, 1)), prompt_weight=jnp.ones(1))
  batch = toy.batch().replace(ref_logp=jnp.full((1, 2, 1), -1.0), **fields)
  collision = jnp.array([[[-1.0], [-1.7]]])
  m = build.method('wpo', beta=1.0)
  of = lambda x: m.loss(Outputs(logp=x, collision=x * 0 + collision), batch)[0]
  slope = np.exp(1.2) / (1 + np.exp(0.5))
  np.testing.assert_allclose(jax.grad(of)(logp), [[[-slope], [slope]]], rtol=1e-6)


def check_armo_slope():
  """Of the attributes regression's alone; of the gate the slope of the whole loss."""
  m, batch = method('armo'), weigh(clean(rows('armo')), method('armo'))
  state = start('armo')
  out = sense(toy.forward, state.params, state.frozen, batch, m.needs)
  batch = m.measure(out, batch)
  own = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), out.own
  )
  of = lambda m: lambda x: m.loss(out.replace(own=own, attributes=x), batch)[0]
  first = build.method('regression', attributes='a,b')
  slope = [jax.grad(of(x))(out.attributes) for x in (m, first)]
  np.testing.assert_allclose(*slope, atol=1e-6)
  with toy.float64():
    out = jax.tree.map(lambda x: x.astype(jnp.float64), out)
    value = lambda x: m.loss(out.replace(own=x), batch)[0]
    own = jax.tree.map(lambda x: x.astype(jnp.float64), own)
    way = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size)).reshape(x.shape), own)
    at = lambda h: value(jax.tree.map(lambda x, y: x + h * y, own, way))
    dot = jax.tree.map(jnp.vdot, jax.grad(value)(own), way)
    exact = float(sum(jax.tree.leaves(dot)))
    numeric = float((at(1e-5) - at(-1e-5)) / 2e-5)
  assert abs(exact) > 1e-3
  np.testing.assert_allclose(exact, numeric, rtol=1e-6)


BY_HAND = {'cispo': check_cispo_slope, 'wpo': check_wpo_slope}
BY_HAND['armo'] = check_armo_slope
BY_HAND['t_reg'] = test_embeddings.test_t_reg_by_hand
# They detach a part of their loss, which then is no slope; these variants detach none.
DETACHED = {
  'a_lol': {'variant': 'kl'},
  'r_lol': {'variant': 'kl'},
  'tdpo': {'detach': False},
}
# What a reward model says of a completion, a number that its reward is to have raised.
SAYS = {
  'bradley_terry': ('score', lambda x: x),
  'p_rlhf': ('score', lambda x: x),
  'plackett_luce': ('score', lambda x: x),
  'regression': ('attributes', lambda x: x[..., 0]),
  'orm': ('token_score', lambda x: x.sum(-1)),
  'prm': ('token_score', lambda x: x.sum(-1)),
  'multitask_ratings': ('score', lambda x: x),
  'heron': ('score', lambda x: x),
  'ensemble': ('members', lambda x: x.sum(-1)),
}


@every_method
def test_improves_its_toy(name):
  """Sixty updates on one batch: rewarded completions gain on the others."""
  tx = optax.adam(3e-2)
  step = jax.jit(make_update_step(toy.forward, tx, method(name)))
  batch = rows(name, 3)
  reward = jnp.tile(jnp.array([1.0, -1.0]), (toy.B, batch.mask.shape[1] // 2))
  batch = toy.scored(batch, reward)
  if name == 'rlbff_generative':  # To which what has no verdict is the worst.
    there = batch.extra['verdict'] * (reward > 0)[..., None]
    batch = batch.replace(extra=batch.extra | {'verdict': there})
  asked = batch.replace(extra={'jsd_beta': jnp.ones(toy.B)})
  state = start(name, tx)

  def gap(state):
    if name in ('gkd', 'minillm'):  # The teacher is what counts, not the reward.
      apart = toy.divergence(state.params['policy'], state.frozen['teacher'], asked)
      return -float((apart * batch.mask).sum())
    if (m := method(name)).serve:
      out = sense(toy.forward, state.params, state.frozen, batch, m.needs)
      return float((m.serve(out) * reward).sum())
    need, says = SAYS.get(name, ('logp', None))
    out = sense(toy.forward, state.params, state.frozen, batch, (need,))
    if says:
      return float((says(getattr(out, need)) * reward).sum())
    each = out.logp.sum(-1) / batch.mask.sum(-1)
    return float(each.sum() if name in ('sft', 'ift') else (each * reward).sum())

  before = gap(state)
  for _ in range(60):
    state, _ = step(state, batch)
  assert gap(state) > before + 0.5


def test_grpo_is_the_module_it_says():
  assert build.find('jaxrl_llm.methods', 'grpo', '') is grpo.grpo
