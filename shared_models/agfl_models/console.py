"""How every command talks to a person: one line on stderr for an error, exit code 2, never a traceback."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import typer

from agfl_models.errors import AgflError
from agfl_models.version import software

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_SETTINGS = {"help_option_names": ["-h", "--help"]}
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def new_app(help_text: str) -> typer.Typer:
    """Return a command-line application with the settings that all four commands share."""
    return _App(
        help=help_text,
        epilog="--version prints the version; -h after any command says what it takes.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
    )


class _App(typer.Typer):
    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandT], CommandT]:
        """As Typer's, for an application of one command, too, which looks at the settings of that alone."""
        return super().command(name, **{"context_settings": _SETTINGS, **settings})


def run_app(app: Callable[[], object]) -> None:
    """Run a command; print an `AgflError`, or what the system refused, as one line and exit 2; exit 130 on a signal."""
    if sys.argv[1:] == ["--version"]:
        print(f"agfl {software()}")
        return
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        app()
    except AgflError as error:
        fail(str(error))
    except OSError as error:  # no permission, a full disk, a file where a folder must be
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def fail(message: str) -> None:
    """Print one line on stderr and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
