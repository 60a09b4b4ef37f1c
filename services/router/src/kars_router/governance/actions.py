"""Canonical actions: the one string that policy, approvals and audit speak about.

`verb:subject[:argument]`, verb in lower case, no control characters. Rules are
matched against the whole text; what is shown and recorded is redacted and cut
to 256 bytes, so that nothing hides behind a cut.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

MAX_ACTION_BYTES = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
# Tools whose first argument is a shell command or a URL are governed under that verb (router.md 8.2).
SHELL_TOOLS = frozenset(("exec_command", "foundry_code_execute", "shell", "bash"))
URL_TOOLS = frozenset(("http_fetch",))
_COMMAND_KEYS = ("command", "cmd", "code", "script")
_URL_KEYS = ("url", "uri")

Redact = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action to decide on.

    Attributes:
        text: the whole action with its verb lower-cased and control characters replaced; what rules match.
        shown: redacted and at most 256 bytes; what people and records see.
        tool: tool name when a tool is meant, else empty.
        raw_command: the shell command as given (line breaks kept), else None.
        context: keys that conditions may name.
        also: further names of the same act: an explicit denial of one of them counts too.
        opaque: the argument in `text` may not be the one that the tool will act on; only what stands
            before it is certain.
    """

    text: str
    shown: str
    tool: str = ""
    raw_command: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    also: tuple["Action", ...] = ()
    opaque: bool = False

    @property
    def stem(self) -> str:
        """What is certain of an opaque action: everything before its argument."""
        return f"tool:{self.tool}:" if self.verb == "tool" else f"{self.verb}:"

    @property
    def verb(self) -> str:
        """The text before the first colon."""
        return self.text.partition(":")[0]


def canonical(text: str, redact: Redact, *, context: Mapping[str, str] | None = None) -> Action:
    """Return the action that a caller named itself (`POST /agt/evaluate`)."""
    verb, colon, rest = text.partition(":")
    clean = _CONTROL.sub(" ", verb.strip().lower() + colon + rest)
    clean_verb, _, clean_rest = clean.partition(":")
    tool = ""
    if clean_verb in {"tool", "tool.invoke"}:
        tool = clean_rest.partition(":")[0]
    command = rest if clean_verb == "shell" else None
    keys = dict(context or {})
    keys |= {"action.full": clean, "action.category": clean_verb, "action.detail": clean_rest}
    if command is not None:
        keys["action.command"] = command
    return Action(text=clean, shown=shown(clean, redact), tool=tool, raw_command=command, context=keys)


def simple(text: str, *, tool: str = "", context: Mapping[str, str] | None = None) -> Action:
    """Return an action that the router itself made of parts that it already checked."""
    return Action(text=text, shown=_cut(text), tool=tool, context=context or {})


def tool_call(
    name: str,
    arguments: str,
    redact: Redact,
    context: Mapping[str, str] | None = None,
    *,
    order: Sequence[str] = (),
    plain: bool = False,
) -> Action:
    """Return the action of a tool call that a model's answer asks for.

    Args:
        name: function name as the model wrote it.
        arguments: JSON text of the arguments; unreadable text is itself the argument, and opaque.
        redact: removes secrets from what is shown.
        context: further keys for conditions.
        order: the tool's parameters in declared order; the model's own order proves nothing.
        plain: the arguments are text and not JSON (custom tools).
    """
    clean_name = _CONTROL.sub(" ", name)
    read = _Arguments(first=arguments, command=arguments, url=arguments) if plain else _read(arguments, order)
    general = canonical(
        f"tool:{clean_name}:{read.first}" if read.first else f"tool:{clean_name}", redact, context=context
    )
    general = replace(general, tool=clean_name, opaque=read.opaque)
    if clean_name in SHELL_TOOLS:
        command = read.command if read.command is not None else read.everything
        special = canonical(f"shell:{command}", redact, context=context)
    elif clean_name in URL_TOOLS:
        url = read.url if read.url is not None else read.first
        special = canonical(f"egress:{url}", redact, context=context)
    else:
        return general
    named = (
        read.command is not None if clean_name in SHELL_TOOLS else read.url is not None and not read.opaque
    )
    return replace(special, tool=clean_name, opaque=not named, also=(general,))


def shown(text: str, redact: Redact) -> str:
    """Return the form that people and records see: redacted, at most 256 bytes."""
    return _cut(_CONTROL.sub(" ", redact(text)))


def _cut(text: str) -> str:
    if len(text) <= 64:  # at most 4 bytes a character
        return text
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_ACTION_BYTES:
        return text
    return raw[: MAX_ACTION_BYTES - 3].decode("utf-8", "ignore") + "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """What the arguments of a tool call say, as far as rules speak about it."""

    first: str = ""
    everything: str = ""
    command: str | None = None
    url: str | None = None
    opaque: bool = False


def _read(arguments: str, order: Sequence[str]) -> _Arguments:
    try:
        document = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        # A laxer parser than this one (NaN, a missing brace, control characters) may read it all the same.
        return _Arguments(first=arguments, everything=arguments, opaque=True)
    if not isinstance(document, dict):
        only = _scalar(document) if not isinstance(document, list) else arguments
        return _Arguments(first=only, command=only, url=only)
    known = [key for key in order if key in document]
    ordered = [document[key] for key in (*known, *(key for key in document if key not in known))]
    scalars = [_scalar(value) for value in ordered if not isinstance(value, dict | list)]
    # Of several commands all are judged, one after the other: which one the tool runs is its own choice.
    commands = dict.fromkeys(_scalar(document[key]) for key in _COMMAND_KEYS if key in document)
    urls = dict.fromkeys(_scalar(document[key]) for key in _URL_KEYS if key in document)
    return _Arguments(
        first=scalars[0] if scalars else "",
        everything="\n".join(map(_scalar, ordered)),
        command="\n".join(commands) if commands else None,
        url=next(iter(urls), None),
        opaque=len(urls) > 1 or (not known and len(set(scalars)) > 1),
    )


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)  # an argv
    return orjson.dumps(value).decode()
