"""A pretrained model's tokenizer gives the ids of transformers, without what it would add, cut or fill up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_pretrained import ARCHITECTURES, write_pretrained

from agfl_models.errors import PretrainedError
from agfl_models.huggingface.config import Architecture
from agfl_models.huggingface.folder import PretrainedFolder, transformers_library
from agfl_models.huggingface.tokenizer import HuggingFaceTokenizer

TEXT = "the sea saw a ship, and no man knew when it came über das Meer 🙂"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("pretrained")
    return lambda kind: root / kind if (root / kind).exists() else write_pretrained(root / kind, kind)


@pytest.fixture(scope="module")
def tokenizer(folders: Callable[[str], Path]) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(PretrainedFolder(folders("llama")), "causal")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_ids_and_text_are_those_of_transformers(kind: str, folders: Callable[[str], Path]) -> None:
    folder, architecture = folders(kind), ARCHITECTURES[kind]
    ours = HuggingFaceTokenizer(PretrainedFolder(folder), architecture)
    theirs = transformers_library().AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(TEXT)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert len(ids) > 8, "the file's own limit does not hold"
    assert ours.decode(ids) == theirs.decode(ids)
    assert "".join(ours.decode_stream(ids)) == ours.decode(ids)
    assert ours.encode("") == []


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_byte_level_text_comes_back(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.decode_stream(ids)) == text
    assert b"".join(tokenizer.token_bytes[token_id] for token_id in ids) == text.encode()
    assert tokenizer.encode(text) == ids
    assert len(offsets) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_offsets_are_characters_of_the_text(folders: Callable[[str], Path]) -> None:
    tokenizer = HuggingFaceTokenizer(PretrainedFolder(folders("bert")), "encoder")
    ids, offsets = tokenizer.encode_with_offsets("Ein Schiff: über 🙂 the SEA")
    words = ["Ein Schiff: über 🙂 the SEA"[start:end] for start, end in offsets]
    assert "".join(words) == "EinSchiff:über🙂theSEA"
    assert words[-1] == "SEA"
    assert len(ids) == len(offsets)


def test_the_name_of_a_special_token_in_a_text_is_text(tokenizer: HuggingFaceTokenizer) -> None:
    ids = tokenizer.encode("a</s>b<pad>")
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "a</s>b<pad>"
    assert "".join(tokenizer.decode_stream([tokenizer.bos_id, *ids, tokenizer.eos_id])) == "a</s>b<pad>"
    assert tokenizer.token_bytes[tokenizer.eos_id] == b""


def test_what_utf_8_cannot_hold_becomes_a_question_mark(tokenizer: HuggingFaceTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_an_id_of_the_model_that_is_no_token_is_no_text(tokenizer: HuggingFaceTokenizer) -> None:
    ids = tokenizer.encode("a man")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 1]) == "a man"
    assert "".join(tokenizer.decode_stream([*ids[:1], tokenizer.vocab_size + 1, *ids[1:]])) == "a man"


@pytest.mark.parametrize(
    ("kind", "bos", "eos", "pad"),
    [
        ("llama", "<s>", "</s>", "<pad>"),
        ("t5", "<pad>", "</s>", "<pad>"),  # a T5 decoder begins with padding
        ("bert", "[CLS]", "[SEP]", "[PAD]"),
        ("roberta", "<s>", "</s>", "<pad>"),
    ],
)
def test_special_ids_are_those_that_the_model_knows(
    kind: str, bos: str, eos: str, pad: str, folders: Callable[[str], Path]
) -> None:
    theirs = transformers_library().AutoTokenizer.from_pretrained(folders(kind))
    ours = HuggingFaceTokenizer(PretrainedFolder(folders(kind)), ARCHITECTURES[kind])
    assert [ours.bos_id, ours.eos_id, ours.pad_id] == theirs.convert_tokens_to_ids([bos, eos, pad])


@pytest.mark.parametrize(
    ("written", "numbers", "bos"),
    [
        ({"bos_token": {"content": "<s>"}}, {}, "<s>"),  # as older files have it
        ({"bos_token": None}, {"bos_token_id": 7}, 7),  # Qwen's
        ({"bos_token": None}, {"bos_token_id": None}, "</s>"),  # GPT-2's
    ],
)
def test_special_ids_are_found_however_they_are_written(
    written: dict[str, object],
    numbers: dict[str, object],
    bos: str | int,
    folders: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(folders("llama"), tmp_path / "model")
    for name, changes in (("tokenizer_config.json", written), ("config.json", numbers)):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    theirs = transformers_library().AutoTokenizer.from_pretrained(folders("llama"))
    found = HuggingFaceTokenizer(PretrainedFolder(folder), "causal").bos_id
    assert found == (theirs.convert_tokens_to_ids(bos) if isinstance(bos, str) else bos)


@pytest.mark.parametrize(
    ("name", "content", "architecture", "line"),
    [
        ("tokenizer.json", "{}", "causal", "model: cannot be used: Exception: "),
        ("tokenizer_config.json", "[]", "causal", "tokenizer_config.json: must hold a JSON object, got list"),
        ("tokenizer_config.json", "{", "causal", "tokenizer_config.json: cannot be read as JSON: "),
        (
            "config.json",
            '{"vocab_size": 299}',
            "causal",
            "tokenizer.json: must have at most the model's 299 ids, got 300",
        ),
        ("tokenizer_config.json", "{}", "encoder", "tokenizer_config.json: must name a cls_token, found none"),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(
    name: str, content: str, architecture: Architecture, line: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders("llama"), tmp_path / "model")
    (folder / name).write_text(content)
    if architecture == "encoder":
        (folder / "config.json").write_text("{}")
    with pytest.raises(PretrainedError) as caught:
        HuggingFaceTokenizer(PretrainedFolder(folder), architecture)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
