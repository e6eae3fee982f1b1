"""The errors a person can cause. Each message is one line that names the field, the rule and the value.

AgflError
 |- ConfigError       a run or model configuration breaks a rule
 |- DataError         a node's text cannot be read or is empty
 |   |- NoRows       it is empty
 |- PretrainedError   a pretrained model's folder cannot be used
 |- CheckpointError   a checkpoint cannot be written, read, or belongs to another run
 |- IdentityError     a key, certificate or node name is missing, malformed or not admitted
 |- TransportError    the other side cannot be reached or answers with something we do not speak
 |- WireError         a message breaks the protocol
 |- RoundError        a round cannot be completed
 |   |- ImplausibleSum  an opened sum is not one of honest owners: not used, never asked for again
 |- UsageError        a command is called wrongly
 |- RequestError      a call of a served model breaks a rule
 |- MachineError      the system refuses what a command needs

A rule has a code, AGFL-AREA-NNN, which stands in one place of the source and in docs/errors.md. It is never used again
for another rule, so tests, scripts and searches can rely on it; the sentence may be improved.
"""

from __future__ import annotations

from typing import ClassVar, Self

_MAX_LINE = 2000


class AgflError(Exception):
    """Base of all errors that the commands print as one line, with exit code 2 and no traceback.

    Its text is one bounded line whatever it quotes: it is printed, logged, and sent to the other side.

    area: the middle of its codes. code: of the rule that is broken. sentence: the text without the code.
    """

    area: ClassVar[str] = ""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, one_line(sentence)

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"

    @classmethod
    def of(cls, error: AgflError | BrokenRule, sentence: str) -> Self:
        """Return an error with another one's code, whose rule was broken, and a sentence that says more."""
        return cls(error.code, sentence)


class BrokenRule(ValueError):
    """What a validator raises: pydantic adds where it stands, and `validate` makes a ConfigError of it."""

    area: ClassVar[str] = "CONFIG"

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    @classmethod
    def of(cls, error: AgflError) -> Self:
        """Return the same rule, broken in a part of a configuration."""
        return cls(error.code, error.sentence)


def one_line(text: str) -> str:
    """Return a text, whoever wrote it, as one bounded line that steers no terminal and that can be encoded."""
    if len(text) > _MAX_LINE:
        text = f"{text[: _MAX_LINE - 200]} ... {text[-150:]}"
    line = " ".join(text.splitlines())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class ConfigError(AgflError):
    """A configuration breaks a rule."""

    area = "CONFIG"


class DataError(AgflError):
    """A node's text cannot be read or is empty."""

    area = "DATA"


class NoRows(DataError):
    """A node's files hold no row at all."""


class PretrainedError(AgflError):
    """The folder of a pretrained model cannot be used."""

    area = "PRETRAINED"


class CheckpointError(AgflError):
    """A checkpoint cannot be written, cannot be read, or belongs to another run."""

    area = "CHECKPOINT"


class IdentityError(AgflError):
    """A key, certificate or node name is missing, malformed or not admitted."""

    area = "IDENTITY"


class TransportError(AgflError):
    """The other side cannot be reached, or answers with something this version does not speak."""

    area = "TRANSPORT"


class WireError(AgflError):
    """A message breaks the protocol: wrong version, hash, shape or type."""

    area = "WIRE"


class RoundError(AgflError):
    """A round cannot be completed."""

    area = "ROUND"


class ImplausibleSum(RoundError):
    """An opened sum is none that honest owners have: one of them or more sent what no honest one sends.

    It is not used, and never asked for again, since it was seen.
    """


class UsageError(AgflError):
    """A command is called with arguments that it does not take."""

    area = "USAGE"


class RequestError(AgflError):
    """A call of a served model breaks a rule."""

    area = "REQUEST"


class MachineError(AgflError):
    """The system refuses what a command needs: a file, a port, memory."""

    area = "MACHINE"
