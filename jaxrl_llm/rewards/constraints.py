"""The share of a prompt's instructions that the completion follows, by rule.

Names and options are those of IFEval's file (2023), https://arxiv.org/abs/2311.07911.
Experimental: what counts as a word, a sentence or a section is defined here, and where
its own code counts otherwise (it splits sentences by a trained model) scores differ.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from jaxrl_llm.rewards.sample import Reward, Sample
from jaxrl_llm.types import InputError

LONGEST = 100_000  # Characters; a longer completion follows nothing.


def constraints(*, all_of: bool = False) -> Reward:
  """Reads each record's extra['instruction_id_list'] and extra['kwargs'].

  Args:
    all_of: 1 where every instruction is followed and 0 otherwise, not the share.
  """

  def reward(sample: Sample) -> float:
    extra = sample.record.extra
    rules = made(extra.get('instruction_id_list'), extra.get('kwargs'))
    found = [follows(sample.completion, rule) for rule in rules]
    return float(all(found)) if all_of else sum(found) / len(found)

  return reward


Rule = Callable[[str], bool]


def made(names, options) -> list[Rule]:
  """A check of the text for every instruction.

  Raises:
    InputError: there is none, or one that is not understood, or lacks an option.
  """
  if not names or not isinstance(options, list) or len(options) != len(names):
    raise InputError(
      'constraints: a record needs extra["instruction_id_list"] and as many "kwargs".'
    )
  return [rule(name, given) for name, given in zip(names, options)]


def rule(name: str, given: dict[str, Any]) -> Rule:
  if name not in RULES:
    raise InputError(f'constraints: there is no {name!r}; there are {sorted(RULES)}.')
  options = {k: v for k, v in given.items() if v is not None}
  try:
    return RULES[name](**options)
  except TypeError as error:
    raise InputError(f'constraints: {name} with {options}: {error}.') from error


def follows(text: str, check: Rule) -> bool:
  """Nothing follows where nothing is said."""
  return len(text.strip()) > 0 and len(text) <= LONGEST and check(text)


# ---- Counting ------------------------------------------------------------------------


def compared(count: int, relation: str, number: int) -> bool:
  """'at least' or 'less than', as the file has it."""
  if relation not in ('at least', 'less than'):
    raise InputError(f"constraints: relation {relation!r}; 'at least' or 'less than'.")
  return count >= number if relation == 'at least' else count < number


def words(text: str) -> list[str]:
  return re.findall(r"\w+(?:[-']\w+)*", text)


def said(text: str, phrase: str) -> int:
  """How often a phrase stands in the text as whole words, in any case."""
  return len(re.findall(rf'(?<!\w){re.escape(phrase)}(?!\w)', text, re.IGNORECASE))


def sentences(text: str) -> int:
  return len(re.findall(r'[^\s.!?][^.!?]*(?:[.!?]+|\Z)', text))


def split(text: str, mark: str) -> list[str]:
  return [part.strip() for part in re.split(mark, text) if part.strip()]


def listed(given: Any) -> list[str]:
  """Words to look for; of a text each letter would be one."""
  if not (isinstance(given, list) and all(isinstance(word, str) for word in given)):
    raise InputError(f'constraints: {given!r} should be a list of words.')
  return given


def keywords(*, keywords: list[str]) -> Rule:
  keywords = listed(keywords)
  return lambda text: all(said(text, word) for word in keywords)


def frequency(*, keyword: str, frequency: int, relation: str) -> Rule:
  return lambda text: compared(said(text, keyword), relation, frequency)


def forbidden(*, forbidden_words: list[str]) -> Rule:
  forbidden_words = listed(forbidden_words)
  return lambda text: not any(said(text, word) for word in forbidden_words)


def letters(*, letter: str, let_frequency: int, let_relation: str) -> Rule:
  count = lambda text: text.lower().count(letter.lower())
  return lambda text: compared(count(text), let_relation, let_frequency)


def number_words(*, num_words: int, relation: str) -> Rule:
  return lambda text: compared(len(words(text)), relation, num_words)


def number_sentences(*, num_sentences: int, relation: str) -> Rule:
  return lambda text: compared(sentences(text), relation, num_sentences)


def paragraphs(*, num_paragraphs: int) -> Rule:
  return lambda text: len(split(text, r'\*\*\*')) == num_paragraphs


def first_word(*, num_paragraphs: int, nth_paragraph: int, first_word: str) -> Rule:
  def check(text: str) -> bool:
    parts = split(text, r'\n\n')
    if len(parts) != num_paragraphs or nth_paragraph > num_paragraphs:
      return False
    return words(parts[nth_paragraph - 1].lower())[:1] == [first_word.lower()]

  return check


def postscript(*, postscript_marker: str) -> Rule:
  return lambda text: postscript_marker.lower() in text.lower()


def placeholders(*, num_placeholders: int) -> Rule:
  return lambda text: len(re.findall(r'\[[^\[\]]+\]', text)) >= num_placeholders


def bullets(*, num_bullets: int) -> Rule:
  return lambda text: len(re.findall(r'(?m)^[ \t]*[-*][ \t]+\S', text)) == num_bullets


def constrained() -> Rule:
  answers = ('My answer is yes.', 'My answer is no.', 'My answer is maybe.')
  return lambda text: any(answer in text for answer in answers)


def highlighted(*, num_highlights: int) -> Rule:
  form = r'\*\*[^*\n]+\*\*|\*[^*\n]+\*'
  return lambda text: len(re.findall(form, text)) >= num_highlights


def sections(*, section_spliter: str, num_sections: int) -> Rule:
  form = rf'(?m)^[^\w\n]*{re.escape(section_spliter.strip())}\s+\d+'
  return lambda text: len(re.findall(form, text)) >= num_sections


def is_json() -> Rule:
  def check(text: str) -> bool:
    text = re.sub(r'\A\s*```(?:json|JSON)?|```\s*\Z', '', text)
    try:
      json.loads(text)
    except (ValueError, RecursionError):
      return False
    return True

  return check


def title() -> Rule:
  return lambda text: any(map(str.strip, re.findall(r'<<([^\n<>]+)>>', text)))


def two_responses() -> Rule:
  def check(text: str) -> bool:
    parts = [part.strip() for part in text.split('******')]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]

  return check


def repeat_prompt(*, prompt_to_repeat: str) -> Rule:
  return lambda text: text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end(*, end_phrase: str) -> Rule:
  return lambda text: (
    text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
  )


def quotation() -> Rule:
  return lambda text: bool(re.fullmatch(r'(?s)\s*".*"\s*', text))


def capital_words(*, capital_frequency: int, capital_relation: str) -> Rule:
  count = lambda text: sum(word.isupper() for word in words(text))
  return lambda text: compared(count(text), capital_relation, capital_frequency)


RULES: dict[str, Callable[..., Rule]] = {
  'keywords:existence': keywords,
  'keywords:frequency': frequency,
  'keywords:forbidden_words': forbidden,
  'keywords:letter_frequency': letters,
  'length_constraints:number_words': number_words,
  'length_constraints:number_sentences': number_sentences,
  'length_constraints:number_paragraphs': paragraphs,
  'length_constraints:nth_paragraph_first_word': first_word,
  'detectable_content:postscript': postscript,
  'detectable_content:number_placeholders': placeholders,
  'detectable_format:number_bullet_lists': bullets,
  'detectable_format:constrained_response': constrained,
  'detectable_format:number_highlighted_sections': highlighted,
  'detectable_format:multiple_sections': sections,
  'detectable_format:json_format': is_json,
  'detectable_format:title': title,
  'combination:two_responses': two_responses,
  'combination:repeat_prompt': repeat_prompt,
  'startend:end_checker': end,
  'startend:quotation': quotation,
  'change_case:capital_word_frequency': capital_words,
  'change_case:english_capital': lambda: str.isupper,
  'change_case:english_lowercase': lambda: str.islower,
  'punctuation:no_comma': lambda: lambda text: ',' not in text,
}
