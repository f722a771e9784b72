"""How a dialogue becomes one text: as it stands, or by a tokenizer's own chat template (Jinja).

The template may be anybody's, so it runs in Jinja's sandbox, which has no files and no modules.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stride_jax.data.dialogues import Message
from stride_jax.runtime.files import first_line, read_json

OWN = "chat"
"""Value of a setting `template` that means the one beside the tokenizer."""


BESIDE = ("tokenizer_config.json", "chat_template.jinja")
"""Files beside a tokenizer.json that hold its template and the names of special tokens."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """From messages to the parts of a text.

    Attributes:
      source: the Jinja template; empty: messages follow each other as they are.
      marks: what the template calls `bos_token`, `eos_token`, and so on.
      stop: text that ends what the assistant says, where there is no template; None for a text that
        is continued, not answered.
    """

    source: str = ""
    marks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop: str | None = None

    def parts(self, messages: Sequence[Message], where: str = "") -> list[tuple[bool, str]]:
        """The text in parts, each with whether the assistant says it, its ending included.

        Args:
          messages: what was said; the last one may be anybody's.
          where: file and row, for errors.

        Raises:
          ValueError: the template refuses the messages, or changes what it made of the earlier ones
            when later ones are there, so that no part can be told to be the assistant's.

        >>> ChatTemplate(stop="!").parts([Message("user", "2 + 2 = "), Message("assistant", "4")])
        [(False, '2 + 2 ='), (True, ' 4!')]
        """
        if not self.source:
            return self._plain(messages)
        parts: list[tuple[bool, str]] = []
        before = ""
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            asked = self.rendered(messages[:number], True, where)
            answered = self.rendered(messages[: number + 1], False, where)
            if not (asked.startswith(before) and answered.startswith(asked)):
                raise ValueError(
                    f"{where}: the chat template writes message {number} and what comes before it "
                    "otherwise than by itself, so what the assistant says can't be told: give "
                    "dialogues of one answer, or a template that leaves earlier messages as "
                    "they are"
                )
            parts += [(False, asked[len(before) :]), (True, answered[len(asked) :])]
            before = answered
        return parts

    def asked(self, prompt: str) -> tuple[str, str]:
        """A prompt without the space at its end, and that space, which the answer begins with.

        >>> ChatTemplate(stop="!").asked("2 + 2 = "), ChatTemplate().asked("And ")
        (('2 + 2 =', ' '), ('And ', ''))
        """
        if self.source or self.stop is None:
            return prompt, ""
        return prompt.rstrip(), prompt[len(prompt.rstrip()) :]

    def _plain(self, messages: Sequence[Message]) -> list[tuple[bool, str]]:
        """A space before an answer goes with it: tokens begin with theirs, and would be the
        prompt's."""
        parts, space = [], ""
        for role, content in messages:
            if role == "assistant":
                parts.append((True, space + content + (self.stop or "")))
                space = ""
            else:
                said, space = self.asked(space + content)
                parts.append((False, said))
        return [*parts, (False, space)] if space else parts

    def rendered(self, messages: Sequence[Message], answer: bool, where: str = "") -> str:
        """The text of messages by the template.

        Args:
          messages: what was said.
          answer: whether the assistant's answer is to follow.
          where: file and row, for errors.

        Raises:
          ValueError: the template refuses them, or is none.
        """
        import jinja2

        try:
            return _compiled(self.source).render(
                messages=[message._asdict() for message in messages],
                add_generation_prompt=answer,
                **self.marks,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: the chat template can't write these messages ({first_line(error)}): "
                "mend the row, or give another template"
            ) from error


PLAIN = ChatTemplate()
"""Text as it is."""


def _compiled(source: str) -> Any:
    """A template with the functions that templates of Hugging Face's tokenizers expect."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        # Jinja's own escapes HTML.
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # A day of its own would make other examples of the same rows tomorrow.
    environment.globals["strftime_now"] = datetime.datetime(2026, 1, 1).strftime
    return environment.from_string(source)


def template_beside(tokenizer: str) -> ChatTemplate:
    """The chat template that lies beside a tokenizer.json.

    It is read from `chat_template.jinja`, or from `tokenizer_config.json`, where the marks are.

    Raises:
      ValueError: there is none.
    """
    folder = pathlib.Path(tokenizer).parent
    config, own = (folder / name for name in BESIDE)
    source = _told(config).get("chat_template")
    if isinstance(source, list):  # several by name
        source = {one["name"]: one["template"] for one in source}.get("default")
    if own.is_file():
        source = own.read_text(encoding="utf-8")
    if not source:
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja, or one in "
            "tokenizer_config.json): give template the path of a Jinja file, or give prompts and "
            "completions with template=''"
        )
    return ChatTemplate(source, marks_beside(tokenizer))


def marks_beside(tokenizer: str) -> dict[str, str]:
    """Special tokens by the names that the settings beside a tokenizer give them; "" has none."""
    told = _told(pathlib.Path(tokenizer).parent / BESIDE[0]) if tokenizer else {}
    named = {name: told[name] for name in told if name.endswith("_token")}
    # Some files have a mark as an object.
    texts = {n: own.get("content") if isinstance(own, Mapping) else own for n, own in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _told(config: pathlib.Path) -> dict[str, Any]:
    told = read_json(config) if config.is_file() else {}
    if not isinstance(told, dict):
        raise ValueError(f"{config} holds no settings of a tokenizer: write it again")
    return told
