"""From what a method needs to what the networks say: the sensors, and the layout.

A need names a sensor; a sensor is a tree of the state, a role in it and what to read
there. The layout (a group's prompt once, completions after it) is this file's own
affair: everything it returns is [B, G, T] or [B, G].
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from jaxrl_llm import pieces
from jaxrl_llm.models import ragged
from jaxrl_llm.models.decoder import (
  Decoder,
  as_operands,
  causal,
  extend,
  head_kernel,
  prefill,
)
from jaxrl_llm.ops import logprobs
from jaxrl_llm.types import (
  BGT,
  Array,
  Batch,
  InputError,
  Layout,
  Method,
  Outputs,
  Params,
)

Forward = Callable[[Params, Params, Batch, Iterable[str]], Outputs]


class Sensor(NamedTuple):
  """Where a number comes from: `tree` is 'params' (trained) or 'frozen'."""

  tree: str
  role: str
  read: str
  against: str = ''  # A trained role that is read beside it.


SENSORS = {
  'logp': Sensor('params', 'policy', 'logp'),
  'mixed_logp': Sensor('params', 'policy', 'mixed_logp'),  # By extra['mixed'].
  'entropy': Sensor('params', 'policy', 'entropy'),
  'collision': Sensor('params', 'policy', 'collision'),
  # logprobs.token_odds, of extra['verdict_first'] and extra['verdict_second'].
  'odds': Sensor('params', 'policy', 'odds'),
  'value': Sensor('params', 'critic', 'value'),
  'cost_value': Sensor('params', 'cost_critic', 'value'),
  'twin_value': Sensor('params', 'twin_critic', 'value'),
  'score': Sensor('params', 'reward', 'score'),
  'token_score': Sensor('params', 'reward', 'token_score'),
  'attributes': Sensor('params', 'reward', 'attributes'),
  'asked': Sensor('params', 'reward', 'asked'),
  'embedding': Sensor('params', 'reward', 'embedding'),
  'members': Sensor('params', 'ensemble', 'score'),
  'own': Sensor('params', 'own', 'own'),
  'ref_logp': Sensor('frozen', 'ref', 'logp'),
  'dpo_logp': Sensor('frozen', 'dpo', 'logp'),
  'prm_logp': Sensor('params', 'prm', 'logp'),
  'ema_logp': Sensor('frozen', 'ema', 'logp'),
  'teacher_logp': Sensor('frozen', 'teacher', 'logp'),
  # divergences.jsd, of the batch's extra['jsd_beta'].
  'divergence': Sensor('frozen', 'teacher', 'divergence', against='policy'),
  'ref_divergence': Sensor('frozen', 'ref', 'divergence', against='policy'),
}

# Fields of Batch read once per batch, without gradient, and the sensor that fills each.
OBSERVED = {
  'old_logp': 'logp',
  'old_value': 'value',
  'old_cost_value': 'cost_value',
  'old_twin_value': 'twin_value',
  'old_entropy': 'entropy',
  'old_odds': 'odds',
  'ref_logp': 'ref_logp',
  'dpo_logp': 'dpo_logp',
  'teacher_logp': 'teacher_logp',
  'old_prm_logp': 'prm_logp',
  'ema_logp': 'ema_logp',
}


def make_forward(decoders: dict[str, Decoder], soft=None) -> Forward:
  """Returns `forward(params, frozen, batch, needs) -> Outputs`.

  Args:
    decoders: one per role; a trained role's decoder reads the role's tree of
      parameters, laid over `frozen['base']` where there is one (LoRA).
    soft: see Method.soft; None where nothing stands before the prompts.
  """

  any_decoder = next(iter(decoders.values()))  # The base is everybody's.

  def settled(frozen: Params) -> Params:
    of = lambda role: decoders.get(role, any_decoder)
    return {role: as_operands(of(role), tree) for role, tree in frozen.items()}

  def forward(params: Params, frozen: Params, batch: Batch, needs) -> Outputs:
    trees = {'params': params, 'frozen': settled(frozen)}
    found: dict[str, object] = {}
    own = {n: sensor(n) for n in needs if not n.startswith('aux/')}
    if own.pop('own', None):
      found['own'] = params['own']
    if own.pop('members', None):
      found['members'] = members(decoders['ensemble'], trees, batch)
    if own.pop('mixed_logp', None):
      tree = whole(trees, 'params', 'policy')
      found['mixed_logp'] = mixed(decoders['policy'], tree, batch)
    first = soft(params['own'], batch) if soft else None
    pairs = {('params', s.against): None for s in own.values() if s.against}
    seen = {
      (tree, role): look(
        decoders[role],
        whole(trees, tree, role),
        batch,
        soft=first if tree == 'params' else None,
      )
      for tree, role in pairs | dict.fromkeys((s.tree, s.role) for s in own.values())
    }
    for source, view in seen.items():
      mine = {n: s for n, s in own.items() if (s.tree, s.role) == source}
      found |= read(view, {n: s.read for n, s in mine.items() if not s.against}, batch)
      for name in (n for n, s in mine.items() if s.against):
        found[name] = apart(seen['params', own[name].against], view, batch)
    if aux := tuple(n.removeprefix('aux/') for n in needs if n.startswith('aux/')):
      found['aux'] = forward(params, frozen, batch.aux, aux)
    return Outputs(**found)

  return forward


def lay(own: Params, base: Params) -> Params:
  """One tree over another: where both have a leaf, `own` counts."""
  flat = flax.traverse_util.flatten_dict
  return flax.traverse_util.unflatten_dict(flat(base) | flat(own))


def whole(trees: dict[str, Params], tree: str, role: str) -> Params:
  """All of a role's parameters: a tree without an embedding is laid over the base."""
  own, base = trees[tree].get(role, {}), trees['frozen'].get('base', {})
  return own if 'embed' in own else lay(own, base)


def policy(state) -> Params:
  """The whole tree of a state's policy, to sample from."""
  return lay(state.params['policy'], state.frozen.get('base', {}))


def sensor(need: str) -> Sensor:
  """The sensor behind a need; an unknown one is an InputError."""
  if need not in SENSORS:
    raise InputError(f'Unknown need {need!r}; there are {sorted(SENSORS)}.')
  return SENSORS[need]


def all_needs(method: Method) -> tuple[str, ...]:
  """What a method needs in any of its parts."""
  own = ('own',) if method.soft else ()
  return (*method.needs, *method.prepare_needs, *method.measure_needs, *own)


def roles(needs: Iterable[str]) -> dict[str, set[str]]:
  """The roles a method's needs touch: {'params': {...}, 'frozen': {...}}."""
  found: dict[str, set[str]] = {'params': set(), 'frozen': set()}
  for need in needs:
    name = need.removeprefix('aux/')
    s = sensor(OBSERVED.get(name, name))
    found[s.tree].add(s.role)
    found['params'] |= {s.against} - {''}
  return found


def networks(method: Method) -> dict[str, set[str]]:
  """The roles of all that a method needs, as `roles` has them."""
  return roles(all_needs(method))


def members(decoder: Decoder, trees: dict[str, Params], batch: Batch) -> Array:
  """What each model of an ensemble says of a completion: [B, G, K]."""

  def score(tree):
    tree = whole(trees | {'params': {'ensemble': tree}}, 'params', 'ensemble')
    return read(look(decoder, tree, batch), {'score': 'score'}, batch)['score']

  return jax.vmap(score, out_axes=-1)(trees['params']['ensemble'])


class Seen(NamedTuple):
  """What one network has made of a batch; see `padded`."""

  params: Params
  before: Array
  at: Array
  tokens: Array
  temperature: Array
  within: Array | None  # See token_stats.
  back: Callable
  cap: float


def mixed(decoder: Decoder, params, batch: Batch) -> BGT:
  """The log-prob of each token after embeddings of which a share, extra['mixed'], is
  that of the likeliest token. They carry no gradient to the embedding.
  """
  fixed = jax.lax.stop_gradient(params)
  seen = look(decoder, fixed, batch)
  best = logprobs.likeliest(seen.before, head_kernel(fixed), cap=seen.cap)
  best = seen.back(best).astype(jnp.int32)
  share, table = batch.extra['mixed'][0], fixed['embed']
  given = (1 - share) * table[batch.completions] + share * table[best]
  seen = look(decoder, params, batch, given=given)
  return read(seen, {'mixed_logp': 'logp'}, batch)['mixed_logp']


def look(decoder: Decoder, params, batch: Batch, *, soft=None, given=None) -> Seen:
  """Runs one network over a batch.

  Args:
    soft: [B, S, D], read before each prompt. Rows must be padded.
    given: [B, G, T, D], read in the place of the completions' embeddings.
  """
  if soft is not None:
    found = padded(decoder, params, batch, given, behind(soft, params, batch, decoder))
  else:
    run = unpadded if batch.room else packed if batch.layout else padded
    found = run(decoder, params, batch, given)
  before, at, tokens, there, back = found
  wide = jnp.broadcast_to(batch.temperature[..., None], batch.completions.shape)
  within = None if batch.keep_within is None else there(batch.keep_within)
  return Seen(
    params, before, at, tokens, there(wide), within, back, decoder.config.logit_cap
  )


def read(seen: Seen, names: dict[str, str], batch: Batch) -> dict:
  """What one network says. `names` maps field to 'logp', 'value', ..."""
  reads, out = set(names.values()), {}
  if reads & {'logp', 'entropy'}:
    kernel = head_kernel(seen.params)
    how: dict = dict(cap=seen.cap, within=seen.within)
    if batch.layout is not None:  # The smaller a chunk, the fewer of it are not wanted.
      how |= dict(live=seen.tokens >= 0, chunk=logprobs.CHUNK // 2)
    stats = logprobs.token_stats(
      seen.before, kernel, seen.tokens, seen.temperature, **how
    )
    out['logp'], out['entropy'] = map(seen.back, stats)
  if 'collision' in reads:
    kernel, warmth = head_kernel(seen.params), seen.temperature
    found = logprobs.token_collision(seen.before, kernel, warmth, cap=seen.cap)
    out['collision'] = seen.back(found)
  if 'odds' in reads:
    pair = jnp.stack([batch.extra[f'verdict_{x}'][0] for x in ('first', 'second')])
    kernel = head_kernel(seen.params)
    found = logprobs.token_odds(seen.before, kernel, pair, cap=seen.cap)
    out['odds'] = seen.back(found)
  if reads & {'asked', 'embedding'}:
    out |= read_states(*(seen.back(x) for x in (seen.before, seen.at)), batch.length)
  if 'scores' in seen.params:
    score = lambda x: seen.back(linear(seen.params['scores'], x))
    out |= read_scores(score(seen.before), score(seen.at), batch.length)
  return {field: out[name] for field, name in names.items()}


def apart(mine: Seen, other: Seen, batch: Batch) -> BGT:
  """How far two networks' distributions are apart, at extra['jsd_beta']."""
  sides = ((x.before, head_kernel(x.params)) for x in (mine, other))
  beta, caps = batch.extra['jsd_beta'][0], (mine.cap, other.cap)
  return mine.back(
    logprobs.token_divergence(tuple(sides), mine.temperature, beta, caps=caps)
  )


def linear(kernel, x):
  """A head [D, A] in float32: [..., D] to [..., A]."""
  kernel = kernel.astype(jnp.float32)
  return jnp.einsum('bgtd,da->bgta', x.astype(jnp.float32), kernel)


def read_states(before, at, length) -> dict:
  """Hidden states [B, G, T, D] where prompt and completion end, in float32."""
  last = jnp.maximum(length - 1, 0)[..., None, None]
  ends = {'asked': before, 'embedding': jnp.take_along_axis(at, last, 2)}
  return {name: x[:, :, 0].astype(jnp.float32) for name, x in ends.items()}


def read_scores(value, score, length) -> dict:
  """What a head says, [B, G, T, A]: before each token, at it, and at the last."""
  last = jnp.maximum(length - 1, 0)[..., None, None]
  attributes = jnp.take_along_axis(score, last, 2)[:, :, 0]
  return {
    'value': value[..., 0],
    'token_score': score[..., 0],
    'attributes': attributes,
    'score': attributes[..., 0],
  }


# ---- Layouts -------------------------------------------------------------------------


def padded(decoder: Decoder, params, batch: Batch, given=None, asked=None):
  """Each group's prompt once, then its completions, all of one width.

  Args:
    given: see `look`; asked: prompts [N, P, D] and their lengths in the batch's place.

  Returns:
    Hidden states before and at each completion token [B, G, T, D], the tokens, a
    function from [B, G, T] to the same slots (1 in those without a token), and one from
    what is read there to [B, G, T, ...].
  """
  b, g, t = batch.completions.shape
  prompts, length, completions = groups(batch)
  prompts, length = asked or (prompts, length)
  last, prefix = prefill(decoder, params, prompts, length)
  told = completions if given is None else given.reshape(*completions.shape, -1)
  at = extend(decoder, params, length, told, prefix)
  last = jnp.broadcast_to(last, (*at.shape[:2], 1, at.shape[-1]))
  before = jnp.concatenate([last, at[:, :, :-1]], 2)
  shaped = lambda x: x.reshape(b, g, t, -1)
  same = lambda x: x
  return shaped(before), shaped(at), batch.completions, same, same


def behind(soft: Array, params, batch: Batch, decoder: Decoder):
  """Prompts as embeddings [N, S + P, D] behind soft ones [B, S, D], and lengths [N]."""
  prompts, length, completions = groups(batch)
  size, most = soft.shape[1], decoder.config.max_positions
  if batch.room or batch.layout:
    raise InputError(
      'Soft tokens stand before padded prompts: set config.plan.pack=0 and '
      'padding_free=False.'
    )
  if (need := size + prompts.shape[1] + completions.shape[2]) > most:
    raise InputError(
      f'{size} soft tokens, prompt and completion take {need} positions and the model '
      f'has {most}. Lower config.source.max_prompt or max_length.'
    )
  soft = jnp.repeat(soft, len(prompts) // len(soft), 0)
  return jnp.concatenate([soft, params['embed'][prompts]], 1), length + size


def unpadded(decoder: Decoder, params, batch: Batch, given=None):
  """As `padded`, but only attention sees the padding (models/ragged.py).

  Returns arrays of [R, 1, S] slots of completions in place of [B, G, T].
  """
  rows, position, tokens = ragged.lay(*groups(batch), batch.length, batch.room)
  told = tokens
  if given is not None:
    prompts, _, completions = groups(batch)
    given = given.reshape(*completions.shape, -1)
    told = ragged.tokens_of(params['embed'][prompts][:, None], given, rows)
  hidden, _ = decoder.apply({'params': params}, told, position, None, rows=rows)
  first = rows.prompts.used.shape[1]
  at = hidden[:, :, first:]
  before = jnp.take_along_axis(hidden, ragged.before(rows)[:, None, :, None], 2)
  fold, shape = rows.completions, batch.completions.shape

  def there(x):
    found = ragged.folded(x.reshape(len(at), -1), fold)
    return jnp.where(fold.used, found, 1.0)[:, None]

  back = lambda x: ragged.unfolded(x[:, 0], fold).reshape(*shape, *x.shape[3:])
  return before, at, tokens[:, :, first:], there, back


def packed(decoder: Decoder, params, batch: Batch, given=None):
  """Whole groups behind each other in rows, as the host has planned; see `padded`.

  Of a batch of one piece (pieces.piece). Returns arrays of [R, 1, S] in place of
  [B, G, T], a row's completions first, then token -1; what is read leads back to 0 in
  groups of other pieces.
  """
  plan = batch.layout
  plan = plan.replace(**{k: jnp.squeeze(vars(plan)[k], 0) for k in pieces.ROWS})
  prompts, _, completions = groups(batch)
  flat = jnp.concatenate([prompts.ravel(), completions.ravel()])
  told = flat[plan.source][:, None]
  if given is not None:
    wide = [x.reshape(-1, x.shape[-1]) for x in (params['embed'][prompts], given)]
    told = jnp.concatenate(wide)[plan.source][:, None]
  x, _ = decoder.apply({'params': params}, told, plan.position[:, None], visible(plan))
  slots, said = jnp.maximum(plan.said, 0), plan.said >= 0
  pick = lambda slots: jnp.take_along_axis(x, slots[:, None, :, None], 2)
  before, at = pick(plan.before), pick(slots)
  source = jnp.take_along_axis(plan.source, slots, 1)
  tokens = jnp.where(said, flat[source], -1)[:, None]
  there = lambda x: jnp.where(said, x.ravel()[source - prompts.size], 1.0)[:, None]
  blank = lambda x: jnp.where(pieces.along(plan.piece == 0, x), x, 0.0)
  back = lambda x: blank(x.reshape(-1, *x.shape[3:])[plan.back])
  return before, at, tokens, there, back


def groups(batch: Batch):
  """Prompts [N, P], their lengths [N], completions [N, K, T]: N = B, or B * G where
  rows have prompts of their own.
  """
  if batch.row_prompt is None:
    return batch.prompts, batch.prompt_length, batch.completions
  b, g, t = batch.completions.shape
  prompts = batch.row_prompt.reshape(b * g, -1)
  return prompts, batch.row_prompt_length.ravel(), batch.completions.reshape(-1, 1, t)


def visible(plan: Layout):
  """Which slots of its row a slot sees: its own prompt and completion, up to itself."""
  pair = lambda x: (x[:, None, :, None], x[:, None, None, :])
  (mine, other), (branch, there) = pair(plan.group), pair(plan.branch)
  return (mine == other) & ((there == 0) | (there == branch)) & causal(mine.shape[2])
