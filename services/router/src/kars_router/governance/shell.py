"""Find the command words of a shell command, for rules such as `shell:rm`.

Refuses to guess: what it cannot take apart with certainty (substitution, eval,
unbalanced quotes, an interpreter given code) is `opaque`. An opaque command
never satisfies an allow rule that names commands, and a deny rule hits it when
the denied word occurs anywhere in it.
"""

import re
import shlex
from dataclasses import dataclass

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
# Words that run another command given as their arguments.
_WRAPPERS = frozenset(
    ("sudo", "doas", "env", "nohup", "time", "exec", "command", "builtin", "nice", "ionice", "setsid")
) | frozenset(("stdbuf", "timeout", "xargs", "busybox", "toybox", "chrt", "taskset", "unbuffer", "strace"))
# Words whose arguments are code, or whose effect cannot be read from the text.
_INTERPRETERS = frozenset(
    (
        "sh",
        "bash",
        "dash",
        "zsh",
        "ksh",
        "fish",
        "ash",
        "eval",
        "source",
        ".",
        "trap",
        "alias",
        "function",
        "coproc",
    )
)
_RESERVED = frozenset(
    ("if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "for", "case", "select")
)
_SEPARATORS = re.compile(r"[;&|\n\r()]+")
_WORD = re.compile(r"[^\s;&|()<>`$\"'\\{}=]+")
_OPERATOR_CHARS = ";&|\n\r()<>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellCommand:
    """A command taken apart.

    Attributes:
        simple: each simple command as its words, wrappers, paths and assignments removed.
        words: every word that occurs anywhere, base names included.
        opaque: True when `simple` may not be all that would run.
    """

    simple: tuple[tuple[str, ...], ...]
    words: frozenset[str]
    opaque: bool


def parse(command: str) -> ShellCommand:
    """Take a shell command apart; never raises."""
    words = frozenset(_basename(word) for word in _WORD.findall(command.replace("\\", "")))
    # Quotes hidden inside a word (r''m) hide it from the line above; this reading sees through them.
    words |= frozenset(_basename(word) for word in _WORD.findall(re.sub(r"[\\'\"]", "", command)))
    # A line may go on after a backslash, or a comment may end there: both readings count.
    words |= frozenset(_basename(word) for word in _WORD.findall(re.sub(r"\\\n|[\\'\"]", "", command)))
    if any(char in command for char in "$`\0"):  # substitution: more may run than what stands here
        simple, _ = _split(re.sub(r"[`$\0]", " ", command))
        return ShellCommand(simple=tuple(simple), words=words, opaque=True)
    simple, opaque = _split(command)
    return ShellCommand(simple=tuple(simple), words=words, opaque=opaque or "\\\n" in command)


def _split(command: str) -> tuple[list[tuple[str, ...]], bool]:
    lexer = shlex.shlex(
        command.replace("\r", "\n").replace("\n", " ; "), posix=True, punctuation_chars=";&|()<>"
    )
    lexer.commenters = ""
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # unbalanced quotes
        return [], True
    simple: list[tuple[str, ...]] = []
    opaque = False
    current: list[str] = []
    skip_target = False
    for token in [*tokens, ";"]:
        if token and all(char in _OPERATOR_CHARS for char in token):
            if "<" in token or ">" in token:
                skip_target = True
                opaque = opaque or "(" in token or "<<" in token
                continue
            if current:
                words, unsure = _strip(current)
                opaque = opaque or unsure
                if words:
                    simple.append(words)
            current, skip_target = [], False
        elif skip_target:
            skip_target = False
        else:
            current.append(token)
    return simple, opaque or not simple


def _strip(words: list[str]) -> tuple[tuple[str, ...], bool]:
    """Remove what stands before the command word; tells whether that was certain."""
    unsure = False
    rest = list(words)
    while rest:
        head = _basename(rest[0])
        if _ASSIGNMENT.match(rest[0]):
            # PATH=, LD_PRELOAD= and friends change what the word means.
            unsure = unsure or rest[0].split("=", 1)[0].rstrip("+") in {
                "PATH",
                "LD_PRELOAD",
                "BASH_ENV",
                "ENV",
                "IFS",
            }
            rest.pop(0)
        elif head in _WRAPPERS:
            rest.pop(0)
            while rest and (rest[0].startswith("-") or re.fullmatch(r"[0-9.]+[smhd]?", rest[0])):
                unsure = True  # an option may take the next word as its value
                rest.pop(0)
        elif head in _RESERVED:
            unsure = True
            rest.pop(0)
        else:
            break
    if not rest:
        return (), unsure
    head = _basename(rest[0])
    unsure = unsure or head in _INTERPRETERS or any(char in rest[0] for char in "*?[~{")
    if head == "find":
        unsure = unsure or any(word in {"-exec", "-execdir", "-ok", "-okdir", "-delete"} for word in rest)
    return (head, *rest[1:]), unsure


def _basename(word: str) -> str:
    return word.rsplit("/", 1)[-1] or word
