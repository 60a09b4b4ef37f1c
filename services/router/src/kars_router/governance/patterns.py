"""Action patterns of capability, approval and rate-limit rules.

`*` is everything; `x.*` and any trailing `*` are prefixes; the rest is exact and
case-sensitive behind its verb. `shell:` patterns speak about command words:
`shell:rm` means every command that runs `rm`, whatever its arguments, path,
wrapper or place in a pipeline; `shell:git status` means that subcommand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kars_router.governance import shell
from kars_router.governance.actions import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """A `shell:` pattern; `prefix` when its last word ended in `*`."""

    words: tuple[str, ...]
    prefix: bool

    def fits(self, command: tuple[str, ...]) -> bool:
        size = len(self.words)
        if len(command) < size:
            return False
        if not self.prefix:
            return command[:size] == self.words
        return command[: size - 1] == self.words[:-1] and command[size - 1].startswith(self.words[-1])

    def occurs(self, words: frozenset[str]) -> bool:
        head = self.words[0]
        if self.prefix and len(self.words) == 1:
            return any(word.startswith(head) for word in words)
        return head in words


class PatternSet:
    """A compiled list of patterns; immutable."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact: set[str] = set()
        prefixes: list[str] = []
        shell_words: list[_Words] = []
        for pattern in patterns:
            verb, colon, rest = pattern.strip().partition(":")
            text = verb.lower() + colon + rest
            if verb.lower() == "shell" and rest and rest != "*":
                shell_words.append(_shell_pattern(rest))
            elif text.endswith("*"):
                prefixes.append(text[:-1])
            else:
                self._exact.add(text)
        self._prefixes = tuple(prefixes)
        self._shell = tuple(shell_words)
        # Names of the family that an allow list speaks about (router.md 3.5, "in scope").
        self._allow_scope = tuple(
            text.split(".", 1)[0] for text in [*self._exact, *(prefix for prefix in prefixes if prefix)]
        )
        self._deny_scope = tuple(text.rstrip("*:") for text in [*self._exact, *prefixes] if text.rstrip("*:"))

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes or self._shell)

    def denies(self, action: Action, command: shell.ShellCommand | None) -> bool:
        """Tell whether a deny (or approval, or rate-limit) list speaks about the action."""
        if self._plain(action.text):
            return True
        # A tool named without an argument is meant with every argument: the caller chooses those.
        if action.tool and f"tool:{action.tool}" in self._exact:
            return True
        if command is None:
            return action.opaque and self.mentions(action.stem)
        if any(pattern.fits(simple) for pattern in self._shell for simple in command.simple):
            return True
        return command.opaque and any(pattern.occurs(command.words) for pattern in self._shell)

    def allows(self, action: Action, command: shell.ShellCommand | None) -> bool:
        """Tell whether an allow list covers the whole action: every command of a shell line."""
        if self._plain(action.stem if action.opaque else action.text):
            return True
        if command is None or command.opaque or not self._shell:
            return False
        return all(any(pattern.fits(simple) for pattern in self._shell) for simple in command.simple)

    def allow_scope(self, action: Action, command: shell.ShellCommand | None) -> bool:
        """Tell whether the action belongs to a family that this allow list enumerates."""
        if command is not None:
            return any(pattern.occurs(command.words) for pattern in self._shell)
        return bool(self._allow_scope) and action.text.startswith(self._allow_scope)

    def deny_scope(self, action: Action) -> bool:
        """Tell whether the action starts with one of this deny list's names."""
        return bool(self._deny_scope) and action.text.startswith(self._deny_scope)

    def mentions(self, prefix: str) -> bool:
        """Tell whether some pattern speaks about actions that begin with `prefix`."""
        if prefix == "shell:" and self._shell:
            return True
        return any(text.startswith(prefix) or prefix.startswith(text) for text in self._prefixes) or any(
            text.startswith(prefix) for text in self._exact
        )

    def _plain(self, text: str) -> bool:
        return text in self._exact or (bool(self._prefixes) and text.startswith(self._prefixes))


def _shell_pattern(rest: str) -> _Words:
    text = rest.strip()
    for ending in (":*", " *"):
        if text.endswith(ending):
            text = text[: -len(ending)].strip()
            return _Words(words=tuple(text.split()) or ("",), prefix=not text)
    prefix = text.endswith("*")
    words = tuple(text.rstrip("*").split()) or ("",)
    return _Words(words=words, prefix=prefix)
