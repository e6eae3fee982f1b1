"""agfl-model: look at a trained model, use it, evaluate it, serve it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agfl_models import text_commands
from agfl_models.console import AsJson, new_app, run_app
from agfl_models.errors import ConfigError
from agfl_models.text_commands import ModelPath

app = new_app("Look at a trained model, use it, evaluate it, serve it.")


@app.callback()
def enable_plugins(
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An installed plug-in of which the model has parts.")
    ] = None,
) -> None:
    """Load what a model needs beside agfl, before any command."""
    if plugin:
        from agfl_models.plugins import enable

        enable(plugin, "--plugin")


@app.command()
def describe(
    path: ModelPath,
    context_length: Annotated[int, typer.Option(min=1, help="Tokens that attention looks at, for FLOPs.")] = 128,
    as_json: AsJson = False,
) -> None:
    """Show the parts of a model with their widths, parameters and cost."""
    from rich.console import Console
    from rich.table import Table

    from agfl_models.files.store import load_model

    _, saved = load_model(path)
    model = saved.model.resolve()
    parameters, flops = model.num_parameters(), model.flops_per_token(context_length)
    if as_json:
        parts = [asdict(part) for part in model.parts(context_length)]
        task = saved.task.type if saved.task else None
        print(json.dumps({"task": task, "parts": parts, "parameters": parameters, "flops_per_token": flops}))
        return
    table = Table("part", "settings", title=f"{saved.task.type} model" if saved.task else "model")
    table.add_column("parameters", justify="right")
    table.add_column("FLOPs/token", justify="right")
    for part in model.parts(context_length):
        table.add_row(part.name, part.settings, f"{part.parameters:,}", f"{part.flops_per_token:,}")
    table.add_section()
    table.add_row("total", f"context_length={context_length}", f"{parameters:,}", f"{flops:,}")
    Console().print(table)


for command in (
    text_commands.translate,
    text_commands.summarize,
    text_commands.answer,
    text_commands.classify,
    text_commands.generate,
):
    app.command()(command)


@app.command()
def evaluate(
    path: ModelPath,
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Examples of the model's task: a file, or a folder of text.")
    ],
    columns: Annotated[
        str, typer.Option(metavar="NAME=COLUMN,...", help="What the file calls the task's columns.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the task's metrics over all rows of a file: none of them is left out."""
    from agfl_models.examples import parse_columns

    named = parse_columns(columns)

    from agfl_models.inference import load_task
    from agfl_models.metrics.signatures import signatures
    from agfl_models.tasks.evaluation import evaluate_rows

    model, task, config = load_task(path)
    rows, survey = config.read(data, named)
    for line in (f"{data}: {survey.line}", *survey.doubts):
        typer.echo(line, err=True)
    metrics = evaluate_rows(model, task, rows)
    if as_json:
        print(json.dumps({"rows": len(rows), "metrics": metrics, "signatures": signatures(metrics)}))
        return
    _print_metrics(f"{config.type}, {len(rows):,} rows of {data}", metrics, signatures(metrics))


def _print_metrics(title: str, metrics: dict[str, float], signatures: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(title)
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
    Console().print(table)
    for name, signature in signatures.items():
        print(f"{name.removeprefix('eval/')}: {signature}")


@app.command()
def serve(
    path: ModelPath,
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine reaches 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8600,
) -> None:
    """Offer the model to a browser and to programs on this machine, until Ctrl-C."""
    from agfl_models.inference import open_model
    from agfl_models.web.facts import model_facts
    from agfl_models.web.serve import serve_model

    user, task = open_model(path)
    serve_model(user, model_facts(path, user, task), host, port)


@app.command()
def merge(
    path: ModelPath,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
) -> None:
    """Write a model that started from a pretrained one as an ordinary Hugging Face folder."""
    from agfl_models.files.store import load_model
    from agfl_models.huggingface.loading import auto_class
    from agfl_models.huggingface.model import HuggingFaceModel

    model, saved = load_model(path)
    if not isinstance(model, HuggingFaceModel):
        raise ConfigError(
            "AGFL-CONFIG-042", f"{path}: model.family: must be huggingface to be merged, got {saved.model.family}"
        )
    model.save_merged(folder)
    typer.echo(f"wrote {folder}; load it with {auto_class(model.config)}.from_pretrained({str(folder)!r})")


@app.command()
def extract(
    path: ModelPath,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    width: Annotated[float, typer.Option(help="Share of each layer's inner units that is kept, in (0, 1].")],
) -> None:
    """Write the narrower model that a model holds as a model of its own."""
    from agfl_models.model import extraction

    whole, narrow = extraction.extract(path, folder, width)
    typer.echo(f"wrote {folder}: {narrow.num_parameters():,} of {whole.num_parameters():,} parameters")


def main() -> None:
    """Run the command line."""
    run_app(app)
