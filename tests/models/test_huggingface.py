"""A pretrained model behind our interface is what transformers makes of it: whole, step by step, adapted and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pretrained import ARCHITECTURES, CAUSAL, ENCODERS, SEQ2SEQ, TARGETS, quiet, write_pretrained
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import transformers_library
from agfl_models.huggingface.loading import auto_class, outline
from agfl_models.huggingface.lora import LoRAConfig
from agfl_models.huggingface.model import HuggingFaceModel
from agfl_models.layers.layer import State
from agfl_models.model.families import build_model
from agfl_models.model.generation import GenerationConfig, generate
from agfl_models.model.sequence_model import trained_parameters

LENGTHS = torch.tensor([7, 4, 1])
IDS_BT = torch.randint(5, 80, (3, 7), generator=torch.Generator().manual_seed(0))
MASK_BT = torch.arange(7)[None, :] < LENGTHS[:, None]
SOURCE_BS = torch.randint(5, 80, (3, 5), generator=torch.Generator().manual_seed(1))
SOURCE_MASK_BS = torch.arange(5)[None, :] < torch.tensor([5, 2, 3])[:, None]
SPAN, CLASSES = {"type": "span"}, {"type": "classification", "num_classes": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a kind of model, written once."""
    root = tmp_path_factory.mktemp("pretrained")
    return lambda kind: root / kind if (root / kind).exists() else write_pretrained(root / kind, kind)


@pytest.fixture
def config_of(folders: Callable[[str], Path]) -> Callable[..., HuggingFaceConfig]:
    def make(kind: str, *, lora: bool = False, **settings: Any) -> HuggingFaceConfig:
        architecture = ARCHITECTURES[kind]
        if architecture == "encoder":
            settings = {"head": SPAN, **settings}
        if lora:
            settings["lora"] = {"rank": 3, "targets": TARGETS[kind]}
        return HuggingFaceConfig(family="huggingface", architecture=architecture, folder=folders(kind), **settings)

    return make


@pytest.fixture
def model_of(config_of: Callable[..., HuggingFaceConfig]) -> Callable[..., HuggingFaceModel]:
    def make(kind: str, *, seed: int = 0, **settings: Any) -> HuggingFaceModel:
        model = build_model(config_of(kind, **settings), seed)
        assert isinstance(model, HuggingFaceModel)
        with torch.no_grad():
            for name, parameter in trained_parameters(model).items():
                if name.endswith(".b"):  # an adapter that has learned something
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        return model

    return make


def library_model(config: HuggingFaceConfig, folder: Path | None = None) -> Any:
    """Return what a person gets who loads the folder with transformers."""
    with quiet():
        return getattr(transformers_library(), auto_class(config)).from_pretrained(folder or config.folder).eval()


def inputs_of(kind: str) -> dict[str, Tensor]:
    return {"source": SOURCE_BS, "source_mask": SOURCE_MASK_BS} if kind in SEQ2SEQ else {}


def library_inputs(kind: str) -> dict[str, Tensor]:
    if kind in SEQ2SEQ:
        return {"input_ids": SOURCE_BS, "attention_mask": SOURCE_MASK_BS.long(), "decoder_input_ids": IDS_BT}
    return {"input_ids": IDS_BT, "attention_mask": MASK_BT.long()}


def start(model: HuggingFaceModel, kind: str) -> tuple[State, ...]:
    return model.initial_state(3, model.encode(SOURCE_BS, SOURCE_MASK_BS) if kind in SEQ2SEQ else None)


@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_logits_are_those_of_transformers(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind)
    with torch.no_grad():
        expected = library_model(model.config)(**library_inputs(kind)).logits
        found = model(IDS_BT, None if kind in SEQ2SEQ else MASK_BT, **inputs_of(kind))
    real = torch.ones_like(MASK_BT) if kind in SEQ2SEQ else MASK_BT
    assert torch.equal(found[real], expected[real])


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoders_head_is_that_of_transformers(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    span, classes = model_of(kind), model_of(kind, head=CLASSES)
    with torch.no_grad():
        expected = span.inner(**library_inputs(kind))
        logits_BT2 = span(IDS_BT, MASK_BT)
        assert torch.equal(logits_BT2[..., 0][MASK_BT], expected.start_logits[MASK_BT])
        assert torch.equal(logits_BT2[..., 1][MASK_BT], expected.end_logits[MASK_BT])
        assert (logits_BT2[~MASK_BT].softmax(-1) == 0.5).all()
        assert logits_BT2[..., 0].softmax(-1)[~MASK_BT].sum() == 0, "no answer starts in padding"
        assert torch.equal(classes(IDS_BT, MASK_BT), classes.inner(**library_inputs(kind)).logits)
        assert classes(IDS_BT, MASK_BT).shape == (3, 3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_reads_types_as_transformers_does(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    types_BT = torch.arange(IDS_BT.numel()).reshape(IDS_BT.shape) % 3
    model = model_of(kind)
    with torch.no_grad():
        expected = model.inner(**library_inputs(kind), token_type_ids=types_BT.clamp(max=1))
        found = model(IDS_BT, MASK_BT, types_BT=types_BT)
        assert torch.equal(found[..., 0][MASK_BT], expected.start_logits[MASK_BT])
        assert not torch.equal(found, model(IDS_BT, MASK_BT))


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_new_head_is_drawn_from_the_seed(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    before = torch.random.get_rng_state()
    models = [model_of(kind, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    heads = [nn.utils.parameters_to_vector(model.inner.qa_outputs.parameters()) for model in models]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_training_mode_draws_no_random_numbers(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind, lora=True).train()
    before = torch.random.get_rng_state()
    outputs = [model(IDS_BT, MASK_BT, **inputs_of(kind)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_at_the_end_changes_nothing(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind)
    with torch.no_grad():
        padded = model(IDS_BT, MASK_BT, **inputs_of(kind))
        for row, length in enumerate(LENGTHS.tolist()):
            source = {key: value[row : row + 1] for key, value in inputs_of(kind).items()}
            alone = model(IDS_BT[row : row + 1, :length], **source)
            assert torch.allclose(padded[row, :length], alone[0], atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_step_by_step_equals_whole(kind: str, lora: bool, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind, lora=lora)
    with torch.no_grad():
        whole_BTV = model(IDS_BT, **inputs_of(kind))
        state = start(model, kind)
        for t in range(IDS_BT.shape[1]):
            before = [[part.clone() for part in layer] for layer in state]
            logits_BV, after = model.step(IDS_BT[:, t], state)
            assert torch.allclose(logits_BV, whole_BTV[:, t], atol=1e-5)
            for layer, copies in zip(state, before, strict=True):
                assert all(torch.equal(part, copy) for part, copy in zip(layer, copies, strict=True))
            state = after
        assert all(part.shape[0] == 3 for layer in state for part in layer)


@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_a_reordered_state_goes_on_as_those_rows_would(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model, rows = model_of(kind), torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        state = start(model, kind)
        for t in range(3):
            expected_BV, state = model.step(IDS_BT[:, t], state)
        reordered = tuple(tuple(part.index_select(0, rows) for part in layer) for layer in state)
        expected_BV, _ = model.step(IDS_BT[:, 3], state)
        found_BV, _ = model.step(IDS_BT[rows, 3], reordered)
    assert torch.allclose(found_BV, expected_BV[rows], atol=1e-5)


@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_greedy_decoding_is_that_of_transformers(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind)
    prompts = (
        [[2]] * 3 if kind in SEQ2SEQ else [row[:length] for row, length in zip(IDS_BT.tolist(), LENGTHS, strict=True)]
    )
    memory = model.encode(SOURCE_BS, SOURCE_MASK_BS) if kind in SEQ2SEQ else None
    found = generate(model, prompts, GenerationConfig(max_new_tokens=8), eos_id=1, memory=memory)
    library, settings = library_model(model.config), {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    for row, prompt in enumerate(prompts):
        if kind in SEQ2SEQ:
            source = SOURCE_BS[row : row + 1, : int(SOURCE_MASK_BS[row].sum())]
            new = library.generate(source, attention_mask=torch.ones_like(source), **settings)[0, 1:]
        else:
            ids = torch.tensor([prompt])
            new = library.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :]
        expected = new.tolist()
        assert found[row] == (expected[: expected.index(1)] if 1 in expected else expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "bert"])
def test_the_first_layers_are_the_pretrained_ones(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind, num_layers=1)
    whole = library_model(model.config)
    name = {"gpt2": "transformer.h", "bert": "bert.encoder.layer"}.get(kind, "model.layers")
    del whole.get_submodule(name)[1:]
    assert len(model.inner.get_submodule(name)) == 1
    if kind == "bert":
        whole.qa_outputs = model.inner.qa_outputs
        with torch.no_grad():
            assert torch.equal(model(IDS_BT)[..., 0], whole(input_ids=IDS_BT).start_logits)
    else:
        with torch.no_grad():
            assert torch.equal(model(IDS_BT), whole(input_ids=IDS_BT, use_cache=False).logits)


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_the_first_layers_of_both_stacks_are_kept(kind: str, model_of: Callable[..., HuggingFaceModel]) -> None:
    model = model_of(kind, num_layers=1)
    both = (model.inner.get_encoder(), model.inner.get_decoder())
    assert [len(stack.block if kind == "t5" else stack.layers) for stack in both] == [1, 1]
    assert len(model.step(IDS_BT[:, 0], start(model, kind))[1]) == 1 + 1  # what the encoder read, and a layer


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_counts_need_no_weights_and_are_those_of_the_model(
    kind: str, lora: bool, config_of: Callable[..., HuggingFaceConfig], model_of: Callable[..., HuggingFaceModel]
) -> None:
    config, model = config_of(kind, lora=lora), model_of(kind, lora=lora)
    parts = list(config.parts(context_length=16))
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    assert config.num_parameters() == sum(part.parameters for part in parts) == trained
    assert all(parameter.is_meta for parameter in outline(config).parameters())
    assert config.flops_per_token(16) > config.flops_per_token(8) > 0


def test_flops_are_those_of_the_matrix_products(config_of: Callable[..., HuggingFaceConfig]) -> None:
    config, library = config_of("llama"), library_model(config_of("llama"))
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48  # queries, keys, values and output; gate, up and down
    head = 32 * library.config.vocab_size
    assert config.flops_per_token(16) == 2 * (2 * layer + head) + 2 * 4 * 16 * 32


def test_a_state_space_model_is_trained_and_not_decoded(tmp_path: Path) -> None:
    folder = write_pretrained(tmp_path / "mamba", "mamba")
    config = HuggingFaceConfig(
        family="huggingface", architecture="causal", folder=folder, lora=LoRAConfig(rank=2, targets=("in_proj",))
    )
    model = HuggingFaceModel(config)
    model(IDS_BT).sum().backward()
    assert all(parameter.grad is not None for parameter in trained_parameters(model).values())
    with pytest.raises(ConfigError, match=r"got MambaForCausalLM.*AGFL-CONFIG-035"):
        model.initial_state(1)


def test_a_model_is_refused_what_it_does_not_do(model_of: Callable[..., HuggingFaceModel]) -> None:
    causal, seq2seq, encoder = model_of("llama"), model_of("t5"), model_of("roberta")
    with pytest.raises(ConfigError, match=r"^source: .*AGFL-CONFIG-036"):
        seq2seq(IDS_BT)
    with pytest.raises(ConfigError, match=r"^source: .*got one.*AGFL-CONFIG-036"):
        causal(IDS_BT, source=SOURCE_BS)
    with pytest.raises(ConfigError, match=r"^model\.architecture: must be causal or seq2seq to decode step by step"):
        encoder.initial_state(1)
    long = torch.full((1, 65), 5)
    with pytest.raises(ConfigError, match=r"^sequence: must be at most 64 .*got 65.*AGFL-CONFIG-037"):
        causal(long)
    with pytest.raises(ConfigError, match=r"^sequence: must be at most 61 .*got 62.*AGFL-CONFIG-037"):
        encoder(long[:, :62])
    encoder(long[:, :61])
    state = causal.initial_state(1)
    for _ in range(64):
        _, state = causal.step(long[:, 0], state)
    with pytest.raises(ConfigError, match=r"^sequence: must be at most 64 "):
        causal.step(long[:, 0], state)
