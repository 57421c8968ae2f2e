"""The one place where gradients are taken and parameters move."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import types
from jaxrl_llm.forward import OBSERVED, Forward
from jaxrl_llm.ops import importance as importance_lib
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.ops import weights
from jaxrl_llm.types import Batch, Method, Metrics, Outputs, State

# Per-token fields: masked slots are replaced by 0 before any method sees them.
PER_TOKEN = ('behavior_logp', 'kept_mass', 'old_logp', 'ref_logp', 'old_value')
WEIGHTS = ('weight', 'seq_weight', 'prompt_weight')
SENSED = ('logp', 'entropy', 'value', 'token_score', 'ref_logp')


def make_update_step(
  forward: Forward,
  tx: optax.GradientTransformation,
  method: Method,
  *,
  epochs: int = 1,
  minibatches: int = 1,
  microbatches: int = 1,
  importance: Callable | None = None,
  constrain=lambda batch: batch,
):
  """Returns the pure `update_step(state, batch) -> (state, metrics)`.

  Args:
    forward: see forward.make_forward.
    tx: an optax transformation over `state.params`.
    method: the paper.
    epochs: passes over the batch.
    minibatches: optimizer updates per pass.
    microbatches: pieces a minibatch's gradient is summed over. Changes memory, never
      the result.
    importance: weights for the sampler's error (ops/importance.py); one more forward
      pass where the method has no old_logp of its own.
    constrain: keeps a batch split over devices (sharding.constrain).
  """
  # On one strictly on-policy update the old log-prob is this one, detached.
  once = epochs == minibatches == 1 and importance is None
  fresh = tuple(n for n in method.needs if once and OBSERVED.get(n) in live(method))
  observed = {n for n in method.needs if n in OBSERVED} - {*fresh}
  observed |= {*method.prepare_needs, *(('old_logp',) if importance else ())}
  gradient = make_gradient(forward, method, fresh, microbatches, once=once)

  def optimizer_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    batch = constrain(corrected(weigh(batch, method), importance))
    batch = couple(forward, method, state, batch, microbatches)
    grads, metrics = gradient(state.params, state.frozen, batch)
    one = jnp.float32(1)
    norms = {f'grad_norm/{r}': (optax.tree.norm(g), one) for r, g in grads.items()}
    return guarded(tx, state, grads), metrics | norms

  def update_step(state: State, batch: Batch) -> tuple[State, dict]:
    types.check(batch)
    check_plan(batch, minibatches, microbatches)
    batch = clean(jax.lax.stop_gradient(batch))
    batch = observe(forward, state, batch, observed, microbatches)
    state, batch = prepare(method, state, batch)
    order, batch = batch.order, batch.replace(order=None)

    def epoch(state, index):
      take = lambda x: x if order is None else x[order[:, index]]
      shuffled = jax.tree.map(take, batch)
      return jax.lax.scan(optimizer_step, state, split(shuffled, minibatches))

    state, metrics = jax.lax.scan(epoch, state, jnp.arange(epochs))
    metrics = metrics_lib.finish(metrics_lib.reduce(metrics_lib.reduce(metrics)))
    state = method.after(state, batch, metrics)
    state = state.replace(step=state.step + 1)
    return state, metrics | {'applied': state.applied, 'skipped': state.skipped}

  return update_step


def make_gradient(
  forward: Forward, method: Method, fresh, microbatches: int, *, once: bool
):
  """Returns `gradient(params, frozen, batch) -> (gradient, metrics)` of a minibatch.

  `fresh` names the fields of the batch that are, where empty, this forward pass's own
  outputs, detached. `once`: the parameters are those that sampled the batch.
  """
  sensors = live(method)

  def loss_fn(params, frozen, batch):
    out = sense(forward, params, frozen, batch, sensors)
    for name in fresh:
      if getattr(batch, name) is None:
        now = jax.lax.stop_gradient(getattr(out, OBSERVED[name]))
        batch = batch.replace(**{name: now})
    loss, metrics = method.loss(out, batch)
    metrics |= {'loss': (loss, jnp.float32(1.0 / microbatches))}
    return loss, metrics | agreement(batch, out.logp if once else None)

  grad_fn = jax.grad(loss_fn, has_aux=True)

  def gradient(params, frozen, batch):
    if microbatches == 1:
      return grad_fn(params, frozen, batch)
    # Weighted sums add up, so a scan of sums is the whole story.

    def add(total, piece):
      grads, metrics = grad_fn(params, frozen, piece)
      return jax.tree.map(jnp.add, total, grads), metrics

    zero = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(add, zero, split(batch, microbatches))
    return grads, metrics_lib.reduce(metrics)

  return gradient


def live(method: Method) -> tuple[str, ...]:
  """The sensors that a method's loss reads at every forward pass."""
  return tuple(n for n in method.needs if n not in OBSERVED)


def make_measure(forward: Forward, method: Method):
  """Returns `measure(state, batch) -> metrics`: the loss's pairs, nothing moved.

  A batch that is a piece of a larger one has its weights already. The pairs of all
  pieces add up.
  """
  names = {n for n in (*method.needs, *method.prepare_needs) if n in OBSERVED}

  def measure(state: State, batch: Batch) -> dict:
    types.check(batch)
    batch = observe(forward, state, clean(batch), names)
    given = {n: x for n in WEIGHTS if (x := getattr(batch, n)) is not None}
    batch = weigh(prepare(method, state, batch)[1], method).replace(**given)
    batch = couple(forward, method, state, batch, 1)
    out = sense(forward, state.params, state.frozen, batch, live(method))
    loss, metrics = method.loss(out, batch)
    return metrics | {'loss': (loss, batch.seq_weight.sum())}

  return measure


def corrected(batch: Batch, importance: Callable | None) -> Batch:
  """The batch's weights times those that make up for the sampler's error."""
  if importance is None:
    return batch
  if batch.behavior_logp is None or batch.kept_mass is not None:
    raise types.InputError(
      'config.plan.importance compares log-probs of one distribution. It takes a '
      'source that samples, with top_k=0, top_p=1 and min_p=0.'
    )
  token, row = importance(batch.old_logp, batch.behavior_logp, batch.mask)
  return batch.replace(weight=batch.weight * token, seq_weight=batch.seq_weight * row)


def agreement(batch: Batch, logp) -> Metrics:
  """ops.importance.agreement with the parameters that sampled, where both speak."""
  logp = batch.old_logp if batch.old_logp is not None else logp
  if batch.behavior_logp is None or logp is None:
    return {}
  said = batch.behavior_logp
  if batch.kept_mass is not None:
    said += jnp.log(jnp.where(batch.mask > 0, batch.kept_mass, 1.0))
  return importance_lib.agreement(jax.lax.stop_gradient(logp), said, batch.mask)


def couple(forward: Forward, method: Method, state: State, batch: Batch, pieces: int):
  """Adds the method's statistics over the whole minibatch, without gradient."""
  if method.measure is None:
    return batch
  read = functools.partial(
    sense, forward, state.params, state.frozen, needs=method.measure_needs
  )
  out = jax.lax.stop_gradient(in_pieces(read, batch, pieces))
  return method.measure(out, batch)


def sense(forward: Forward, params, frozen, batch: Batch, needs) -> Outputs:
  """What the networks say, with 0 in every masked slot."""
  return blank(forward(params, frozen, batch, needs), batch, SENSED)


def observe(forward: Forward, state: State, batch: Batch, names, pieces=1) -> Batch:
  """Fills in, without gradient, the once-per-batch fields that are named and empty."""
  missing = [n for n in sorted(names) if getattr(batch, n) is None]
  if not missing:
    return batch
  sensors = tuple(sorted({OBSERVED[n] for n in missing}))
  read = functools.partial(sense, forward, state.params, state.frozen, needs=sensors)
  out = jax.lax.stop_gradient(in_pieces(read, batch, pieces))
  return batch.replace(**{n: getattr(out, OBSERVED[n]) for n in missing})


def prepare(method: Method, state: State, batch: Batch) -> tuple[State, Batch]:
  """The method's view of the whole batch, its shapes checked.

  It does not see the layout, which would be wrong for rows that it makes of others.
  """
  state, found = method.prepare(state, batch.replace(layout=None))
  types.check(found)
  return state, found.replace(layout=batch.layout)


def clean(batch: Batch) -> Batch:
  """Invalid rows leave the mask; masked slots of per-token fields become 0."""
  batch = batch.replace(mask=batch.mask * batch.valid[..., None])
  if batch.reward is not None:
    batch = batch.replace(reward=jnp.where(batch.valid > 0, batch.reward, 0.0))
  if batch.aux is not None:
    batch = batch.replace(aux=clean(batch.aux))
  return blank(batch, batch, PER_TOKEN)


def blank(tree, batch: Batch, names):
  """0 x NaN is NaN, in the gradient too: masked slots are replaced, not multiplied."""
  inside = batch.mask > 0
  found = {n: x for n in names if (x := getattr(tree, n)) is not None}
  tree = tree.replace(**{n: jnp.where(inside, x, 0.0) for n, x in found.items()})
  if isinstance(tree, Outputs) and tree.aux is not None:
    tree = tree.replace(aux=blank(tree.aux, batch.aux, names))
  return tree


def weigh(batch: Batch, method: Method) -> Batch:
  """Writes the weights of a minibatch, from its mask alone."""
  if batch.aux is not None:
    batch = batch.replace(aux=weigh(batch.aux, method))
  weight = (method.aggregate or weights.seq_mean)(batch.mask)
  if weight.shape != batch.mask.shape:
    raise types.InputError(
      f'config.method.aggregate gives weights of shape {weight.shape}; the mask it is '
      f'given has {batch.mask.shape}.'
    )
  return batch.replace(
    weight=weight,
    seq_weight=weights.seq_weight(batch.mask),
    prompt_weight=weights.prompt_weight(batch.mask),
  )


def guarded(tx, state: State, grads) -> State:
  """One optimizer update; a non-finite gradient changes nothing and is counted."""

  def apply(state):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, applied=state.applied + 1)

  finite = jnp.isfinite(optax.tree.norm(grads))
  skip = lambda state: state.replace(skipped=state.skipped + 1)
  return jax.lax.cond(finite, apply, skip, state)


def split(tree, n: int):
  """[B, ...] to [n, B / n, ...]: piece i has rows i, i + n, ... Groups stay whole.

  Strided, so that every device keeps its share of each piece.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), tree
  )


def in_pieces(fn, batch: Batch, n: int):
  """`fn(batch)` computed over n pieces in turn; its result has a leading axis B."""
  if n == 1:
    return fn(batch)
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
  return jax.tree.map(join, jax.lax.map(fn, split(batch, n)))


def check_plan(batch: Batch, minibatches: int, microbatches: int) -> None:
  """Refuses a plan that does not divide the prompts, or does not fit the layout."""
  b = batch.prompts.shape[0]
  pieces = microbatches if batch.layout is None else len(batch.layout.source)
  if pieces != microbatches or (batch.layout is not None and minibatches > 1):
    raise types.InputError(
      f'A batch packed in {pieces} pieces cannot be updated in {minibatches} '
      f'minibatches of {microbatches} microbatches: packing takes one minibatch.'
    )
  if b % (minibatches * microbatches):
    raise types.InputError(
      f'{b} prompts do not divide into {minibatches} minibatches of {microbatches} '
      'microbatches. Change config.plan or the number of prompts.'
    )
