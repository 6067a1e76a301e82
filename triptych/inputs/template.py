"""The chat template of the model folder, rendered in a sandbox under a time budget.

The template comes from the server's own model folder only; nothing of a request selects or changes
it. Knows Jinja; does not know tokens.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triptych.core.clock import Clock, ThreadClock
from triptych.core.errors import ConfigError, RequestError
from triptych.inputs import oracle_words
from triptych.inputs.model_card import read_json

RENDER_BUDGET_S = 2.0
"""Of a thread's processor, since a busy machine is no client's fault. Rendering 256 messages takes
milliseconds."""
_FILE = "<chat template>"
_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template does with a conversation that it was not written for."""


class ChatTemplate:
    """One compiled template. ``render`` may be called from several threads."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        *,
        budget_s: float = RENDER_BUDGET_S,
        clock: Clock | None = None,
    ) -> None:
        # The options that Transformers compiles chat templates with.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            code = environment.compile(source, filename=_FILE)
        except jinja2.TemplateError as error:
            raise ConfigError(f"model.path: the chat template does not compile: {error}") from error
        self._template = jinja2.Template.from_code(environment, code, dict(environment.globals))
        self._variables = dict(variables or {})
        self._budget_s = budget_s
        self._clock: Clock = clock or ThreadClock()

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as text, open for the assistant's answer; raises RequestError."""
        try:
            with _Budget(self._budget_s, self._clock):
                return self._template.render(
                    messages=list(messages), add_generation_prompt=True, **self._variables
                )
        except _OutOfTime:
            raise RequestError("takes too long to render", field="messages") from None
        except _REFUSALS as error:
            text = "the model's chat template has no form for this conversation"
            raise RequestError(text, field="messages") from error


def load_template(path: str) -> ChatTemplate:
    """The template of the model folder ``path``, or the oracle's. Raises ConfigError."""
    if path == oracle_words.NAME:
        return ChatTemplate(oracle_words.CHAT_TEMPLATE)
    folder = Path(path)
    config = read_json(folder / "tokenizer_config.json", is_optional=True)
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        legacy = read_json(folder / "chat_template.json", is_optional=True)
        source = legacy.get("chat_template")
    if not isinstance(source, str):
        raise ConfigError(f"model.path: {path} has no chat template")
    return ChatTemplate(source, _variables(config))


def _variables(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like, which templates may write."""
    variables = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            variables[name] = value
    return variables


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _OutOfTime(BaseException):
    """Not an Exception, so that no template construct and no Jinja handler can swallow it."""


_Trace = Callable[[FrameType, str, Any], Any]


class _Budget:
    """Ends the template's code when its time is over.

    A thread cannot be stopped from outside, but a line trace on the template's own frames (and no
    others) runs between any two of its lines, so that even a loop without output ends.
    """

    def __init__(self, budget_s: float, clock: Clock) -> None:
        self._end_s = clock.now() + budget_s
        self._clock = clock
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter_frame(self, frame: FrameType, event: str, argument: Any) -> _Trace | None:
        del event, argument
        return self._line if frame.f_code.co_filename == _FILE else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> _Trace:
        del frame, event, argument
        if self._clock.now() > self._end_s:
            raise _OutOfTime
        return self._line
