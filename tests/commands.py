"""Our commands as processes of their own, forked from one that has loaded PyTorch and Flower already.

A new interpreter needs three seconds of a core before it does anything, and the tests start hundreds. What must not
hold through what was loaded before (`--help`, a closed standard input) starts a new one instead. What a script starts,
workers of its simulations too, is forked from the same process, and all workers of a test run share it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]
MODULES = {
    "agfl": "agfl.cli",
    "agfl-client": "agfl_client.cli",
    "agfl-model": "agfl_models.cli",
    "agfl-server": "agfl_server.cli",
    "agfl-simulate": "agfl_sim.cli",
}
forkserver = multiprocessing.get_context("forkserver")
# With what they load late, too: PyTorch's compiler, which DDP loads, takes a second.
_LATE = (
    *("agfl_client.transport.supernode", "agfl_server.transport.superlink", "torch._dynamo", "sacrebleu"),
    *("httpcore", "mnemonic", "anyio._backends._asyncio", "uvicorn.loops.asyncio", "uvicorn.lifespan.off"),
    *("numpy.ctypeslib", "rich._emoji_codes"),
)
_OWN_LATE = (
    *("agfl_client.keys", "agfl_client.parallel.elsewhere", "agfl_client.parallel.sharded", "agfl_models.inference"),
    *("agfl_protocol.identity.fingerprint", "agfl_protocol.identity.roster_file", "agfl_server.transport.health"),
    *("agfl_server.federation.authority", "agfl_server.federation.federation_folder", "agfl_server.rounds.attendance"),
    *("agfl_server.report.run_report", "agfl_sim.progress", "agfl_sim.report.report", "agfl_sim.whole_run"),
)
forkserver.set_forkserver_preload(
    [*MODULES.values(), "agfl_client.app", "agfl_server.app", "agfl_sim.run", *_LATE, *_OWN_LATE, "tests.preloaded"]
)
_forkserver: Any = multiprocessing.forkserver._forkserver  # nothing public shares it
_ADDRESS = "AGFL_TEST_FORKSERVER"


def share_between_workers() -> None:
    """Load everything once for all workers that are about to start, who find it by the environment."""
    _forkserver.ensure_running()
    os.environ[_ADDRESS] = _forkserver._forkserver_address


def _use(address: str) -> None:
    """Fork from the process at `address`, and start none."""
    _forkserver._forkserver_address = address
    _forkserver._forkserver_alive_fd = _forkserver._forkserver_alive_fd or os.open(os.devnull, os.O_RDONLY)
    _forkserver.ensure_running = lambda: None


if "PYTEST_XDIST_WORKER" in os.environ and _ADDRESS in os.environ:
    _use(os.environ[_ADDRESS])


class Started:
    """A command under way, with what `subprocess.Popen` says of one."""

    def __init__(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Start one of our commands or a script; what it prints goes to `log`, or to `stdout` and `stderr`."""
        self.args = [str(part) for part in command]
        (out, its_out), (err, its_err) = forkserver.Pipe(duplex=False), forkserver.Pipe(duplex=False)
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in (out, err))
        if log is not None:
            self._close()
        arguments = (self.args, cwd or Path.cwd(), dict(os.environ if env is None else env), its_out, its_err, log)
        self._process = forkserver.Process(target=_main, args=arguments)
        self._process.start()
        for end in (out, err, its_out, its_err):
            end.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None as long as it runs; minus the signal that ended it."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raises `TimeoutExpired`."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what is left of stdout and stderr."""
        read: list[str] = []
        thread = threading.Thread(target=lambda: read.append(self.stdout.read()))
        thread.start()
        timer = threading.Timer(timeout or 600, self.kill)
        timer.start()
        errors = self.stderr.read()
        thread.join()
        timer.cancel()
        self.wait(10)
        self._close()
        return read[0], errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait(60)
        self._close()

    def _close(self) -> None:
        self.stdout.close()
        self.stderr.close()


class _StartedByScript(Started):
    """What a script started by `subprocess`: commands of ours and scripts, to files or to pipes."""

    def __init__(
        self, *command: str, cwd: Path | None = None, stdout: Any = None, stderr: Any = None, text: bool = False
    ) -> None:
        super().__init__(*command, cwd=cwd, log=None if stdout == subprocess.PIPE else Path(stdout.name))
        self._is_text, self._shows_errors = text, stderr is None

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[Any, Any]:  # type: ignore[override]
        """As that of `subprocess.Popen`, but that one which takes too long is killed."""
        output, errors = super().communicate(timeout)
        if self._shows_errors:
            sys.stderr.write(errors)
        return (output, errors) if self._is_text else (output.encode(), errors.encode())


class _Popen(subprocess.Popen[Any]):
    """Forks what of ours a script starts; anything else is started as ever."""

    def __new__(cls, args: Any, *rest: Any, **options: Any) -> Any:
        words = [str(word) for word in args]
        if Path(words[0]).name in MODULES:
            return _StartedByScript(Path(words[0]).name, *words[1:], **options)
        if words[0] == sys.executable and Path(words[1]).is_relative_to(ROOT):
            return _StartedByScript(*words[1:], **options)
        return super().__new__(cls)


def run(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run one of our commands, or a script, to its end."""
    with Started(*command, cwd=cwd, env=env) as process:
        output, errors = process.communicate(timeout_s)
    return subprocess.CompletedProcess(process.args, process.wait(), output, errors)


def _main(
    command: list[str], cwd: Path, environment: dict[str, str], out: Connection, err: Connection, log: Path | None
) -> None:
    ends = (out.fileno(), err.fileno()) if log is None else (os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),) * 2
    for end, number in zip(ends, (1, 2), strict=True):
        os.dup2(end, number)
    out.close()
    err.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # Those that were inherited belong to what the test's own process writes to.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    if command[0] in MODULES:
        importlib.import_module(MODULES[command[0]]).main()
    else:
        _use(_forkserver._forkserver_address)
        subprocess.Popen = _Popen  # type: ignore[misc]
        process_link: Any = importlib.import_module("agfl_sim.engines.workers.process_link")
        process_link.launch = importlib.import_module("tests.forked_workers").ForkedWorker
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
