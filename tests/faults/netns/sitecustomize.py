"""Fault: the attacker's sandbox stays in the host's network namespace.

Only that pod: two doors on port 8443 of one namespace would stop the demo before it could notice.
"""

import sys


def _apply() -> None:
    from kars_controller.platforms.local.isolation import namespaces

    unshare, join, bring_up = namespaces.unshare, namespaces.join, namespaces.bring_up_loopback

    def unshare_but_network(flags: int) -> None:
        if flags & ~namespaces.NEWNET:
            unshare(flags & ~namespaces.NEWNET)

    def join_but_network(namespace_fd: int, flag: int) -> None:
        if flag != namespaces.NEWNET:
            join(namespace_fd, flag)

    def bring_up_if_ours() -> None:
        try:
            bring_up()
        except OSError:
            return  # the host's own, and not ours to touch

    namespaces.unshare = unshare_but_network
    namespaces.join = join_but_network
    namespaces.bring_up_loopback = bring_up_if_ours


if "kars_controller.platforms.local.pod" in sys.orig_argv and sys.orig_argv[-1].endswith("/probe"):
    _apply()
