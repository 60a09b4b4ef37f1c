"""Starts a program inside a network namespace: `<namespace file> <program> [<argument> ...]`.

Envoy connects to the internet from where it was started; a door that it opens elsewhere does not change that.
"""

import os
import sys

from kars_egress import namespaces


def main(arguments: list[str]) -> None:
    """Enter, then become the program."""
    namespace, *program = arguments
    namespaces.enter(namespace)
    os.execv(program[0], program)  # noqa: S606 - the supervisor's own command line


if __name__ == "__main__":
    main(sys.argv[1:])
