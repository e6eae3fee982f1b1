"""Which proxy of the environment leads to a server, settled here: libraries differ, and stop at what they cannot read.

https_proxy before all_proxy, lower case before upper case, as curl has it; http_proxy is for addresses without TLS, of
which there are none here. no_proxy: names with all below them, with or without a leading dot or `*.`, addresses and
networks of both families, each with a port if only that is meant, and `*`. This machine itself is never asked for
through a proxy. The proxy passes TLS on and sees nothing but addresses and sizes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

from agfl_models.errors import TransportError

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """url: with the name and password for it, if it needs them. shown: without. variable: what named it."""

    url: str
    shown: str
    variable: str


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that leads to a server, or None where it is reached without one.

    Raises:
        TransportError: the variable names none that can be used.
    """
    variable = next((name for name in _VARIABLES if environment.get(name, "").strip()), None)
    if variable is None or is_this_machine(host):
        return None
    exceptions = next((value for name in _EXCEPTIONS if (value := environment.get(name, "").strip())), "")
    if any(_covers(entry, host, port) for entry in re.split(r"[\s,;]+", exceptions) if entry):
        return None
    return _proxy(variable, environment[variable].strip().strip("\"'"), host)


def is_this_machine(host: str) -> bool:
    """Whether a name or an address is one of the loopback interface."""
    name = _plain(host)
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _proxy(variable: str, value: str, host: str) -> Proxy:
    parts, problem = None, "a malformed address"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        if parts.scheme not in _PORTS:
            problem = f"one of scheme {parts.scheme}"
        elif parts.hostname and parts.path in ("", "/") and not parts.query and not parts.fragment:
            place = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            shown = f"{place}:{parts.port or _PORTS[parts.scheme]}"
            return Proxy(f"{parts.scheme}://{_credentials(parts)}{shown}", shown, variable)
    except ValueError:
        pass
    raise TransportError(
        "AGFL-TRANSPORT-002",
        f"{variable}: must name a proxy as http://HOST:PORT or https://HOST:PORT, got {problem}; "
        f"NO_PROXY={host} goes to the server without it",
    )


def _credentials(parts: SplitResult) -> str:
    return f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether an entry of no_proxy means this server; one that cannot be read means none."""
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    name, only_port = _divided(entry)
    if only_port is not None and only_port != port:
        return False
    address = _address(_plain(host))
    network = _network(_plain(name))
    if address is not None and network is not None:
        return address.version == network.version and address in network
    suffix, plain = _plain(name).removeprefix("*").removeprefix("."), _plain(host)
    if "*" in suffix:
        return fnmatchcase(plain, suffix)
    return bool(suffix) and (plain == suffix or (address is None and plain.endswith(f".{suffix}")))


def _divided(entry: str) -> tuple[str, int | None]:
    """Return name and port of NAME:PORT or [ADDRESS]:PORT; an address of IPv6 without brackets has no port."""
    found = re.fullmatch(r"(\[[^]]*\](?:/\d+)?|[^:\[\]]*):(\d{1,5})", entry)
    return (found[1], int(found[2])) if found is not None else (entry, None)


def _plain(name: str) -> str:
    """Return a name as it is compared: lower case, without brackets, scope and the dot at its end."""
    name = re.sub(r"^\[([^]]*)\]", r"\1", name.strip().lower())
    return re.sub(r"%[^/]*", "", name).rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None
