"""A small model of each task, untrained: what the tests hold equal does not depend on what a model knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from agfl_models import AutoGenModel
from agfl_models.files.store import save_model
from agfl_models.inference import User, open_model
from agfl_models.tasks import TaskConfig
from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.question_answering import QuestionAnsweringConfig
from agfl_models.tasks.summarization import SummarizationConfig
from agfl_models.tasks.text_classification import TextClassificationConfig
from agfl_models.tasks.translation import TranslationConfig
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_models.web.app import create_app
from agfl_models.web.asgi_server import AsgiServer
from agfl_models.web.facts import model_facts
from agfl_models.web.serve import LOOPBACK_NAMES

Serve: TypeAlias = Callable[[str], tuple[User, httpx.Client]]

# "th", "the", " the": enough to cut words up otherwise than bytes do.
TOKENIZER = BPETokenizerConfig(type="bpe", vocab_size=262, merges=((116, 104), (259, 101), (32, 260)))
DECODER: dict[str, Any] = {"vocab_size": 262, "dim": 16, "layers": [{"type": "attention"}, {"type": "ff"}]}
ENCODER = {**DECODER, "family": "encoder", "head": {"type": "span"}}
CLASSIFIER = {**ENCODER, "head": {"type": "classification", "num_classes": 3}}
ENCODER_DECODER = {
    **DECODER,
    "family": "encoder_decoder",
    "encoder": {"layers": [{"type": "rnn"}]},
    "layers": [{"type": "rnn"}, {"type": "attention", "cross": True}],
    "head": {"type": "language_model", "tied": False},
}
TASKS: tuple[tuple[dict[str, Any], TaskConfig], ...] = (
    (DECODER, LanguageModelingConfig(type="language_modeling", sequence_length=16)),
    (ENCODER_DECODER, TranslationConfig(type="translation", source_length=24, target_length=20, num_beams=2)),
    (ENCODER_DECODER, SummarizationConfig(type="summarization", source_length=32, target_length=12)),
    (ENCODER, QuestionAnsweringConfig(type="question_answering", context_length=48, max_answer_length=12)),
    (
        CLASSIFIER,
        TextClassificationConfig(type="text_classification", labels=("red", "green", "blue"), sequence_length=24),
    ),
)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return for each command of agfl-model that uses a model the run folder of one that it fits."""
    folders = {}
    for config, task in TASKS:
        assert task.command is not None
        folders[task.command] = tmp_path_factory.mktemp(task.command)
        model = AutoGenModel(config, seed=1)
        save_model(folders[task.command] / "model", model.config, model.state_dict(), task, TOKENIZER)
    return folders


@pytest.fixture
def serve(model_folders: dict[str, Path]) -> Iterator[Serve]:
    """Return the user of a command's model and a client of the server that has it."""
    with ExitStack() as stack:

        def start(command: str) -> tuple[User, httpx.Client]:
            path = model_folders[command]
            user, task = open_model(path)
            app = create_app(user, model_facts(path, user, task), LOOPBACK_NAMES)
            server = stack.enter_context(AsgiServer(app, "127.0.0.1", 0))
            client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
            return user, stack.enter_context(client)

        yield start
