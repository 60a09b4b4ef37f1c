"""How errors are shown: what was refused, why, what to do next. Programs read exit code and reason."""

import sys
from collections.abc import Callable

from kars_common.errors import DeadlineExceededError, InvalidInputError, KarsError, UnavailableError
from rich.console import Console
from rich.markup import escape

from kars_cli.exits import Exit

_NEXT = {
    "platform_not_running": "start it: kars dev --detach",
    "svid_unavailable": "start the platform (kars dev --detach); its controller writes your identity",
    "unavailable": "see whether the controller runs: kars dev status",
    "deadline_exceeded": "see whether the controller runs: kars dev status",
    "schema_invalid": "correct the fields above and apply again",
    "document_malformed": "correct the document and apply again",
    "resource_not_found": "see what is there: kars get <kind> -A",
    "kind_not_served": "see what is served: kars get --help",
    "sandbox_not_found": "see which sandboxes there are: kars get karssandbox -A",
    "sandbox_not_running": "see why: kars describe karssandbox <name>",
    "router_not_running": "see why: kars logs <name> -c router",
    "port_refused": "the agent serves no chat (yet): kars logs <name>",
    "port_closed": "the agent serves no chat (yet): kars logs <name>",
    "approval_not_found": "see what waits: kars approvals list",
    "approval_closed": "somebody decided, or it expired: kars approvals list --all",
    "conflict": "somebody changed it meanwhile: read it again, then apply",
    "permission_denied": "this operator may not do that; the controller's audit log has the refusal",
}


CHAT_NOT_SERVED = ("port_refused", "port_closed")
"""Reasons with which the platform says that nothing listens on a sandbox's port."""


def exit_code(error: KarsError) -> Exit:
    """Return the exit code that stands for an error."""
    if error.reason in CHAT_NOT_SERVED:
        return Exit.REFUSED
    if isinstance(error, UnavailableError | DeadlineExceededError):
        return Exit.UNREACHABLE
    return Exit.REFUSED


def show(error: KarsError, console: Console, *, place: Callable[[str], str] | None = None) -> None:
    """Print an error.

    Args:
        error: what happened.
        console: where to.
        place: turns a field path into `file:line field`, when the input came from a file.
    """
    verb = "not reachable" if exit_code(error) is Exit.UNREACHABLE else "refused"
    if isinstance(error, InvalidInputError) and error.violations:
        verb = "not valid"
    console.print(f"[bold red]{verb}[/]: {escape(error.message)} [dim]\\[{error.reason}][/]", soft_wrap=True)
    for violation in error.violations:
        where = place(violation.field) if place is not None else violation.field
        console.print(f"  [bold]{escape(where)}[/]: {escape(violation.description)}", soft_wrap=True)
    for key, value in sorted(error.metadata.items()):
        console.print(f"  {escape(key)}: {escape(value)}", soft_wrap=True)
    advice = _NEXT.get(error.reason)
    if advice:
        console.print(f"  [cyan]next[/]: {escape(advice)}", soft_wrap=True)


def errors_console() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, highlight=False)


def interactive() -> bool:
    """Whether a person sits at both ends; nothing is ever asked otherwise."""
    return sys.stdin.isatty() and sys.stdout.isatty()
