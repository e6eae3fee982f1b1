"""What README and docs/ show works: commands parse, Python runs, YAML is valid, names and targets of links exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import torch
import typer
import yaml
from tests.documents import (
    COMMANDS,
    DOCS,
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    command_lines,
    inline_code,
    links,
    slug,
    table_rows,
    text_of,
)
from tests.plugin_files import install_digits, registries_kept

import agfl
from agfl_client.policy import Policy
from agfl_models import AutoGenModel
from agfl_models.model.families import build_model
from agfl_models.tasks.config import TASKS
from agfl_models.tokenizers.tokenizer import TokenizerConfig
from agfl_models.validation import validate
from agfl_protocol.config.run_config import AggregationConfig, RunConfig, load_with_defaults
from agfl_protocol.config.training_config import ClientOptimizerConfig
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.optimizers.server_optimizer import OPTIMIZERS
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Layout
from agfl_server.run.defaults_table import shown
from agfl_server.search.slate import make_slate
from agfl_sim.partition import device_widths

PACKAGES = ("server", "client", "shared_models", "simulations")
METHODS_HEADER = (
    "| method | setting | broadcast beside the model | each owner adds to the sum | who keeps what | paper |"
)
NOT_ADDED_BY_IT = ("in every run", "before round 1")  # what a method makes owners add, but not by its own setting


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def application() -> click.Group:
    import agfl.cli

    command = typer.main.get_command(agfl.cli.app)
    assert isinstance(command, click.Group)
    return command


def command_of(name: str) -> click.Command:
    return application().commands[name.removeprefix("agfl-")]


def block_with(language: str, *words: str) -> Block:
    """Return the one block outside the README, or the first of those that are alike, that holds all words."""
    found = [block for block in blocks(language) if all(word in block.text for word in words)]
    assert len({block.text for block in found}) == 1, [block.name for block in found]
    return found[0]


def smallest_run() -> str:
    return block_with("yaml", "num_rounds", "task:", "model:").text


# Commands


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_parses(page: str, line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = command_of(name)
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    if isinstance(command, click.Group):
        sub_name, sub_command, rest = command.resolve_command(context, arguments)
        assert sub_command is not None
        sub_command.make_context(sub_name, rest, parent=context)


def test_every_command_that_there_is_has_its_line() -> None:
    """`fingerprint` is the same on both sides, and the owner's page shows it."""
    shown_ones = {tuple(shlex.split(line, comments=True)[:2]) for _, line in command_lines()}
    groups = {name: command_of(name) for name in COMMANDS}
    known = {(name, sub) for name, group in groups.items() if isinstance(group, click.Group) for sub in group.commands}
    assert known - shown_ones == {("agfl-server", "fingerprint")}


def inline_commands() -> list[tuple[str, str]]:
    return [
        (page_name(page), code)
        for page in PAGES
        for code in inline_code(page)
        if re.match(r"(agfl-\w+|agfl (simulate|server|client|model)) ", code)
    ]


@pytest.mark.parametrize(("page", "code"), inline_commands())
def test_a_command_in_a_sentence_names_what_there_is(page: str, code: str) -> None:
    words = code.removeprefix("agfl").lstrip(" -").split()
    command: click.Command = application()
    while words and isinstance(command, click.Group):
        if words[0] in all_options(command):  # with a value
            words = words[2:]
        assert words[0] in command.commands, code
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options


def all_options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for sub_command in getattr(command, "commands", {}).values():
        yield from all_options(sub_command)


def test_every_option_in_a_sentence_is_one() -> None:
    named = {code.split()[0].split("=")[0] for page in PAGES for code in inline_code(page) if code.startswith("--")}
    assert len(named) > 10
    assert named <= {*all_options(application()), "--install-completion", "--hypothesis-profile"}


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.name)
def test_every_script_and_configuration_of_ours_is_there(block: Block) -> None:
    paths = [word for line in block.lines for word in shlex.split(line, comments=True)]
    assert not [path for path in paths if path.startswith(("simulations/", "tests/")) and not (ROOT / path).is_file()]


def test_every_extra_that_is_installed_is_one() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [page.read_text() for page in (*PAGES, ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md")]
    named = {name for text in texts for group in re.findall(r"'\.\[([\w,]+)\]'", text) for name in group.split(",")}
    assert named == {"docs", "huggingface", "mlflow", "tensorboard", "test", "wandb"}
    assert named <= extras.keys()
    rows = table_rows(DOCS / "get-started.md", "| extra | for |")
    assert {extra.strip("`") for row in rows for extra in row[0].split(", ")} == extras.keys()


# Python


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_every_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that needs a run of its reader's, which only `py` may, is looked at below."""
    monkeypatch.chdir(tmp_path)
    exec(block.text, {})


@pytest.mark.parametrize("block", blocks("py"), ids=lambda block: block.name)
def test_every_other_python_block_imports_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "agfl":
            assert hasattr(agfl, node.attr)


def test_the_literal_model_has_the_shapes_that_it_says() -> None:
    names: dict[str, Any] = {}
    exec(block_with("python", "model = AutoGenModel(config)").text, names)
    model = names["model"]
    assert isinstance(model, AutoGenModel)
    assert model(torch.randn(2, 5, 64)).shape == (2, 5, 64)


# YAML


def merged(base: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], part[key]) for key in base.keys() & part.keys() if isinstance(part[key], dict)}
    return {**base, **part, **both}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example plug-in, installed."""
    monkeypatch.syspath_prepend(str(install_digits(tmp_path / "site")))
    with registries_kept():
        yield


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_every_yaml_block_is_a_policy_or_part_of_a_run(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if content.keys() <= Policy.model_fields.keys():
        validate(Policy, content, block.page)
        return
    path = tmp_path / "run.yaml"
    base = yaml.safe_load(smallest_run())
    if "plugins" in content:  # of which model and task are
        base = {"num_rounds": base["num_rounds"]}
    path.write_text(yaml.safe_dump(merged(base, content)))
    config, _ = load_with_defaults(path)
    assert config.data.num_owners is not None
    device_widths(config, config.data.num_owners)
    if config.search is not None:
        assert len(make_slate(config).candidates) > 1


def test_the_policy_shows_every_key() -> None:
    policy = yaml.safe_load(block_with("yaml", "allow_plain:").text)
    assert set(validate(Policy, policy, "owner.md").model_fields_set) == set(Policy.model_fields)


def test_the_yaml_model_builds() -> None:
    model = AutoGenModel(yaml.safe_load(block_with("yaml", "residual stream", "swiglu").text)["model"])
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 259)


def test_the_yaml_tokenizer_is_yet_to_learn(tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    content = yaml.safe_load(block_with("yaml", "type: bpe").text)["tokenizer"]
    assert not TypeAdapter(TokenizerConfig).validate_python(content).is_trained


def test_the_smallest_run_takes_what_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(smallest_run())
    _, taken = load_with_defaults(tmp_path / "run.yaml")
    rows = [[default.setting, shown(default.value), default.reason] for default in taken]
    assert table_rows(DOCS / "researcher.md", "| setting | taken | because |") == rows


def test_the_tables_of_tasks_and_columns_are_whole() -> None:
    corpora = table_rows(DOCS / "researcher.md", "| task | corpus | natural owners | main metric | other metrics |")
    columns = table_rows(DOCS / "owner.md", "| task | columns |")
    assert {row[0].strip("`") for row in corpora} == {row[0].strip("`") for row in columns} == set(TASKS.names)


# Methods


class Method:
    """A row of the table of methods; settings: as `--set` takes them."""

    def __init__(self, section: str, cells: list[str]) -> None:
        self.name, settings, self.broadcast, self.adds, self.keeps, _ = cells
        self.settings = [section + re.sub(": ", "=", code, count=1) for code in re.findall(r"`([^`]+)`", settings)]

    def config(self, folder: Path) -> RunConfig:
        """Return the smallest run with this method alone."""
        (folder / "run.yaml").write_text(smallest_run())
        plain = ["aggregation.server_optimizer={type: fedavg}"]
        vocabulary = ["model.vocab_size=2000"] if any(one.startswith("tokenizer=") for one in self.settings) else []
        return load_with_defaults(folder / "run.yaml", [*plain, *vocabulary, *self.settings])[0]


def methods() -> list[Method]:
    found, section = [], ""
    for cells in table_rows(DOCS / "methods.md", METHODS_HEADER):
        if cells[0].startswith("**"):
            named = re.match(r"in `(\w+)`", cells[1])
            section = f"{named[1]}." if named else ""
        else:
            found.append(Method(section, cells))
    return found


def types_in(union: Any) -> set[str]:
    return {get_args(member.model_fields["type"].annotation)[0] for member in get_args(get_args(union)[0])}


def test_the_table_has_every_method() -> None:
    shown_ones = set()
    for setting in (setting for method in methods() for setting in method.settings):
        key, _, text = setting.partition("=")
        value = yaml.safe_load(text)
        shown_ones.add((key, value.get("type", "") if isinstance(value, dict) else str(value)))
    fields = AggregationConfig.model_fields
    words = {(f"aggregation.{key}", word) for key in ("weighting",) for word in get_args(fields[key].annotation)}
    for key in ("averaging", "group_rule"):
        others = set(get_args(fields[key].annotation)) - {fields[key].default}
        words |= {(f"aggregation.{key}", word) for word in others}
    steps = {("aggregation.server_optimizer", name) for name in OPTIMIZERS.names}
    trainers = {("training.optimizer", name) for name in types_in(ClientOptimizerConfig)}
    assert words | steps | trainers <= shown_ones
    assert {"training.proximal_mu", "aggregation.clip_l2", "elastic", "search"} <= {key for key, _ in shown_ones}


def names_in_sum(config: RunConfig) -> set[str]:
    """Return what is in the sum of a round of training that broadcasts all that it may, beside the update."""
    layout = Layout.of(build_model(config.model, seed=0))
    return set(
        UpdateCodec.for_round(
            Round(config.client_plan, config.client_plan.max_models, rings=config.build_rings()),
            config.build_task(),
            layout,
            QuantizationPlan(4, 8),
            round_number=1,
            train=True,
            evaluate=False,
        ).quantization.header.metrics
    )


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_a_row_of_the_table_says_what_the_code_does(method: Method, tmp_path: Path) -> None:
    config = method.config(tmp_path)
    plain = Method("aggregation.", ["FedAvg", "`server_optimizer: {type: fedavg}`", "", "", "", ""]).config(tmp_path)
    if not method.adds.startswith(NOT_ADDED_BY_IT):
        assert (method.adds == "nothing") == (names_in_sum(config) == names_in_sum(plain))
    assert ("owner:" in method.keeps) == config.client_plan.keeps_state
    if any(setting.startswith("aggregation.server_optimizer") for setting in method.settings):
        model = Layout.of(build_model(config.model, seed=0)).flatten(build_model(config.model, seed=0))
        state = build_optimizer(config.aggregation.server_optimizer).initial_state(model)
        asked = [one for one in methods_of(Round(config.client_plan)) if one.config is not None]
        kept = [state, *(one.initial_state(model) for one in asked)]
        assert ("server:" in method.keeps) == any(kept)
        assert (method.broadcast.startswith("every third round")) == (config.client_plan.max_models > 1)


# Names, pages and links


def dotted_names() -> list[str]:
    inline = {code for page in PAGES for code in inline_code(page) if re.fullmatch(r"agfl_\w+(\.\w+)+", code)}
    shown_ones = set(re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE))
    assert shown_ones
    return sorted({name for name in inline if not name.endswith(".py")} | shown_ones)


@pytest.mark.parametrize("name", dotted_names())
def test_every_dotted_name_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), attribute)


def test_every_path_in_a_sentence_is_there() -> None:
    roots = [ROOT, *(ROOT / package for package in PACKAGES)]
    begins = ("server/", "client/", "shared_models/", "simulations/", "tests/", "agfl_")
    paths = {code for page in PAGES for code in inline_code(page) if "/" in code and code.startswith(begins)}
    assert len(paths) > 10
    assert not [path for path in paths if not any((root / path).exists() for root in roots)]


def nav_pages(items: Any) -> Iterator[str]:
    if isinstance(items, str):
        yield items
    else:
        for item in items.values() if isinstance(items, dict) else items:
            yield from nav_pages(item)


def test_the_navigation_has_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())  # which no tag of MkDocs' own may break
    assert sorted(nav_pages(settings["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    assert settings["strict"] is True


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert page.parent == ROOT or path.is_relative_to(DOCS), f"{link}: not part of the built pages"
        assert not anchor or anchor in anchors(path), link


def test_links_are_found_and_headings_have_anchors() -> None:
    assert "get-started.md" in links(DOCS / "index.md")
    assert "benchmarks.md#search_synthetic-seeds-0-1" in links(DOCS / "elastic-and-search.md")
    assert slug("The data owner: `agfl-client`") == "the-data-owner-agfl-client"
    assert "add-a-layer-type" in anchors(DOCS / "CONTRIBUTING.md")


@pytest.mark.parametrize("name", ["SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_a_document_of_the_root_is_a_page(name: str) -> None:
    headings = re.findall(r"^## .+$", (ROOT / name).read_text(), flags=re.MULTILINE)
    own = [heading for heading in headings if heading != "## From claim to attack"]  # whose links leave the pages
    assert own
    assert all(heading in text_of(DOCS / name) for heading in own)


def test_the_place_of_the_generated_table_is_marked() -> None:
    text = (DOCS / "results.md").read_text()
    before, _, rest = text.partition("<!-- should-i-join -->\n")
    inside, end, _ = rest.partition("<!-- /should-i-join -->\n")
    assert "## Should I join?" in before
    assert "| task, metric |" in inside
    assert end


def test_ci_builds_the_pages() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "'.[test,docs]'" in script
    assert "mkdocs build --strict" in script
