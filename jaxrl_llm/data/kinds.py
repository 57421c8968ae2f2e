"""Rows of data sets as examples: one function per kind of record.

Each takes TRL's formats, standard (strings) and conversational (lists of messages), and
says what it needs. A kind is a name in a config: config.data.kind='pairs'.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxrl_llm.data.chat import Messages, Prompt, Steps
from jaxrl_llm.data.examples import Example
from jaxrl_llm.data.fields import (
  Row,
  asked_in,
  completion,
  conversation,
  kind_of,
  listed,
  messages,
  named,
  number,
  prompt,
  said,
  text,
  truth,
)
from jaxrl_llm.models import encoding
from jaxrl_llm.types import InputError

VERDICTS = ('Yes', 'No')  # Of principles, in this order.


def demonstrations(row: Row) -> Example:
  """{prompt, completion}; {messages}, whose assistant turns are learned; {text}."""
  forms = ('messages', 'text', 'completion', 'response')
  forms = [k for k in forms if row.get(k) is not None]
  if len(forms) > 1:
    raise InputError(
      f'{forms} are each a demonstration of their own; keep one of them.'
    )
  if forms == ['messages']:
    return talked(row)
  if forms == ['text']:
    if row.get('prompt') is not None:
      raise InputError("'text' has no 'prompt' beside it; keep one of them.")
    return Example('', (said(row, 'text'),), (1.0,))
  return Example(prompt(row), (completion(row),), (1.0,))


def talked(row: Row) -> Example:
  """A conversation's assistant turns after its first message. What follows the last of
  them is not learned; a 'prompt' beside it may repeat what it begins with.
  """
  whole = messages(row, 'messages')
  turns = [i for i, m in enumerate(whole) if i and m['role'] == 'assistant']
  if not turns:
    raise InputError(
      "'messages' needs a message and then an assistant's; its roles are "
      f'{[m["role"] for m in whole]}.'
    )
  asked = whole[: turns[0]]
  if row.get('prompt') is not None and not within(prompt(row), asked):
    raise InputError("'prompt' is not what 'messages' begins with; leave it out.")
  return Example(asked, (whole[turns[0] : turns[-1] + 1],), (1.0,))


def pairs(row: Row) -> Example:
  """{prompt, chosen, rejected}; {chosen, rejected} that begin with one prompt, even
  where a 'prompt' beside them repeats it. `margin` is kept; with `tie` true neither is
  the better one.
  """
  if row.get('weight') is not None and number(row, 'weight') != 1:
    raise InputError(
      f"'weight' is {row['weight']}, and all pairs weigh the same here. Leave it out, "
      'or weigh data sets against each other in a mixture.'
    )
  chosen, rejected = said(row, 'chosen'), said(row, 'rejected')
  if isinstance(chosen, list) != isinstance(rejected, list):
    raise InputError("'chosen' and 'rejected' are a string and a list of messages.")
  if stripped(chosen) == stripped(rejected):
    raise InputError("'chosen' and 'rejected' are the same.")
  asked, chosen, rejected = answered(row, chosen, rejected)
  extra = {'margin': number(row, 'margin')} if row.get('margin') is not None else {}
  tied = row.get('tie') is not None and truth(row, 'tie')
  extra |= {'tie': float(tied)} if 'tie' in row else {}
  reward = (0.5, 0.5) if tied else (1.0, 0.0)
  return Example(asked, (chosen, rejected), reward, extra)


def answered(row: Row, chosen, rejected) -> tuple[Prompt, Any, Any]:
  """The prompt of a pair, and what follows it on either side."""
  given = None
  if row.get(asked_in(row)) is not None:
    given = prompt(row)
    given = conversation(given) if isinstance(chosen, list) else given
    if not (isinstance(chosen, list) and chosen[0]['role'] in ('system', 'user')):
      return given, chosen, rejected
  shared = common(chosen, rejected)
  if not (shared and len(shared) < min(len(chosen), len(rejected))):
    raise InputError(
      "'chosen' and 'rejected' begin with no common prompt, or one has nothing after "
      "it; give 'prompt'."
    )
  if given and not within(given, shared):
    raise InputError(
      "'prompt' is not what 'chosen' and 'rejected' begin with; leave it out, or give "
      'answers alone.'
    )
  return shared, chosen[len(shared) :], rejected[len(shared) :]


def within(given: Prompt, asked: Messages) -> bool:
  """Whether a prompt repeats one, or part of it; space around texts does not count."""
  there = stripped(asked)
  return all(m in there for m in stripped(conversation(given)))


def stripped(words: str | Messages) -> Any:
  """Without the space around texts, which a template may leave out."""
  if isinstance(words, str):
    return words.strip()
  return [m | {'content': str(m.get('content') or '').strip()} for m in words]


def user_pairs(row: Row) -> Example:
  """{prompt, chosen, rejected, context: pairs of the same user}, as many in each row.

  A group of the pair that is asked about and then the others, each with its own prompt.
  """
  others = listed(row, 'context')
  if not all(isinstance(x, dict) for x in others):
    raise InputError("'context' is a list of {prompt, chosen, rejected}.")
  both = [pairs(row), *(pairs(x) for x in others)]
  prompts = [e.prompt for e in both for _ in e.completions]
  rows = [c for e in both for c in e.completions]
  return Example(both[0].prompt, rows, (1.0, 0.0) * len(both), prompts=prompts)


def personal_pairs(row: Row) -> Example:
  """As `pairs`, with `user` or `user_id`, a number from 1; 0 is anybody."""
  user = number(row, named(row, 'user', 'user_id'))
  if user < 0 or user % 1:
    raise InputError(f"'user' is {user}; a whole number from 0 is due.")
  found = pairs(row)
  return found._replace(extra={**found.extra, 'user': user})


def contrastive_pairs(row: Row) -> Example:
  """As `pairs`, with `prompts`: one that asks for a better answer, one for a worse.

  The batch's aux is the two completions after the one and then after the other.
  """
  asked = [prompt({'prompt': p}) for p in listed(row, 'prompts')]
  if len(asked) != 2:
    raise InputError(f"'prompts' are two, the better one first, not {len(asked)}.")
  found = pairs(row)
  prompts = [p for p in asked for _ in found.completions]
  both, reward = 2 * [*found.completions], 2 * [*found.reward]
  return found._replace(aux=Example(asked[0], both, reward, prompts=prompts))


def prompt_pairs(row: Row) -> Example:
  """{prompts: the one that the completion fits better, and another; completion}."""
  found = [prompt({'prompt': p}) for p in listed(row, 'prompts')]
  if len(found) != 2 or found[0] == found[1]:
    raise InputError("'prompts' are two, the better one first, and not the same.")
  words = said(row, 'completion')
  return Example(found[0], (words, words), (1.0, 0.0), prompts=found)


def hh(row: Row) -> Example:
  """Anthropic's hh-rlhf: {chosen, rejected}, transcripts of Human and Assistant."""
  turns = {key: transcript(text(row, key)) for key in ('chosen', 'rejected')}
  return pairs(turns)


def costs(row: Row) -> Example:
  """Safe RLHF's {input, answer, other_answer, safer}: whether `answer` is safer.

  The costlier answer comes first, so that what bradley_terry learns is a cost. The
  labels of each answer alone (is_safe, is_other_safe) are not read: its 0 is free.
  """
  asked, both = said(row, 'input'), [said(row, 'other_answer'), said(row, 'answer')]
  if stripped(both[0]) == stripped(both[1]):
    raise InputError("'answer' and 'other_answer' are the same.")
  return Example(asked, both if truth(row, 'safer') else both[::-1], (1.0, 0.0))


def labels(row: Row) -> Example:
  """{prompt, completion, label}: label is true (desirable) or false. For KTO."""
  reward = 1.0 if truth(row, 'label') else -1.0
  return Example(prompt(row), (completion(row),), (reward,))


def rankings(row: Row) -> Example:
  """{prompt, completions, ranks}, or completions of {rank, completion}; 0 is best.

  The completions come best first, and their rewards are ranks below 0. With `scores` in
  the place of ranks the scores are the rewards, by whose gaps pro, infonca, nca and exo
  learn.
  """
  found = listed(row, 'completions')
  if all(isinstance(c, dict) and 'rank' in c for c in found):
    by, given = 'ranks', [c['rank'] for c in found]
    found = [c.get('completion') for c in found]
  else:
    by = named(row, 'ranks', 'scores')
    given = listed(row, by)
  if len(given) != len(found) or len(found) < 2:
    raise InputError(
      f'{len(found)} completions and {len(given)} {by}; as many are due, at least two.'
    )
  said_of = [said({'completions': c}, 'completions') for c in found]
  sign = 1.0 if by == 'scores' else -1.0
  rewards = [sign * number({by: x}, by) for x in given]
  best = sorted(range(len(rewards)), key=lambda i: -rewards[i])
  return Example(prompt(row), [said_of[i] for i in best], [rewards[i] for i in best])


def ratings(row: Row) -> Example:
  """{prompt, completion, ratings: {attribute: number, or null: not annotated}}."""
  found = row.get('ratings')
  if not isinstance(found, dict) or not found:
    raise InputError(f"'ratings' is {found!r}; an object of numbers is due.")
  return Example(prompt(row), (completion(row),), (0.0,), told(found))


def rated_pairs(row: Row) -> Example:
  """{prompt, completions, ratings}: of two completions, the better one first, each with
  ratings of the same attributes.

  Batches have 'rating/helpful' and so on as [B, 2].
  """
  found = listed(row, 'completions')
  given = [told(x) for x in listed(row, 'ratings') if isinstance(x, dict)]
  if len(found) != 2 or len(given) != 2 or given[0].keys() != given[1].keys():
    raise InputError(
      "'completions' and 'ratings' are two of each, and both rate the same attributes."
    )
  both = [said({'completions': c}, 'completions') for c in found]
  extra = {k: [given[0][k], given[1][k]] for k in given[0]}
  return Example(prompt(row), both, (1.0, 0.0), extra)


def told(ratings: dict) -> dict[str, float]:
  """Ratings, and which of them are there."""
  given = {k: number(ratings, k) for k, v in ratings.items() if v is not None}
  values = {f'rating/{k}': given.get(k, 0.0) for k in sorted(ratings)}
  return values | {f'rated/{k}': float(k in given) for k in sorted(ratings)}


def principles(row: Row) -> Example:
  """{prompt, completion, principle, fulfilment: "Yes" or "No"}.

  The principle is asked about in a last user message, and the completions are the words
  Yes and No, in this order: the right one has reward 1, the other 0.
  """
  fulfilment = str(row.get('fulfilment')).lower()
  if fulfilment not in ('yes', 'no'):
    raise InputError(f"'fulfilment' is {row.get('fulfilment')!r}; Yes or No is due.")
  answer = text(row, named(row, 'completion', 'response'))
  whole = judged(prompt(row), answer, text(row, 'principle'))
  reward = (1.0, 0.0) if fulfilment == 'yes' else (0.0, 1.0)
  return Example(whole, VERDICTS, reward)


def judged(asked: Prompt, completion: str, principle: str) -> Messages:
  """A conversation, its answer, and the principle that it may keep."""
  answer = {'role': 'assistant', 'content': completion}
  return [*conversation(asked), answer, *conversation(principle)]


def steps(row: Row) -> Example:
  """{prompt, completions: steps of one solution, labels: true, false or a number each};
  {question, steps: [{text, label or p}]}.

  A label may be a list: the outcomes, true or false, of completions sampled from there,
  whose mean it then is (Math-Shepherd's Monte-Carlo labels). Batches have the labels in
  `extra['step_label']`, at each step's last token.
  """
  asked, texts, given = solved(row)
  if len(texts) != len(given):
    raise InputError(f'there are {len(texts)} steps and {len(given)} labels.')
  texts = [text({'completions': t}, 'completions') for t in texts]
  values = [label(x) for x in given]
  return Example(asked, (Steps(texts),), (0.0,), step_labels=(values,))


def solved(row: Row) -> tuple[Prompt, list, list]:
  """The question, the steps and their labels, of either form of `steps`."""
  if row.get('steps') is None:
    return prompt(row), listed(row, 'completions'), listed(row, 'labels')
  found = listed(row, 'steps')
  if not all(isinstance(x, dict) for x in found):
    raise InputError("'steps' is a list of {text, label}.")
  asked = prompt({'prompt': row[named(row, asked_in(row), 'question')]})
  texts, given = zip(*((x.get('text'), x.get(named(x, 'label', 'p'))) for x in found))
  return asked, [*texts], [*given]


def steps_to_error(row: Row) -> Example:
  """As `steps`, up to the first label below 0 or false: PRM800K's rule."""
  example = steps(row)
  texts, values = example.completions[0].texts, example.step_labels[0]
  wrong = [x < 0 or given is False for x, given in zip(values, solved(row)[2])]
  size = wrong.index(True) + 1 if any(wrong) else len(values)
  found = Steps(texts[:size])
  return example._replace(completions=(found,), step_labels=(values[:size],))


def label(given) -> float:
  """A step's label as a number; of a list the mean."""
  if isinstance(given, list) and given:
    return sum(map(label, given)) / len(given)
  value = float(given) if isinstance(given, bool) else given
  return number({'labels': value}, 'labels')


KINDS: dict[str, Callable[[Row], Example]] = {
  f.__name__: f
  for f in (
    *(demonstrations, pairs, user_pairs, personal_pairs, contrastive_pairs),
    *(prompt_pairs, hh, costs, labels, rankings),
    *(ratings, rated_pairs, principles, steps, steps_to_error),
  )
}


def check(example: Example) -> Example:
  """Refuses what no template or tokenizer could take: wrong types, text that is not
  Unicode, and a completion in which an assistant has no last word or says nothing.
  """
  for told in (example.prompt, *example.prompts, *example.completions):
    for words in spoken(told):
      encoding.whole(words)
  for answer in example.completions:
    if isinstance(answer, (str, Steps)):
      continue
    if isinstance(example.prompt, str):
      raise InputError('the prompt is a string and the completion a list of messages.')
    if not answer or answer[-1]['role'] != 'assistant':
      raise InputError('a completion does not end with an assistant message.')
    silent = lambda m: not (m.get('content') or m.get('tool_calls'))
    if any(silent(m) for m in answer if m['role'] == 'assistant'):
      raise InputError('an assistant message is empty.')
    if any(m.get('weight', 1) not in (1, None) for m in answer):
      raise InputError(
        "a message has a 'weight' that is not 1, and every turn of an assistant in a "
        'completion is learned. Put what is not to be learned into the prompt.'
      )
  return example


def spoken(told: Prompt | Steps) -> Sequence[str]:
  """Every text of a prompt or completion. A message has 'content', or calls tools."""
  if isinstance(told, str):
    return [told]
  if isinstance(told, Steps):
    return told.texts
  for m in told:
    if not (isinstance(m.get('content'), str) or m.get('tool_calls')):
      raise InputError(
        f"a message's 'content' is {kind_of(m, 'content')}; text is due."
      )
  return [m['content'] for m in told if isinstance(m.get('content'), str)]


def common(a, b):
  """The longest common beginning: of messages whole ones, of text without its last
  space, which belongs to the words after it.
  """
  differs = (i for i, (x, y) in enumerate(zip(a, b)) if x != y)
  shared = a[: next(differs, min(len(a), len(b)))]
  if isinstance(shared, str) and shared.endswith(' '):
    return shared[:-1]
  return shared


def transcript(words: str) -> Messages:
  """'\\n\\nHuman: a\\n\\nAssistant: b' as messages."""
  found: Messages = []
  for piece in (
    words.replace('\n\nHuman:', '\0user\0')
    .replace('\n\nAssistant:', '\0assistant\0')
    .split('\0')[1:]
  ):
    if piece in ('user', 'assistant'):
      found.append({'role': piece, 'content': ''})
    else:
      found[-1]['content'] = piece.strip()
  if not found:
    raise InputError("a transcript has no '\\n\\nHuman:' turn.")
  return found
