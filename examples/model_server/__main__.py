"""Run a model server: `python -m examples.model_server --key-file FILE [--model scripted|local]`.

Prints its address on the first line. Ends at SIGTERM; with `--with-parent` also when standard input closes.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from examples.model_server import local
from examples.model_server.scripted import ScriptedModel
from examples.model_server.server import Model, ModelServer


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="examples.model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes any")
    parser.add_argument(
        "--key-file", type=Path, required=True, help="file with the key that callers must have"
    )
    parser.add_argument("--log", type=Path, help="file to append one JSON line a request to")
    parser.add_argument("--model", choices=("scripted", "local"), default="scripted")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    model: Model = local.LocalModel() if options.model == "local" else ScriptedModel()
    server = ModelServer(
        options.port, model, key=options.key_file.read_text(encoding="ascii").strip(), log=options.log
    )

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown, name="stop").start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if options.with_parent:
        threading.Thread(target=_follow_parent, args=(stop,), name="parent", daemon=True).start()
    print(server.url, flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    return 0


def _follow_parent(stop: Callable[[], None]) -> None:
    sys.stdin.read()
    stop()


if __name__ == "__main__":
    sys.exit(main())
