"""agfl: one command of which agfl-server, agfl-client, agfl-simulate and agfl-model are the parts."""

from __future__ import annotations

from agfl_client.cli import app as client
from agfl_models.cli import app as model
from agfl_models.console import new_app, run_app
from agfl_server.cli import app as server
from agfl_sim.cli import simulate

app = new_app("Train one language model together on text that stays with its owners.")
app.command("simulate")(simulate)
app.add_typer(server, name="server")
app.add_typer(client, name="client")
app.add_typer(model, name="model")


def main() -> None:
    """Console entry point."""
    run_app(app)
