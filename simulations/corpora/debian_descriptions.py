"""Fetch the descriptions of Debian's packages and write one file an owner, the maintainer or team of the packages.

    python simulations/corpora/debian_descriptions.py translation debian_it --language it
    agfl-simulate translation --set data.path=debian_it

translation: paragraphs in English and in another language (that of the Debian Description Translation Project);
summarization: the long description, and the line that sums it up. About 15 MB come from a Debian mirror, whose files
change with every point release: the SHA-256 of each is printed, to be kept with results. Descriptions are under the
license of their package. Names of maintainers become names of files, their mail addresses are dropped.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import lzma
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
Row = dict[str, str]
Owned = tuple[str, Row]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=["translation", "summarization"])
    parser.add_argument("output", type=Path, help="a new folder, for NAME.jsonl")
    parser.add_argument("--language", default="de", help="of the translations: de, fr, it and others; default de")
    parser.add_argument("--min-rows", type=int, default=200, help="leave out owners with fewer rows; default 200")
    parser.add_argument("--release", default="bookworm")
    parser.add_argument("--mirror", default=MIRROR)
    options = parser.parse_args()
    index = f"{options.mirror}/dists/{options.release}/main"
    try:
        maintainers = _maintainers(_fetch(f"{index}/binary-amd64/Packages.xz"))
        english = _descriptions(_fetch(f"{index}/i18n/Translation-en.xz"), "en")
        if options.task == "summarization":
            rows = summaries(maintainers, english)
        else:
            other = _descriptions(_fetch(f"{index}/i18n/Translation-{options.language}.bz2"), options.language)
            rows = translations(maintainers, english, other)
        _write(rows, options.output, options.min_rows)
    except (OSError, ValueError, lzma.LZMAError) as error:
        sys.exit(f"error: {error}")


class Description:
    """A package's description: its summary line, and its paragraphs."""

    def __init__(self, package: str, text: str) -> None:
        self.package = package
        self.summary, _, rest = text.partition("\n")
        paragraphs = re.split(r"^\s*\.\s*$", rest, flags=re.MULTILINE)
        self.paragraphs = [joined for paragraph in paragraphs if (joined := " ".join(paragraph.split()))]


def summaries(maintainers: dict[str, str], english: dict[str, Description]) -> Iterator[Owned]:
    """Yield each long description with its summary line."""
    for description in english.values():
        document = " ".join(description.paragraphs)
        if document and description.package in maintainers:
            yield maintainers[description.package], {"document": document, "summary": description.summary}


def translations(
    maintainers: dict[str, str], english: dict[str, Description], other: dict[str, Description]
) -> Iterator[Owned]:
    """Yield the summary lines, and the paragraphs where both languages have as many."""
    for digest, target in other.items():
        source = english.get(digest)
        if source is None or source.package not in maintainers:
            continue
        pairs = [(source.summary, target.summary)]
        if len(source.paragraphs) == len(target.paragraphs):
            pairs += zip(source.paragraphs, target.paragraphs, strict=True)
        for text, translation in pairs:
            if text and translation and text != translation:
                yield maintainers[source.package], {"source": text, "target": translation}


def _fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            packed: bytes = response.read()
    except OSError as error:
        raise OSError(f"{url}: {error}") from None
    print(f"{hashlib.sha256(packed).hexdigest()}  {url}", file=sys.stderr)
    content = bz2.decompress(packed) if url.endswith(".bz2") else lzma.decompress(packed)
    return content.decode("utf-8")


def _maintainers(packages: str) -> dict[str, str]:
    """Return the maintainer of each package, without the mail address."""
    return {entry["Package"]: entry["Maintainer"].split(" <")[0] for entry in _entries(packages)}


def _descriptions(translation: str, language: str) -> dict[str, Description]:
    """Return descriptions by the digest of the English one."""
    found = ((entry, entry.get(f"Description-{language}")) for entry in _entries(translation))
    return {entry["Description-md5"]: Description(entry["Package"], text) for entry, text in found if text}


def _entries(index: str) -> Iterator[dict[str, str]]:
    """Yield the entries of a Debian control file (deb822): `Key: value`, and lines that go on with the value."""
    for paragraph in index.split("\n\n"):
        entry: dict[str, str] = {}
        key = ""
        for line in paragraph.split("\n"):
            if line.startswith((" ", "\t")):
                entry[key] += "\n" + line[1:]
            elif line:
                key, _, value = line.partition(":")
                entry[key] = value.strip()
        if entry:
            yield entry


def _write(rows: Iterator[Owned], folder: Path, min_rows: int) -> None:
    """Write the owners with at least `min_rows` different rows; a row counts for whom it comes first."""
    owners: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for owner, row in rows:
        line = json.dumps(row, ensure_ascii=False)
        if line not in seen:
            seen.add(line)
            owners.setdefault(re.sub(r"[^A-Za-z0-9._-]+", "-", owner).strip("-."), []).append(row)
    kept = {owner: own for owner, own in owners.items() if owner and len(own) >= min_rows}
    folder.mkdir(parents=True)
    for owner, own in kept.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in own)
        (folder / f"{owner}.jsonl").write_text("".join(lines), "utf-8")
    print(f"{folder}: {len(kept)} owners, {sum(map(len, kept.values()))} rows")


if __name__ == "__main__":
    main()
