"""`kars`: run the command line, and turn what went wrong into one message and one exit code."""

import logging
import os
import sys

from kars_common.errors import KarsError

from kars_cli import app, reporting
from kars_cli.exits import Exit


def main() -> None:
    """Run and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC writes to standard error by itself
    sys.exit(run())


def run() -> int:
    """Run the command line and return its exit code."""
    logging.getLogger().addHandler(logging.NullHandler())  # what matters is raised, and shown once
    try:
        app.build()()
    except KarsError as exc:
        reporting.show(exc, reporting.errors_console())
        return reporting.exit_code(exc)
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        # Whoever read us (head, less) has enough; a second error at exit would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else Exit.REFUSED if exc.code else Exit.OK
    return Exit.OK


if __name__ == "__main__":
    main()
