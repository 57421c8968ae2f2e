"""What a reward model holds of prompts and of people: gates, users, prompt pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from test_reward_models import said

from jaxrl_llm import build, log, train
from jaxrl_llm.data import examples, kinds
from jaxrl_llm.data.chat import coder as make_coder
from jaxrl_llm.data.letters import letters
from jaxrl_llm.evaluate import verbosity
from jaxrl_llm.models import pretrained
from jaxrl_llm.ops import latents, mlp, ratings
from jaxrl_llm.rewards.learned import learned
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks.records import Record, chat
from jaxrl_llm.types import InputError, Outputs

close = lambda got, want, atol=1e-6: np.testing.assert_allclose(got, want, 0, atol)
row = lambda *x: jnp.array([list(x)])


# ---- Armo ----------------------------------------------------------------------------


def even(m, width=3, **changes):
  """What the method's own arrays are at birth."""
  return m.own(jax.random.key(0), width) | changes


def rated(b):
  """Ratings of a and b that their scores of 0 meet."""
  names = ('rating/a', 'rating/b', 'rated/a', 'rated/b')
  return {n: jnp.full((b, 2), float(n[:5] == 'rated')) for n in names}


def test_the_score_by_hand():
  """A gate of (1/4, 3/4): its logits, over the temperature, are 0 and log 3.

  r = (2, 1) and (1, 0); a loses half of b: (1.5, 1) and (1, 0).
  s = 1.5 / 4 + 3 / 4 = 1.125 and 1 / 4; the squared errors are 4 + 1 + 1 + 0.
  """
  options = dict(attributes='a,b', verbosity='b', penalties='a=0.5', hidden=2)
  m = build.method('armo', **options)
  own = even(m)
  own['gate']['b_3'] = jnp.array([0.0, 10 * np.log(3)])
  out = Outputs(
    attributes=jnp.array([[[2.0, 1.0], [1.0, 0.0]]]), asked=jnp.ones((1, 2, 3)), own=own
  )
  close(m.serve(out), [[1.125, 0.25]])
  loss, found = said(m, out, reward=row(1, 0), extra=rated(1))
  nll = np.log1p(np.exp(-0.875))
  close(found['nll'][0], nll)
  close(loss, nll + 6 / 4, 1e-5)  # Of four ratings.
  close([found[f'gate/{n}'][0] for n in 'ab'], [0.25, 0.75])
  # Twice the scale, twice the score: the weights are none below 0 and sum to it.
  twice = out.replace(own=own | {'scale': jnp.float32(2.0)})
  close(m.serve(twice), [[2.25, 0.5]])


def test_an_even_gate_is_the_mean_of_the_attributes():
  m = build.method('armo', attributes='a,b', hidden=4)
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  scores = draw(5, 2, 2)
  out = Outputs(attributes=scores, asked=draw(5, 2, 3), own=even(m))
  close(m.serve(out), scores.sum(-1) / 2)


def test_the_gate_beats_any_fixed_weights():
  """Prompts of two kinds: of one a says who is better, of the other b; each is as often
  wrong about the other kind, so that no fixed weights are right more often than half.
  """
  m = build.method('armo', attributes='a,b', hidden=8, layers=1, temperature=1.0)
  kind = jnp.arange(16) % 2
  lead = jnp.where(
    jnp.arange(16) % 4 < 2, 1.0, 2.0
  )  # How far the loser's attribute is.
  first = jnp.stack(
    [jnp.where(kind == 0, 1.0, -lead), jnp.where(kind == 0, -lead, 1.0)], 1
  )
  scores = jnp.stack([first, jnp.zeros_like(first)], 1)
  asked = jnp.broadcast_to(jax.nn.one_hot(kind, 2)[:, None], (16, 2, 2))
  for share in np.linspace(0, 1, 11):
    margin = first @ jnp.array([share, 1 - share])
    assert ((1 + jnp.sign(margin)) / 2).sum() / 16 <= 0.5
  own, tx = even(m, 2), optax.adam(0.05)

  @jax.jit
  def step(own, moments):
    out = Outputs(attributes=scores, asked=asked, own=own)
    of = lambda own: said(
      m, out.replace(own=own), reward=jnp.tile(row(1.0, 0.0), (16, 1)), extra=rated(16)
    )
    slope, found = jax.grad(of, has_aux=True)(own)
    moves, moments = tx.update(slope, moments)
    return optax.apply_updates(own, moves), moments, found['accuracy']

  moments = tx.init(own)
  for _ in range(60):
    own, moments, right = step(own, moments)
  close(right[0] / right[1], 1.0)


def test_penalties_free_attributes_of_verbosity():
  """.4 of verbosity in the first and none in the second: .4 and 0 come off."""
  rng = np.random.default_rng(0)
  long, clean = rng.normal(size=4000), rng.normal(size=(4000, 2))
  for column in (0, 1):  # Exactly uncorrelated, so that the grid's own step is found.
    slope = np.polyfit(long, clean[:, column], 1)
    clean[:, column] -= np.polyval(slope, long)
  scores = np.stack([clean[:, 0] + 0.4 * long, clean[:, 1], long], 1)
  found = verbosity.penalties(scores, 2)
  assert found[1] == found[2] == 0 and abs(found[0] - 0.4) <= 0.05
  for a in (0, 1):
    assert abs(verbosity.spearman(scores[:, a] - found[a] * long, long)) <= 0.03
  with pytest.raises(InputError, match='frees attribute 0'):
    verbosity.penalties(np.stack([-long, long], 1), 1)


def test_ranks_by_hand():
  close(verbosity.ranks(np.array([3.0, 1.0, 3.0, 2.0])), [2.5, 0, 2.5, 1])
  # d^2 = 0, 1, 1: 1 - 6 * 2 / (3 * 8) = 1/2.
  close(verbosity.spearman(np.array([1.0, 2, 3]), np.array([1.0, 30, 20])), 0.5)
  close(verbosity.spearman(np.ones(3), np.array([1.0, 2, 3])), 0.0)


@pytest.mark.parametrize('options', [{'verbosity': 'c'}, {'penalties': 'a=0.1'}])
def test_a_verbosity_that_is_not_there(options):
  with pytest.raises(InputError, match='leave both'):
    build.method('armo', attributes='a,b', **options)
  with pytest.raises(InputError, match='give some of'):
    ratings.weights(['a', 'b'], 'c=1', 'armo: penalties')


# ---- Users ---------------------------------------------------------------------------


def test_the_kl_by_hand():
  """mu (.5, -1), log sigma^2 (.2, -.3): the card's number; 0 at N(0, 1)."""
  close(latents.kl_normal(row(0.5, -1.0), row(0.2, -0.3)), [0.65611049])
  close(latents.kl_normal(row(0.0, 0.0), row(0.0, 0.0)), [0.0])
  close(latents.scaled(row(3.0, 4.0)), row(0.6, 0.8) * np.sqrt(2))


def bent(width=4, hidden=6, latent=3):
  """Networks none of whose matrices is zero."""
  own = latents.init(jax.random.key(0), width, hidden, latent)
  return own | {'infer': mlp.init(jax.random.key(1), (hidden, 2 * latent))}


def test_a_users_pairs_have_no_order():
  own, rng = bent(), np.random.default_rng(0)
  pairs = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
  mu, log_var = latents.posterior(own, pairs)
  turned = latents.posterior(own, pairs[:, ::-1])
  close(turned[0], mu, 1e-5)
  close(turned[1], log_var, 1e-5)
  assert abs(log_var).max() <= 1
  # Of nobody known it is N(0, 1), as it is of anybody at birth.
  born = latents.init(jax.random.key(0), 4, 6, 3)
  for tree, seen in ((own, pairs[:, :0]), (born, pairs)):
    for x in latents.posterior(tree, seen):
      close(x, jnp.zeros((2, 3)))


def test_what_is_measured_has_no_noise():
  """nll, margin and accuracy are of z = mu; without context and weight that is
  Bradley-Terry of s([e; 0]).
  """
  m = build.method('vpl', latent=3, hidden=6, kl_coef=0.0)
  own, rng = bent(), np.random.default_rng(0)
  out = Outputs(embedding=jnp.asarray(rng.normal(size=(2, 2, 4)), jnp.float32), own=own)
  at = lambda noise: said(m, out, reward=jnp.ones((2, 2)), extra={'noise': noise})
  loss, found = at(jnp.ones((2, 3)))
  other, again = at(-jnp.ones((2, 3)))
  assert abs(loss - other) > 1e-3
  score = latents.scored(own, out.embedding, jnp.zeros((2, 3)))
  nll = np.log1p(np.exp(score[:, 1] - score[:, 0]))
  for metrics in (found, again):
    close(metrics['nll'][0] / metrics['nll'][1], nll.sum() / 2)


def test_two_populations_that_disagree():
  """Each pair's order is turned for half of the users. One order for all is right half
  of the time; whoever has four pairs known is told apart, those never seen too.
  """
  m = build.method('vpl', latent=4, hidden=32, kl_coef=0.01)

  def drawn(key, users=128, pairs=5):
    one, two = jax.random.split(key)
    topic = jax.random.normal(one, (users, pairs, 1, 3)) * jnp.array(
      [[[[1.0], [-1.0]]]]
    )
    likes = jnp.sign(jnp.arange(users) % 2 - 0.5)[:, None, None]
    sign = jnp.sign(topic[:, :, 0, 0]) * likes[..., 0]  # Who is the better one here.
    best = jnp.where(sign[..., None, None] > 0, topic, topic[:, :, ::-1])
    return best.reshape(users, 2 * pairs, 3), jax.random.normal(two, (users, 4))

  def loss(own, embedding, noise):
    out, g = Outputs(embedding=embedding, own=own), embedding.shape[1]
    return said(m, out, reward=jnp.ones((len(noise), g)), extra={'noise': noise})

  own, tx = m.own(jax.random.key(0), 3), optax.adam(3e-3)

  @jax.jit
  def step(carry, key):
    own, moments = carry
    slope, found = jax.grad(loss, has_aux=True)(own, *drawn(key))
    moves, moments = tx.update(slope, moments)
    return (optax.apply_updates(own, moves), moments), found['accuracy'][0]

  keys = jax.random.split(jax.random.key(1), 300)
  (own, _), _ = jax.lax.scan(step, (own, tx.init(own)), keys)
  embedding, noise = drawn(jax.random.key(2), 512)
  share = lambda x: (lambda f: f['accuracy'][0] / f['accuracy'][1])(
    loss(own, x, noise)[1]
  )
  assert share(embedding) > 0.95
  assert 0.4 < share(embedding[:, :2]) < 0.6  # Of whom nothing is known.
  # A context turned round is another user's: the order is turned.
  pairs = embedding[:, 2:].reshape(512, 4, 2, 3)[:, :, ::-1].reshape(512, 8, 3)
  assert share(jnp.concatenate([embedding[:, :2], pairs], 1)) < 0.05


# ---- Rows with prompts of their own --------------------------------------------------


@functools.cache
def coder():
  tokenizer = pretrained.load('tiny').tokenizer
  return make_coder(tokenizer, pretrained.stop_ids(tokenizer))


def test_each_row_has_its_prompt():
  encode = examples.Encoder(coder(), max_prompt=4, max_length=4, long_prompt='drop')
  pair = lambda p: {'prompt': p, 'chosen': 'x', 'rejected': 'y'}
  user = kinds.user_pairs(pair('abc') | {'context': [pair('de')]})
  long = kinds.user_pairs(pair('abc') | {'context': [pair('defgh')]})
  batch, dropped, _ = encode([user, long])
  assert dropped == 1 and batch.valid.tolist() == [[1] * 4, [0] * 4]
  assert batch.row_prompt_length.tolist() == [[3, 3, 2, 2], [1] * 4]
  told = [coder().decode(p[:n]) for p, n in zip(batch.row_prompt[0], [3, 3, 2, 2])]
  assert told == ['abc', 'abc', 'de', 'de']
  assert batch.reward[0].tolist() == [1, 0, 1, 0]
  # Beside such a group one with a single prompt repeats it.
  plain = examples.Example('ab', ('x', 'y', 'x', 'y'), (1.0, 0.0, 1.0, 0.0))
  both = encode([user, plain]).batch
  assert both.row_prompt_length.tolist() == [[3, 3, 2, 2], [2, 2, 2, 2]]


def test_a_completion_after_two_prompts():
  two = kinds.prompt_pairs({'prompts': ['ab', 'cd'], 'completion': 'x'})
  batch = examples.Encoder(coder(), max_prompt=4, max_length=4)([two]).batch
  assert (batch.completions[0, 0] == batch.completions[0, 1]).all()
  assert [coder().decode(p[:2]) for p in batch.row_prompt[0]] == ['ab', 'cd']
  for prompts in (['ab'], ['ab', 'ab']):
    with pytest.raises(InputError, match='not the same'):
      kinds.prompt_pairs({'prompts': prompts, 'completion': 'x'})
  with pytest.raises(InputError, match="'context' is a list"):
    kinds.user_pairs({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'context': [1]})


def test_a_users_score_is_the_runs(tmp_path):
  """learned(user=...) of held-out users' known pairs: the run's held-out margin."""
  c = runs.config('vpl', steps=2, evaluation=dict(every=2))
  c.method.kl_coef = 0.01
  folder = tmp_path / 'run'
  train.main(c, str(folder))
  found = []
  for i, e in enumerate(letters(kind='user_pairs', size=20, test_size=8).test):
    sides = e.prompts[2:4], e.completions[2:4]
    log.write_lines(
      path := tmp_path / f'{i}.jsonl',
      [{'prompt': sides[0][0], 'chosen': sides[1][0], 'rejected': sides[1][1]}],
    )
    score = learned(run=str(folder), user=str(path)).score
    words = e.prompt[-1]['content']
    sample = lambda text, words=words: Sample(
      words, text, len(text), False, Record(0, chat(words), '', {})
    )
    one, other = score([sample(x) for x in e.completions[:2]])
    found.append(one - other)
  told = [r for r in log.read_lines(folder / 'metrics.jsonl') if r['split'] == 'eval']
  close(np.array(found).sum() / 8, told[-1]['eval/margin'], 1e-4)
