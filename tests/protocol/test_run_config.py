"""A run configuration: what its hash covers, how it is overridden, and that each error is one line that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_models.errors import ConfigError
from agfl_models.model.config import ModelConfig
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, BytesTokenizerConfig
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.plans.client_plan import client_plan_from_json

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "override",
    [
        "seed=8",
        "task.sequence_length=17",
        "task.validation_fraction=0.2",
        "model.dim=20",
        "model.layers.0.num_heads=4",
        "model.layers.1.hidden_dim=25",
        "model.head.tied=false",
        "training.optimizer.lr=0.25",
        "training.optimizer={type: adamw, lr: 0.5}",
        "training.batch_size=5",
        "training.local_steps=3",
        "training.max_grad_norm=null",
        "training.precision=bfloat16",
        "aggregation.server_optimizer={type: fedavg}",
        "aggregation.cohort_size=2",
        "aggregation.min_cohort=3",
        "aggregation.clip_l2=1.0",
        "aggregation.weighting=uniform",
        "aggregation.max_weight=9.0",
    ],
)
def test_hash_changes_with_what_defines_the_run(run_config: MakeConfig, override: str) -> None:
    assert run_config(override).hash != run_config().hash


@pytest.mark.parametrize(
    "override",
    [
        "num_rounds=9",
        "evaluation.every=1",
        "evaluation.max_examples=1",
        "data.partition=iid",
        "data.num_owners=5",
        "data.path=/elsewhere",
        "baselines=true",
        "training.batch_size=4",  # what it is already
        "training.precision=float32",  # the default, written out
    ],
)
def test_hash_stays_where_a_run_may_be_continued(run_config: MakeConfig, override: str) -> None:
    assert run_config(override).hash == run_config().hash


def test_hash_does_not_depend_on_the_order_of_keys(config_file: Path) -> None:
    lines = config_file.read_text().strip().splitlines()
    config_file.with_name("reversed.yaml").write_text("\n".join(reversed(lines)))
    assert load_run_config(config_file.with_name("reversed.yaml")).hash == load_run_config(config_file).hash


@pytest.mark.parametrize(
    "override",
    [
        "model.layers=[{repeat: 2, layers: [{type: ff}, {repeat: 2, layers: [{type: rnn, cell: mingru}]}]}]",
        "training.optimizer={type: adamw, lr: 0.001, betas: [0.8, 0.99]}",
        "aggregation={server_optimizer: {type: fedyogi, beta2: 0.9}, max_weight: 3.5}",
        "data.path=/private/owners",
    ],
)
def test_client_reads_the_same_run_without_the_data(run_config: MakeConfig, override: str) -> None:
    config = run_config(override, "baselines=true")
    text = config.client_plan.to_json()
    read = client_plan_from_json(text)
    assert read == config.client_plan
    assert read.model == config.model
    assert read.to_json() == text
    assert "private" not in text
    assert "partition" not in text
    assert "baselines" not in text


def test_written_configuration_is_the_same_run(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config("aggregation.server_optimizer={type: fedadam}", "data.path=/x")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_run_config(tmp_path / "config.yaml") == config


def test_overrides_reach_into_mappings_and_lists(run_config: MakeConfig) -> None:
    config = run_config(
        "num_rounds=5", "model.layers.1.hidden_dim=40", "evaluation={every: 3}", "training.optimizer.lr=1e-3"
    )
    assert config.num_rounds == 5
    assert isinstance(config.model, ModelConfig)
    assert config.model.layers[1].hidden_dim == 40  # type: ignore[union-attr]
    assert config.evaluation.every == 3
    assert config.training.optimizer.lr == 0.001


def test_max_weight_is_one_round_of_steps_unless_given(run_config: MakeConfig) -> None:
    assert run_config().max_weight == 2 * 4 * 16
    assert run_config("aggregation.max_weight=5").max_weight == 5
    layers = "[{type: attention, num_heads: 2, cross: true}]"
    pairs = (
        f"{{family: encoder_decoder, vocab_size: 259, dim: 16, encoder: {{layers: [{{type: ff}}]}}, layers: {layers}}}"
    )
    for task in ("translation", "summarization"):
        config = run_config(f"task={{type: {task}, target_length: 24}}", f"model={pairs}")
        assert config.max_weight == 2 * 4 * 24
    spans = "{family: encoder, vocab_size: 259, dim: 16, head: {type: span}, layers: [{type: ff}]}"
    assert run_config("task={type: question_answering}", f"model={spans}").max_weight == 2 * 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("novalue", r"--set: must be KEY=VALUE \(as in training.local_steps=5\), got 'novalue'"),
        ("=3", r"--set: must be KEY=VALUE \(as in training.local_steps=5\), got '=3'"),
        ("seed.x=1", "--set seed.x: 'x' names nothing in the configuration"),
        ("model.layers.7.num_heads=1", "--set model.layers.7.num_heads: '7' names nothing in the configuration"),
        ("model.layers.x.num_heads=1", "--set model.layers.x.num_heads: 'x' names nothing in the configuration"),
        ("trainning.local_steps=1", r"{file}: .*unknown key 'trainning' \(did you mean 'training'\?\)"),
        ("training.localsteps=1", r"{file}: training: unknown key 'localsteps' \(did you mean 'local_steps'\?\)"),
        ("xyz=1", r"{file}: .*unknown key 'xyz' \(known: aggregation, baselines, data, .*\)"),
        ("aggregation.server_optimizer={type: fedavgg}", r"server_optimizer: .*'fedavgg' \(did you mean 'fedavg'\?\)"),
        ("model.layers.0.type=atention", r"{file}: model.layers.0: .*'atention' \(did you mean 'attention'\?\)"),
        ("num_rounds=0", "{file}: num_rounds: Input should be greater than 0, got 0"),
        ("num_rounds=many", "{file}: num_rounds: .* valid integer.*, got 'many'"),
        ("num_rounds=null", "{file}: num_rounds: .*, got None"),
        (
            "num_rounds=",
            r"^--set num_rounds: .*got none; is a shell variable not set\?.*AGFL-CONFIG-146",
        ),
        ("data.path= ", r"^--set data\.path: must have a value"),
        ("data.path=''", r"data\.path: must name a folder, got ''"),
        ("data={path: }", r"^--set data: malformed YAML value .* 'path' must have a value \(null for none\), got none"),
        ("seed=-1", "{file}: seed: .* greater than or equal to 0, got -1"),
        ("training.batch_size=1.5", "{file}: training.batch_size: .*, got 1.5"),
        ("training.optimizer.lr=.nan", r"{file}: training.optimizer.*lr: .*finite.*, got nan"),
        ("aggregation.clip_l2=.inf", "{file}: aggregation.clip_l2: .*finite.*, got inf"),
        ("training.precision=float16", "{file}: training.precision: .*'float32' or 'bfloat16', got 'float16'"),
        (
            "training.local_epochs=1",
            "{file}: training: exactly one of local_steps and .* must be given, got 2 and 1 .AGFL-CONFIG",
        ),
        (
            "training.local_steps=null",
            "{file}: training: exactly one of local_.* must be given, got None and None .AGFL-CONFIG",
        ),
        (
            "training={local_epochs: 1}",
            "{file}: aggregation.max_weight .* is required .* can weigh, got None .AGFL-CONFIG",
        ),
        (
            "aggregation.fairness_q=2",
            r"aggregation\.fairness_q: needs weighting loss, got 2.0 with weighting tokens .AGFL-CONFIG",
        ),
        (
            "aggregation.max_loss=3",
            r"aggregation\.max_loss: needs weighting loss, got 3.0 with weighting tokens .AGFL-CONFIG",
        ),
        ("aggregation.alignment_kappa=2", r"aggregation\.alignment_kappa: needs weighting alignment, got 2.0 with"),
        ("task={type: translatoin}", r"{file}: task: .*'translatoin' \(did you mean 'translation'\?\)"),
        ("task={type: translation}", "{file}: model.family must be encoder_decoder for task translation, got decoder"),
        ("task={type: question_answering}", "{file}: model.family must be encoder for task question_answering, got"),
        ("task.target_length=3", r"{file}: task: unknown key 'target_length' \(did you mean .*\)"),
        ("task={type: question_answering, context_length: 7}", "{file}: task.context_length: .*equal to 8, got 7"),
        ("task.validation_fraction=1", "{file}: task.validation_fraction: .*less than 1, got 1"),
        ("data.corpus=homer", "{file}: data.corpus: must be shakespeare_roles for task language_modeling, got 'homer'"),
        (
            "data.max_widths={0.5: 1, 1: 2}",
            r"{file}: data.max_widths: needs elastic, .*, got \[0.5, 1.0\] .AGFL-CONFIG",
        ),
        ("data.columns=3", "{file}: data.columns: must be a mapping, got 3 .AGFL-CONFIG-010"),
        ("search=3", "{file}: search: must be a mapping, got 3 .AGFL-CONFIG-010"),
        ("model=3", "{file}: model: must be a mapping, got 3 .AGFL-CONFIG-010"),
        (
            "search={slate: [configured]}",
            "search.slate: must be auto, or at least two names, got .'configured'. .AGFL-CONFIG",
        ),
        ("search={slate: all}", "{file}: search.slate: must be auto, or at least two names, got 'all' .AGFL-CONFIG"),
        (
            "training.optimizer={lr: 0.1}",
            "{file}: training.optimizer.type: required, one of sgd, adamw, delta_sgd .AGFL-CONFIG-009",
        ),
        (
            "task={}",
            "{file}: task.type: required, one of language_modeling, question_answering, .*translation .AGFL-CONFIG-009",
        ),
        (
            "aggregation.server_optimizer={lr: 1}",
            "aggregation.server_optimizer.type: required, one of fedadagrad, .*auto .AGFL-CONFIG-009",
        ),
        ("aggregation.server_optimizer={type: auto, arms: [{lr: 1}, {type: fedavg}]}", r"arms\.0\.type: required, one"),
        ("model.vocab_size=100", "{file}: .*model.vocab_size must be 259 .*got 100"),
        ("model.layers.0.num_heads=3", r"layers.0: num_heads: must divide embed_dim \(16\), got 3"),
        ("model.layers.0.causal=false", "layers.0: must be causal under a language-model head"),
    ],
)
def test_error_is_one_line_that_names_field_rule_and_value(
    run_config: MakeConfig, config_file: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("{file}", "--set")) as error:
        run_config(override)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(config_file)) + 300


def test_devices_hold_widths_of_the_model(run_config: MakeConfig) -> None:
    devices = "data.max_widths={0.25: 1, 1: 2}"
    assert run_config("elastic={}", devices).data.max_widths == {0.25: 1, 1.0: 2}
    line = r"data\.max_widths: must be among elastic\.widths \[0\.5, 1\.0\], got \[0\.25, 1\.0\] .AGFL-CONFIG"
    with pytest.raises(ConfigError, match=line):
        run_config("elastic={widths: [0.5, 1.0]}", devices)


def test_error_of_scaffold_with_epochs_shows_that_value_and_not_the_file(run_config: MakeConfig) -> None:
    scaffold = ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
    epochs = "training={optimizer: {type: sgd, lr: 0.5}, local_epochs: 1}"
    with pytest.raises(
        ConfigError, match=r"training\.local_steps is required with .* take as many, got None .AGFL-CONFIG"
    ):
        run_config(*scaffold, epochs)


@pytest.mark.parametrize("override", ["model.layers.0.num_heads=3", "model.layers.0.causal=false", "model.dim=15"])
def test_error_of_a_layer_names_file_and_whole_path(run_config: MakeConfig, config_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set: model: layers\.0"):
        run_config(override)


def test_error_names_the_path_that_a_person_wrote(run_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer\.lr: "):
        run_config("training.optimizer.lr=0")


def test_malformed_override_is_one_line(run_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"--set seed: malformed YAML value '\[1'") as error:
        run_config("seed=[1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("betas", ["[2.0, 0.9]", "[-0.1, 0.9]", "[0.9, 1.0]"])
def test_betas_that_adamw_refuses_are_refused_here(run_config: MakeConfig, betas: str) -> None:
    with pytest.raises(ConfigError, match="betas"):
        run_config(f"training.optimizer={{type: adamw, lr: 0.1, betas: {betas}}}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "malformed YAML: .*line 1, column 6"),
        (b"seed: 1\nmodel: {dim: 8, dim: 16}", "malformed YAML: 'dim' stands twice in one mapping .*line 2, column 17"),
        (b"a: b: c", "malformed YAML: mapping values are not allowed here"),
        (b"seed: !!python/object/apply:os.system [ls]", "malformed YAML: could not determine a constructor"),
        (b"seed: 2020-13-01", "malformed YAML: a value cannot be read"),
        (b"seed: !!int ''", "malformed YAML: a value cannot be read"),
        (b"seed: !!timestamp x", "malformed YAML: a value cannot be read"),
        (b"seed: " + b"9" * 5000, "malformed YAML: a number has at most 100 characters"),
        (b"seed: " + b"[" * 3000, "malformed YAML: must nest at most 64 deep"),
        (b"- 1", "must hold a mapping of keys to values, not list"),
        (b"", "must hold a mapping of keys to values, not NoneType"),
        (b"\xff\xfe", "cannot be read: .*utf-8"),
        (b"seed: 1", "num_rounds: required but missing"),
    ],
)
def test_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{path}: {message}") as error:
        load_run_config(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path / 'none.yaml'}: .*AGFL-CONFIG-003"):
        load_run_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: cannot be read: .*directory"):
        load_run_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"model": {"layers": 3}}'])
def test_configuration_from_the_wire_is_refused_by_source(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^client plan from the server: "):
        client_plan_from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000], ids=["deep", "long"])
def test_hostile_configuration_from_the_wire_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^client plan from the server: malformed JSON"):
        client_plan_from_json(text)


BPE = ("model.vocab_size=300", "tokenizer={type: bpe, vocab_size: 300}")
MERGES = ((32, 97), (259, 98))


def test_bytes_are_the_default_tokenizer(run_config: MakeConfig) -> None:
    assert run_config().tokenizer == BytesTokenizerConfig()
    assert run_config("tokenizer={type: bytes}").hash == run_config().hash
    assert run_config("tokenizer.type=bytes").hash == run_config().hash


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (BPE[:1], "model.vocab_size must be 259 as tokenizer.vocab_size (type bytes), got 300"),
        (BPE[1:], "model.vocab_size must be 300 as tokenizer.vocab_size (type bpe), got 259"),
        (
            (BPE[0], "tokenizer={type: bpe, vocab_size: 300, merges: [[97, 98], [97, 98]]}"),
            "tokenizer: merges.1: must make a new token, got b'ab' again",
        ),
        (
            (BPE[0], "tokenizer={type: bpe, vocab_size: 300, merges: [[97]]}"),
            "tokenizer.merges.0.1: required but missing",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_line(
    run_config: MakeConfig, config_file: Path, overrides: tuple[str, ...], line: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_config(*overrides)
    assert error.value.sentence == f"--set: {line}"


def test_merges_define_the_run_and_travel_with_it(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config(*BPE)
    trained = config.with_merges(MERGES)
    assert not config.tokenizer.is_trained
    assert len({run_config().hash, config.hash, trained.hash, config.with_merges(()).hash}) == 4
    (tmp_path / "config.yaml").write_text(trained.to_yaml())
    written = load_run_config(tmp_path / "config.yaml")
    assert written.hash == trained.hash
    for read in (written, client_plan_from_json(trained.client_plan.to_json())):
        assert read.tokenizer == trained.tokenizer
        assert isinstance(read.tokenizer, BPETokenizerConfig)
        assert read.tokenizer.build().merges == MERGES


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["num_rounds=0"], "--set: num_rounds: Input should be greater than 0, got 0"),
        (["num_round=3"], "--set: unknown key 'num_round' (did you mean 'num_rounds'?)"),
        (["seed=1", "training.batch_size=-1", "num_rounds=2"], "--set: training.batch_size: Input should be greater"),
        (["model={vocab_size: 259}"], "--set: model"),
    ],
)
def test_what_was_set_wrong_is_named_and_not_the_file(config_file: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(config_file, settings)
    assert str(caught.value).startswith(expected)
    assert str(config_file) not in str(caught.value)


def test_a_file_that_is_wrong_is_named_whatever_is_set(config_file: Path) -> None:
    config_file.write_text(config_file.read_text().replace("num_rounds: 3", "num_rounds: many"))
    with pytest.raises(ConfigError, match=rf"^{config_file}: num_rounds"):
        load_run_config(config_file, ["seed=5"])
