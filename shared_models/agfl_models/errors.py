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
     |- ImplausibleSum  an opened sum is not one of honest owners: not used, never asked for again
"""

from __future__ import annotations

_MAX_LINE = 2000


class AgflError(Exception):
    """Base of all errors that the commands print as one line, with exit code 2 and no traceback.

    Its text is one bounded line whatever it quotes: it is printed, logged, and sent to the other side.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _MAX_LINE:
            text = f"{text[: _MAX_LINE - 200]} ... {text[-150:]}"
        return " ".join(text.splitlines())


class ConfigError(AgflError):
    """A configuration breaks a rule."""


class DataError(AgflError):
    """A node's text cannot be read or is empty."""


class NoRows(DataError):
    """A node's files hold no row at all."""


class PretrainedError(AgflError):
    """The folder of a pretrained model cannot be used."""


class CheckpointError(AgflError):
    """A checkpoint cannot be written, cannot be read, or belongs to another run."""


class IdentityError(AgflError):
    """A key, certificate or node name is missing, malformed or not admitted."""


class TransportError(AgflError):
    """The other side cannot be reached, or answers with something this version does not speak."""


class WireError(AgflError):
    """A message breaks the protocol: wrong version, hash, shape or type."""


class RoundError(AgflError):
    """A round cannot be completed."""


class ImplausibleSum(RoundError):
    """An opened sum is none that honest owners have: one of them or more sent what no honest one sends.

    It is not used, and never asked for again, since it was seen.
    """
