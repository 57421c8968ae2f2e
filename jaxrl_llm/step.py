"""The one place where gradients are taken and parameters move."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import pieces, types
from jaxrl_llm.forward import OBSERVED, Forward
from jaxrl_llm.masking import blank, clean
from jaxrl_llm.ops import importance as importance_lib
from jaxrl_llm.ops import metrics as metrics_lib
from jaxrl_llm.ops import weights
from jaxrl_llm.types import Batch, Method, Metrics, Outputs, State

SENSED = ('logp', 'mixed_logp', 'entropy', 'collision', 'odds', 'value', 'token_score')
SENSED += ('cost_value', 'twin_value', 'ref_logp', 'dpo_logp', 'prm_logp', 'ema_logp')
SENSED += ('teacher_logp', 'divergence', 'ref_divergence')


def make_update_step(
  forward: Forward,
  tx: optax.GradientTransformation,
  method: Method,
  *,
  epochs: int = 1,
  minibatches: int = 1,
  microbatches: int = 1,
  importance: Callable | None = None,
  trust_sampler: bool = False,
  constrain=lambda batch: batch,
):
  """Returns the pure `update_step(state, batch) -> (state, metrics)`.

  Args:
    forward: see forward.make_forward.
    tx: an optax transformation over `state.params`.
    method: the paper.
    epochs: passes over the batch.
    minibatches: optimizer updates per pass.
    microbatches: pieces a minibatch's gradient is summed over; a packed batch comes in
      pieces of its own. Changes memory, never the result.
    importance: weights for the sampler's error (ops/importance.py), of the whole loss:
      of a critic, a KL term and an entropy bonus too. One more forward pass where the
      method has no old_logp of its own. With several updates of a batch it makes up for
      the sampler alone; what the parameters move since is the affair of a method's
      ratio, and a method without one (rloo, reinforce) is then off policy.
    trust_sampler: what the sampler reported is old_logp, and no pass finds it out. The
      ratio then makes up for the sampler's error too, so `importance` may not. Where
      the loss has no ratio, nothing makes up for it.
    constrain: keeps a batch split over devices (sharding.constrain).
  """
  check_once(importance, trust_sampler)
  # On one strictly on-policy update the old log-prob is this one, detached.
  once = epochs == minibatches == 1 and importance is None
  fresh = tuple(n for n in method.needs if once and OBSERVED.get(n) in live(method))
  observed = {n for n in method.needs if n in OBSERVED} - {*fresh}
  observed |= {*method.prepare_needs, *(('old_logp',) if importance else ())}
  known = 'old_logp' if 'old_logp' in observed and not trust_sampler else 'logp'
  gradient = make_gradient(forward, method, fresh, microbatches, known=known)

  def optimizer_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    batch = constrain(corrected(weigh(batch, method), importance))
    batch = couple(forward, method, state, batch, microbatches)
    grads, metrics = gradient(state.params, state.frozen, batch)
    return guarded(tx, state, grads), metrics | norms(grads)

  def update_step(state: State, batch: Batch) -> tuple[State, dict]:
    check_plan(batch, minibatches, microbatches)
    batch = entered(batch, method)
    batch = trusting(batch) if trust_sampler else batch
    batch = observe(forward, state, batch, observed, microbatches)
    state, batch = prepare(method, state, batch)
    order, batch = batch.order, batch.replace(order=None)

    def epoch(state, index):
      take = lambda x: x if order is None else x[order[:, index]]
      shuffled = jax.tree.map(take, batch)
      return jax.lax.scan(optimizer_step, state, pieces.split(shuffled, minibatches))

    state, metrics = jax.lax.scan(epoch, state, jnp.arange(epochs))
    metrics = finished(metrics, known)
    state = method.after(state, batch, metrics).replace(step=state.step + 1)
    return state, metrics | {'applied': state.applied, 'skipped': state.skipped}

  return update_step


def make_gradient(
  forward: Forward, method: Method, fresh, microbatches: int, *, known: str
):
  """Returns `gradient(params, frozen, batch) -> (gradient, metrics)` of a minibatch.

  `fresh` names the fields of the batch that are, where empty, this forward pass's own
  outputs, detached. `known` names what is held against the sampler: 'old_logp', or
  where nobody looked 'logp', this pass, whose parameters sampled at the first update.
  """
  sensors = live(method)

  def loss_fn(params, frozen, batch):
    out = sense(forward, params, frozen, batch, sensors)
    for name in fresh:
      if getattr(batch, name) is None:
        now = jax.lax.stop_gradient(getattr(out, OBSERVED[name]))
        batch = batch.replace(**{name: now})
    loss, metrics = method.loss(out, batch)
    metrics |= {'loss': (loss, batch.seq_weight.sum())}
    told = {'logp': out.logp, 'old_logp': batch.old_logp}[known]
    return loss, metrics | agreement(batch, told)

  def gradient(params, frozen, batch):
    of = jax.grad(loss_fn, has_aux=True)
    zero = jax.tree.map(jnp.zeros_like, params)
    one = lambda piece: of(params, frozen, piece)
    return pieces.total(one, zero, batch, microbatches)

  return gradient


def entered(batch: Batch, method: Method) -> Batch:
  """The batch without gradient, clean, and of whole distributions if the method is."""
  batch = clean(jax.lax.stop_gradient(batch))
  return batch.replace(keep_within=None) if method.whole else batch


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
    given = {n: x for n in pieces.WEIGHTS if (x := getattr(batch, n)) is not None}
    batch = weigh(prepare(method, state, batch)[1], method).replace(**given)
    batch = couple(forward, method, state, batch, 1)
    loss, metrics = method.loss(read(forward, state, batch, live(method), 1), batch)
    return metrics | {'loss': (loss, batch.seq_weight.sum())}

  return measure


def corrected(batch: Batch, importance: Callable | None) -> Batch:
  """The batch's weights times those that make up for the sampler's error.

  What weighs a prompt's completions as one, such as a pair, gets their product.
  """
  if importance is None:
    return batch
  check_comparable('importance', batch)
  token, row = importance(batch.old_logp, batch.behavior_logp, batch.mask)
  return batch.replace(
    weight=batch.weight * token,
    seq_weight=batch.seq_weight * row,
    prompt_weight=batch.prompt_weight * row.prod(1),
  )


def check_once(importance, trust_sampler: bool) -> None:
  """Refuses to make up for the sampler's error twice."""
  if trust_sampler and importance:
    raise types.InputError(
      "config.plan: importance and trust_sampler weigh the sampler's error twice. Set "
      'one of them.'
    )


def check_comparable(option: str, batch: Batch) -> None:
  """Refuses log-probs of another distribution than the trainer's, or none."""
  if batch.behavior_logp is None:
    why = 'takes a source that samples'
  elif apart(batch):
    why = 'compares log-probs of one distribution; with top_k, top_p or min_p, no pairs'
    why += ' (config.source.pair), no mixture, and no method that fits log(pi / ref)'
  else:
    return
  raise types.InputError(f'config.plan.{option} {why}.')


def apart(batch: Batch) -> bool:
  """Whether the sampler's distribution was cut and the trainer's is not."""
  return batch.kept_mass is not None and batch.keep_within is None


def trusting(batch: Batch) -> Batch:
  """The batch with the sampler's log-probs as the old ones."""
  check_comparable('trust_sampler', batch)
  return batch.replace(old_logp=batch.behavior_logp)


def agreement(batch: Batch, logp) -> Metrics:
  """ops.importance.agreement with the parameters that sampled, where both speak."""
  if batch.behavior_logp is None or logp is None:
    return {}
  said, mask = batch.behavior_logp, batch.mask
  if 'replayed' in batch.extra:  # Sampled by other parameters.
    mask = mask * (1.0 - batch.extra['replayed'][:, None, None])
  if apart(batch):
    said += jnp.log(jnp.where(mask > 0, batch.kept_mass, 1.0))
  return importance_lib.agreement(jax.lax.stop_gradient(logp), said, mask)


def finished(metrics: Metrics, known: str) -> dict:
  """Metrics [epochs, minibatches] as numbers. Where the sampler is compared with each
  update's own log-prob, its agreement is that of the first update alone.
  """
  cut = lambda x: jax.tree.map(lambda y: y[:1, :1], x)
  first = importance_lib.AGREEMENT if known == 'logp' else ()
  metrics = {k: cut(x) if k in first else x for k, x in metrics.items()}
  return metrics_lib.finish(metrics_lib.reduce(metrics_lib.reduce(metrics)))


def couple(forward: Forward, method: Method, state: State, batch: Batch, n: int):
  """Adds the method's statistics over the whole minibatch, without gradient."""
  if method.measure is None:
    return batch
  return method.measure(read(forward, state, batch, method.measure_needs, n), batch)


def sense(forward: Forward, params, frozen, batch: Batch, needs) -> Outputs:
  """What the networks say, with 0 in every masked slot."""
  return blank(forward(params, frozen, batch, needs), batch, SENSED)


def read(forward: Forward, state: State, batch: Batch, needs, n: int) -> Outputs:
  """What the networks say, without gradient, in n pieces or those of the layout."""
  rows = [name for name in needs if not name.startswith('aux/') and name != 'own']
  aux = [name.removeprefix('aux/') for name in needs if name.startswith('aux/')]
  say = functools.partial(sense, forward, state.params, state.frozen, needs=rows)
  out = pieces.mapped(say, batch.replace(aux=None), n) if rows else Outputs()
  if 'own' in needs:  # It has no rows to be mapped.
    out = out.replace(own=state.params['own'])
  if aux:  # Rows that a method made are not packed.
    out = out.replace(aux=read(forward, state, batch.aux, aux, n))
  return jax.lax.stop_gradient(out)


def observe(forward: Forward, state: State, batch: Batch, names, n: int = 1) -> Batch:
  """Fills in, without gradient, the once-per-batch fields that are named and empty."""
  missing = [name for name in sorted(names) if getattr(batch, name) is None]
  if not missing:
    return batch
  out = read(forward, state, batch, sorted({OBSERVED[name] for name in missing}), n)
  return batch.replace(**{name: getattr(out, OBSERVED[name]) for name in missing})


def prepare(method: Method, state: State, batch: Batch) -> tuple[State, Batch]:
  """The method's view of the whole batch, its shapes checked.

  It sees neither layout nor room, which would be wrong for rows it makes of others.
  """
  state, found = method.prepare(state, batch.replace(layout=None, room=None))
  types.check(found)
  return state, found.replace(layout=batch.layout, room=batch.room)


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


def norms(grads) -> Metrics:
  """The length of each role's gradient."""
  one = jnp.float32(1)
  return {f'grad_norm/{r}': (optax.tree.norm(g), one) for r, g in grads.items()}


def guarded(tx, state: State, grads) -> State:
  """One optimizer update; a non-finite gradient changes nothing and is counted."""

  def apply(state):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, applied=state.applied + 1)

  finite = jnp.isfinite(optax.tree.norm(grads))
  skip = lambda state: state.replace(skipped=state.skipped + 1)
  return jax.lax.cond(finite, apply, skip, state)


def check_plan(batch: Batch, minibatches: int, microbatches: int) -> None:
  """types.check; refuses a plan that does not divide the prompts, or fit the layout."""
  types.check(batch)
  b = batch.prompts.shape[0]
  if batch.layout is not None and minibatches > 1:
    raise types.InputError(
      f'A packed batch cannot be updated in {minibatches} minibatches: packing takes '
      'one.'
    )
  if b % (minibatches * microbatches):
    raise types.InputError(
      f'{b} prompts do not divide into {minibatches} minibatches of {microbatches} '
      'microbatches. Change config.plan or the number of prompts.'
    )
