"""Batches drawn while the update before them runs, by parameters one step old.

  batch k is drawn by the parameters before update k - 1, batches 0 and 1 by the first

Those parameters are in the state, as frozen['behind']: what is drawn depends on the
state and the step alone, and a resumed run draws the same. A thread draws it early, of
a copy, as the update takes the state; what it drew is used only where it is what the
state asks for. The step makes up for the age by config.plan.importance, or by the
method's own ratio, if it has one (config.plan.trust_sampler). Ours; no paper is
reproduced.
"""

import concurrent.futures
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm import masking
from jaxrl_llm import step as step_lib
from jaxrl_llm.forward import Forward
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.sources import Drawn, Source
from jaxrl_llm.types import Batch, Params, State

BEHIND = 'behind'  # The frozen role that drew the batch of this state's step.


def begun(state: State) -> State:
  """A first state with the parameters that draw its batch, its own."""
  own = jax.tree.map(jnp.copy, state.params['policy'])
  return state.replace(frozen=state.frozen | {BEHIND: own})


def remembering(update_step: Callable, see: Forward) -> Callable:
  """The pure update step, which leaves the policy that it moved in frozen['behind'].

  What the step says of sampler and trainer is their distance in age, and here `lag_k3`.
  Whether the two agree is asked of the parameters that sampled, for the first group.

  Args:
    update_step: see step.make_update_step.
    see: see forward.make_forward.
  """

  def update(state: State, batch: Batch):
    frozen = dict(state.frozen)
    drew, learns = frozen.pop(BEHIND), state.params['policy']
    agree = agreement(see, drew, frozen, batch)
    state, metrics = update_step(state.replace(frozen=frozen), batch)
    lag = {'lag_k3': metrics['mismatch_k3']} if 'mismatch_k3' in metrics else {}
    state = state.replace(frozen=state.frozen | {BEHIND: learns})
    return state, metrics | lag | agree

  return update


def agreement(see: Forward, policy: Params, frozen: Params, batch: Batch):
  """step.agreement of these parameters with the sampler, of the first group alone."""
  whole = batch.replace(layout=None, room=None)
  first = masking.clean(jax.tree.map(lambda x: x[:1], whole))
  said = step_lib.sense(see, {'policy': policy}, frozen, first, ('logp',))
  return metrics_lib.finish(step_lib.agreement(first, said.logp))


def overlapped(
  source: Source, evaluate: Callable, *, last: int
) -> tuple[Source, Callable]:
  """The source a step ahead in a thread, and the evaluation, which waits for it.

  The thread and the caller never both ask a reward. An error comes when its batch is
  due; a process that ends waits for the draw under way. Metric `staleness` is how many
  steps the parameters that drew are behind.

  Args:
    source: one that reads no more of a state than `part` has.
    last: steps of the run; nothing is drawn beyond.
  """
  pool, coming = concurrent.futures.ThreadPoolExecutor(1), {}

  def settle() -> None:
    concurrent.futures.wait([found for _, found in coming.values()])

  def drawn(state: State, step: int) -> Drawn:
    settle()
    due = part(state, state.frozen[BEHIND], jnp.maximum(state.step - 1, 0))
    held, found = coming.pop(step, (None, None))
    coming.clear()
    early = held is not None and bool(same(held, due))
    batch = found.result() if early else source(due, step)
    if step + 1 < last:
      after = copied(part(state, state.params['policy'], state.step))
      coming[step + 1] = after, pool.submit(source, after, step + 1)
    age = float(state.step - due.step)
    return batch._replace(metrics=batch.metrics | {'staleness': age})

  def alone(state: State):
    settle()
    return evaluate(state)

  return drawn, alone


def part(state: State, policy: Params, number) -> State:
  """What a source reads of a state: policy, base, root key and step."""
  base = {k: x for k, x in state.frozen.items() if k == 'base'}
  return state.replace(
    step=number, params={'policy': policy}, frozen=base, opt_state=(), extra={}
  )


@jax.jit
def copied(state: State) -> State:
  """The same in buffers of its own."""
  return jax.tree.map(jnp.copy, state)


@jax.jit
def same(a: State, b: State):
  """Whether two states draw the same: equal policies, keys and steps."""
  parts = [(s.params, jax.random.key_data(s.key), s.step) for s in (a, b)]
  equal = jax.tree.map(lambda x, y: (x == y).all(), *parts)
  return jnp.stack(jax.tree.leaves(equal)).all()
