"""agfl-model: look at a trained model, or let it write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agfl_models.console import new_app, run_app
from agfl_models.errors import ConfigError

app = new_app("Look at a trained model, or let it write.")

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or a run folder that holds one.")]


@app.command()
def describe(
    path: ModelPath,
    context_length: Annotated[int, typer.Option(min=1, help="Tokens that attention looks at, for FLOPs.")] = 128,
) -> None:
    """Show the parts of a model with their widths, parameters and cost."""
    from rich.console import Console
    from rich.table import Table

    from agfl_models.store import load_model

    model, saved = load_model(path)
    table = Table("part", "settings", title=f"{saved.task} model")
    table.add_column("parameters", justify="right")
    table.add_column("FLOPs/token", justify="right")
    for part in model.config.parts(context_length):
        table.add_row(part.name, part.settings, f"{part.parameters:,}", f"{part.flops_per_token:,}")
    table.add_section()
    parameters, flops = model.config.num_parameters(), model.config.flops_per_token(context_length)
    table.add_row("total", f"context_length={context_length}", f"{parameters:,}", f"{flops:,}")
    Console().print(table)


@app.command()
def generate(
    path: ModelPath,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="Text to continue.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=1, help="Draw among so many most probable tokens.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
) -> None:
    """Continue a text, printing as it is written."""
    import torch

    from agfl_models.generation import GenerationConfig, stream
    from agfl_models.store import load_model
    from agfl_models.validation import validate

    model, saved = load_model(path)
    if model.config.vocab_size is None:
        raise ConfigError(f"{path}: model.vocab_size: must be {saved.tokenizer.vocab_size} to write text, got None")
    tokenizer = saved.tokenizer.build()
    settings = {"max_new_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
    config = validate(GenerationConfig, settings, "command line")
    new_ids = stream(
        model,
        [tokenizer.bos_id, *tokenizer.encode(prompt)],
        config,
        eos_id=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(seed),
    )
    sys.stdout.write(prompt)
    for text in tokenizer.decode_stream(new_ids):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def main() -> None:
    """Run the command line."""
    run_app(app)
