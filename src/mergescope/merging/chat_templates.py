"""Chat templates: the usual formats in Jinja, and choosing one for a merged model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mergescope.documents import read_settings
from mergescope.errors import MergescopeError, did_you_mean

FILE = "chat_template.jinja"

_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_ALPACA = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] | trim }}

{% endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
### Instruction:
{{ message['content'] | trim }}

{% elif message['role'] == 'assistant' -%}
### Response:
{{ message['content'] | trim }}{{ eos_token }}

{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
### Response:
{% endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set turn = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set turn.system = (message['content'] | trim) + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- '[INST] ' + turn.system + (message['content'] | trim) + ' [/INST]' -}}
{%- set turn.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + (message['content'] | trim) + eos_token -}}
{%- else -%}
{{- raise_exception('The roles are system, user and assistant.') -}}
{%- endif -%}
{%- endfor -%}
"""

_EXAONE = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{- '[|system|][|endofturn|]\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '[|' + message['role'] + '|]' + (message['content'] | trim) -}}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '[|assistant|]' -}}
{%- endif -%}
"""

BUILT_IN = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
"""Formats by the names that mergekit gives them."""


def chat_template_of(directory: Path) -> str | None:
    """The chat template of a tokenizer directory.

    Args:
        directory: where the tokenizer is.

    Returns:
        Jinja text; of several named ones the default; None if there is none.

    Raises:
        CheckpointError: ``tokenizer_config.json`` is not valid JSON.
    """  # noqa: DOC502 (raised by what this calls)
    if (directory / FILE).is_file():
        return (directory / FILE).read_text(encoding="utf-8")
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return None
    found = read_settings(path).get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def choose_chat_template(wanted: str, directories: Iterable[Path]) -> str | None:
    """The template that a recipe's ``chat_template`` asks for.

    Args:
        wanted: ``"auto"`` (the most common one of the inputs, the first of several), a built-in
            name, or Jinja text.
        directories: the inputs' tokenizer directories, in the recipe's order.

    Returns:
        Jinja text, or None if it is ``"auto"`` and no input has one.

    Raises:
        MergescopeError: the name is unknown, or the text is no Jinja template.

    Example:
        >>> "[INST]" in choose_chat_template("mistral", [])
        True
    """
    if wanted == "auto":
        found = [template for folder in directories if (template := chat_template_of(folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if wanted in BUILT_IN:
        return BUILT_IN[wanted]
    if "{{" not in wanted and "{%" not in wanted:
        raise MergescopeError(
            f"chat_template {wanted!r} is neither auto, a built-in ({', '.join(BUILT_IN)}) nor Jinja text."
            + did_you_mean(wanted, BUILT_IN)
        )
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            wanted.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except jinja2.TemplateSyntaxError as error:
        raise MergescopeError(
            f"The chat_template is no valid Jinja: line {error.lineno}: {error.message}"
        ) from error
    return wanted
