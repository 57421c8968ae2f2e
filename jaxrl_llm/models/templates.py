"""A chat template from a file (config.model.chat_template), for the tokenizer's own."""

from pathlib import Path

from jaxrl_llm.types import InputError


def read(path: str) -> str:
  """A file's template.

  Raises:
    InputError: it cannot be read, or holds nothing.
  """
  where = f'config.model.chat_template={path}'
  try:
    text = Path(path).expanduser().read_text()
  except (OSError, ValueError) as error:
    raise InputError(
      f'{where} is not readable as text: {error}. Name a file with a jinja template.'
    ) from error
  if not text.strip():
    raise InputError(f'{where} is empty. Name a file with a jinja template.')
  return text


# Llama 3.2's own date where it knows none.
DATE = """{% macro strftime_now(format) %}{{
  {'%Y-%m-%d': '2024-07-26'}.get(format, '26 Jul 2024')
}}{% endmacro %}{{ '' }}"""


def dated(template: str) -> str:
  """A template that says one date in the place of today's: the same run of tomorrow has
  the same ids. One that says none stays as it is.
  """
  return DATE + template if 'strftime_now' in template else template
