"""Take secrets out of text that arrives in pieces.

One scanner for whole answers and for streams: feeding a text in any cut gives
the same output. It holds back only what could be the beginning of a secret, at
most `MAX_HELD` characters, so that ordinary words flow through untouched.

Only forms that are secrets beyond doubt are taken (register 25): vendor key
formats, bearer values, JWTs, PEM keys, connection-string keys, and the exact
keys this router holds. Ordinary prose is never changed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_HELD = 512
ROUTER_CREDENTIAL = "router_credential"
_PEM_LIMIT = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One secret format: a literal start, then characters of a set.

    Attributes:
        kind: name in placeholders, counters and records.
        start: regular expression of the start; must not match empty text.
        starts: the literal texts that `start` can match, for holding back a beginning of one.
        body: character class of the secret itself.
        minimum: shortest body that counts as a secret.
        end: literal that ends it instead of the character class (PEM).
    """

    kind: str
    start: str
    starts: tuple[str, ...]
    body: str
    minimum: int
    end: str = ""


_URL64 = r"[A-Za-z0-9_\-]"
_BEARER = r"[A-Za-z0-9._~+/=\-]"

FORMS: tuple[Form, ...] = (
    Form(kind="bearer_token", start="[Bb]earer ", starts=("Bearer ", "bearer "), body=_BEARER, minimum=20),
    Form(kind="api_key", start="sk-", starts=("sk-",), body=_URL64, minimum=20),
    Form(kind="api_key", start="AIza", starts=("AIza",), body=_URL64, minimum=30),
    Form(
        kind="github_token",
        start="(?:gh[psour]_|github_pat_)",
        starts=("ghp_", "ghs_", "gho_", "ghu_", "ghr_", "github_pat_"),
        body="[A-Za-z0-9_]",
        minimum=20,
    ),
    Form(kind="aws_access_key", start="(?:AKIA|ASIA)", starts=("AKIA", "ASIA"), body="[A-Z0-9]", minimum=16),
    Form(
        kind="chat_token",
        start="xox[abprs]-",
        starts=tuple(f"xox{c}-" for c in "abprs"),
        body=_URL64,
        minimum=20,
    ),
    Form(kind="jwt", start="eyJ", starts=("eyJ",), body=r"[A-Za-z0-9_\-.=]", minimum=40),
    Form(
        kind="connection_string",
        start="(?:AccountKey=|SharedAccessKey=)",
        starts=("AccountKey=", "SharedAccessKey="),
        body="[A-Za-z0-9+/=]",
        minimum=20,
    ),
    Form(
        kind="pem_private_key",
        start="-----BEGIN (?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY-----",
        starts=tuple(
            f"-----BEGIN {name}PRIVATE KEY-----"
            for name in ("", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED ")
        ),
        body="",
        minimum=0,
        end="PRIVATE KEY-----",
    ),
)


class SecretScanner:
    """Compiled forms plus the exact secrets that the router holds. Shared; keeps no text."""

    def __init__(self, secrets: Sequence[str] = (), forms: Sequence[Form] = FORMS) -> None:
        """Compile; exact secrets outside 8 to 512 characters are left out: too common, or too long."""
        exact = sorted({secret for secret in secrets if 8 <= len(secret) <= MAX_HELD}, key=len, reverse=True)
        self.forms = (*(_exact_form(secret) for secret in exact), *forms)
        # A start inside a word is no start ("task-..."), except for the router's own keys.
        parts = [
            f"(?P<f{index}>{'' if form.kind == ROUTER_CREDENTIAL else '(?<![A-Za-z0-9])'}{form.start})"
            for index, form in enumerate(self.forms)
        ]
        self.start = re.compile("|".join(parts))
        # Alternatives that all begin with a plain character are searched for several times faster.
        literals = sorted({start for form in self.forms for start in form.starts})
        self._quick = re.compile("|".join(map(re.escape, literals)))
        self.bodies = [re.compile(f"{form.body}*") if form.body else None for form in self.forms]
        self.partial = _beginnings(forms, exact)
        self.partial_exact = _beginnings((), exact)
        self.longest = max((len(start) for form in self.forms for start in form.starts), default=0)

    def find(self, text: str, position: int) -> re.Match[str] | None:
        """Return the first start of a secret at or after a position."""
        return self.start.search(text, position) if self._quick.search(text, position) is not None else None

    def redact(self, text: str, count: Callable[[str], None] | None = None) -> str:
        """Return the text with every secret replaced."""
        if self._quick.search(text) is None:
            return text
        stream = RedactionStream(self, count)
        return stream.feed(text) + stream.finish()


def _exact_form(secret: str) -> Form:
    return Form(kind=ROUTER_CREDENTIAL, start=re.escape(secret), starts=(secret,), body="", minimum=0)


def _beginnings(forms: Sequence[Form], exact: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern for a proper beginning of a form's start or an exact secret, at the end of a text."""
    plain = [start for form in forms for start in form.starts]
    parts = [f"(?<![A-Za-z0-9])(?:{_pattern(_tree(plain))})"] if plain else []
    parts += [f"(?:{_pattern(_tree(exact))})"] if exact else []
    return re.compile(f"(?:{'|'.join(parts)})\\Z") if parts else None


def _tree(literals: Sequence[str]) -> "_Tree":
    tree: _Tree = {}
    for literal in literals:
        node = tree
        for char in literal[:-1]:
            node = node.setdefault(char, {})
    return tree


_Tree = dict[str, "_Tree"]


def _pattern(tree: _Tree) -> str:
    # Every prefix of a beginning is a beginning, so each node may end the match.
    return "|".join(
        re.escape(char) + (f"(?:{_pattern(below)})?" if below else "") for char, below in sorted(tree.items())
    )


class RedactionStream:
    """The state of one text that arrives in pieces."""

    __slots__ = ("_count", "_held", "_last", "_scanner", "_swallow", "_swallowed")

    def __init__(self, scanner: SecretScanner, count: Callable[[str], None] | None = None) -> None:
        self._scanner = scanner
        self._count = count
        self._held = ""
        # Last character before `_held`: whether a start stands inside a word depends on it.
        self._last = ""
        self._swallow: int | None = None
        self._swallowed = 0

    def feed(self, piece: str) -> str:
        """Take the next piece and return what may be released now."""
        return self._run(piece, final=False)

    def finish(self) -> str:
        """Return what is still held, at the end of the text."""
        return self._run("", final=True)

    def _run(self, piece: str, *, final: bool) -> str:
        text = self._last + self._held + piece
        position = len(self._last)
        out: list[str] = []
        self._held = ""
        while position < len(text) and not self._held:
            if self._swallow is not None:
                position = self._skip(text, position, final=final)
            else:
                position = self._next(text, position, out, final=final)
        if text:
            self._last = text[position - 1 : position]
        return "".join(out)

    def _hold(self, text: str, position: int) -> int:
        self._held = text[position:]
        return position

    def _next(self, text: str, position: int, out: list[str], *, final: bool) -> int:
        """Handle the text up to the next start and, if it is one, the secret; returns where to go on."""
        scanner = self._scanner
        match = scanner.find(text, position)
        if not final:
            # An exact secret may have begun at or before another form's start: wait for the rest of it.
            undecided = self._partial(
                scanner.partial if match is None else scanner.partial_exact, text, position
            )
            if undecided is not None and (match is None or undecided <= match.start()):
                out.append(text[position:undecided])
                return self._hold(text, undecided)
        if match is None:
            out.append(text[position:])
            return len(text)
        index = int((match.lastgroup or "f0")[1:])
        form, body = scanner.forms[index], scanner.bodies[index]
        start, end = match.span()
        if body is not None:
            run = body.match(text, end)
            run_end = run.end() if run else end
            if run_end - end < form.minimum:
                if run_end == len(text) and not final:
                    out.append(text[position:start])
                    return self._hold(text, start)
                out.append(text[position:end])
                return end
            end = run_end
        out.append(text[position:start])
        out.append(f"[REDACTED_{form.kind.upper()}]")
        if self._count is not None:
            self._count(form.kind)
        if form.end or (body is not None and end == len(text)):
            self._swallow, self._swallowed = index, 0
        return end

    def _partial(self, pattern: re.Pattern[str] | None, text: str, position: int) -> int | None:
        if pattern is None:
            return None
        match = pattern.search(text, max(position, len(text) - self._scanner.longest))
        return match.start() if match is not None else None

    def _skip(self, text: str, position: int, *, final: bool) -> int:
        """Drop the rest of a secret; returns where ordinary text begins again."""
        index = self._swallow or 0
        form, body = self._scanner.forms[index], self._scanner.bodies[index]
        if body is not None:
            match = body.match(text, position)
            end = match.end() if match else position
            if end < len(text):
                self._swallow = None
            return end
        limit = position + _PEM_LIMIT - self._swallowed
        found = text.find(form.end, position, limit)
        if found >= 0:
            self._swallow = None
            return found + len(form.end)
        if len(text) >= limit:
            self._swallow = None
            return limit
        if final:
            return len(text)
        kept = max(position, len(text) - len(form.end) + 1)
        self._swallowed += kept - position
        return self._hold(text, kept)
