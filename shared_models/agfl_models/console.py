"""How every command talks to a person: one line on stderr for an error, exit code 2, never a traceback."""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
import typer

from agfl_models import stop_signal
from agfl_models.errors import AgflError, MachineError, UsageError
from agfl_models.version import VERSION

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_SETTINGS = {"help_option_names": ["-h", "--help"]}
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value, for a machine.")]
LogFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Keep what is said here in a file, too.")]
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_LOG_BYTES, _OLDER_LOGS = 10_000_000, 3  # whoever fills a server's log does not fill its disk
_log = logging.getLogger("agfl")  # has handlers for files only; the terminal's is the root's


def new_app(help_text: str) -> typer.Typer:
    """Return a command-line application with the settings that all commands share."""
    return _App(
        help=help_text,
        epilog="--version prints the version; -h after any command says what it takes.",
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
    _open_standard_streams()
    if platform.system() == "Windows":
        rule = "Windows is not supported, since it has neither the locks nor the file modes that keys need; use WSL 2"
        fail(MachineError("AGFL-MACHINE-001", rule))
    if sys.argv[1:] == ["--version"] or (len(sys.argv) == 3 and sys.argv[2] == "--version"):
        print(f"agfl {VERSION}")
        return
    stop_signal.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        if isinstance(app, typer.Typer):
            app = _in_one_line(typer.main.get_command(app))
        app()
    except AgflError as error:
        fail(error)
    except OSError as error:  # no permission, a full disk, a file where a folder must be
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(MachineError("AGFL-MACHINE-002", what))
    except KeyboardInterrupt:
        stop_signal.close()
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _open_standard_streams() -> None:
    """Put the null device where a service manager closed a standard stream, whose number a file of ours would get."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def fail(error: AgflError) -> None:
    """Print one line on stderr, note it in the log file if there is one, and exit with code 2."""
    line = f"error: {' '.join(str(error).split())}"
    for handler in _log.handlers:
        handler.handle(_log.makeRecord(_log.name, logging.ERROR, "", 0, line, (), None))
    print(line, file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def log_to(path: Path | None) -> None:
    """Write what is logged to a file, too, with date and time zone; it and three older ones take 10 MB each at most.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        return
    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_OLDER_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S%z"))
    _log.addHandler(handler)


def _in_one_line(command: click.Command) -> Callable[[], None]:
    """Return a function that runs a command and reports wrong arguments in one line, not in Typer's box."""
    _refuse_empty_paths(command)

    def run() -> None:
        try:
            status = command.main(standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as error:
            sys.exit(error.exit_code)  # the help is printed
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            of = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            hint = f"; {of} -h says what it takes" if of else ""
            fail(UsageError("AGFL-USAGE-001", f"{error.format_message().rstrip('.')}{hint}"))
        if isinstance(status, int):
            sys.exit(status)

    return run


def _refuse_empty_paths(command: click.Command) -> None:
    """Let no path be "", as an unset shell variable leaves it: to `pathlib` that is the folder one stands in."""
    for sub in getattr(command, "commands", {}).values():
        _refuse_empty_paths(sub)
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            setattr(parameter.type, "convert", partial(_convert, parameter.type.convert))  # noqa: B010


def _convert(
    convert: Callable[[Any, click.Parameter | None, click.Context | None], Any],
    value: Any,
    parameter: click.Parameter | None,
    context: click.Context | None,
) -> Any:
    if isinstance(value, str) and not value.strip():
        name = "" if parameter is None else f"{parameter.opts[0]}: "
        rule = "must name a file or folder"
        raise UsageError("AGFL-USAGE-002", f"{name}{rule}, got {value!r}; is a shell variable not set?")
    return convert(value, parameter, context)
