"""A pretrained model's folder, as Hugging Face's `save_pretrained` writes it: what is read of it, and its fingerprint.

Nothing is downloaded, no code in the folder is run, and weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agfl_models.bounded import load_json
from agfl_models.errors import ConfigError, PretrainedError
from agfl_models.files.folder_kinds import folder_hint

CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer.json", "tokenizer_config.json"
COMPANIONS = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "chat_template.jinja")
WEIGHTS, PICKLED_WEIGHTS = "model*.safetensors*", "pytorch_model*.bin"  # one file, or an index and its parts

_MAX_JSON = 64 << 20  # characters: tokenizers of large vocabularies take 20 MB


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder that somebody on this machine named.

    Raises:
        PretrainedError: it is not there, or holds no model that can be read.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise PretrainedError("AGFL-PRETRAINED-001", f"pretrained: {self.path}: no such folder")
        for name, what in (
            (CONFIG_FILE, "the model's"),
            (TOKENIZER_FILE, "its tokenizer's, as AutoTokenizer saves it"),
        ):
            if not (self.path / name).is_file():
                hint = folder_hint(self.path) if name == CONFIG_FILE else ""
                raise PretrainedError(
                    "AGFL-PRETRAINED-002", f"pretrained: {self.path}: must hold {name}, {what}, found none{hint}"
                )
        if not self._weights:
            pickled = sorted(file.name for file in self.path.glob(PICKLED_WEIGHTS))
            found = f"{pickled[0]}, whose pickle could run code" if pickled else "none"
            raise PretrainedError(
                "AGFL-PRETRAINED-003", f"pretrained: {self.path}: must hold weights as model.safetensors, found {found}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the name and content of every file that is read."""
        names = (CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)
        files = [self.path / name for name in names if (self.path / name).is_file()] + self._weights
        try:
            digests = {file.name: _digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}
        except OSError as error:
            raise PretrainedError(
                "AGFL-PRETRAINED-004", f"pretrained: {self.path}: cannot be read: {error.strerror}"
            ) from None
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of one of the folder's JSON files; empty where there is no such file."""
        path = self.path / name
        try:
            content = load_json(path.read_text(encoding="utf-8"), _MAX_JSON) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise PretrainedError(
                "AGFL-PRETRAINED-005", f"pretrained: {path}: cannot be read as JSON: {str(error)[:200]}"
            ) from None
        if not isinstance(content, dict):
            raise PretrainedError(
                "AGFL-PRETRAINED-006", f"pretrained: {path}: must hold a JSON object, got {type(content).__name__}"
            )
        return content

    def error(self, error: Exception) -> PretrainedError:
        """Return what a library says about the folder as one line, cut to what a person reads."""
        reason = " ".join(str(error).split())[:200]
        return PretrainedError(
            "AGFL-PRETRAINED-007", f"pretrained: {self.path}: cannot be used: {type(error).__name__}: {reason}"
        )

    @property
    def companions(self) -> list[Path]:
        """The files that belong to a model beside its configuration and weights, as far as they are there."""
        return [self.path / name for name in COMPANIONS if (self.path / name).is_file()]

    @property
    def _weights(self) -> list[Path]:
        return sorted(self.path.glob(WEIGHTS))


def transformers_library() -> Any:
    """Return the library `transformers`, offline and without progress bars.

    Raises:
        ConfigError: the extra is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "AGFL-CONFIG-028",
            f"model.family: huggingface needs the extra `huggingface` (pip install 'agfl[huggingface]'): {reason}",
        ) from None
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return transformers


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """Return the SHA-256 of a file, which the owners of a simulation share: it is read again only if it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
