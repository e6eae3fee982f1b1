"""agfl-server: start a federation, admit its nodes, run it."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agfl_models import stop_signal
from agfl_models.console import AsJson, LogFile, log_to, new_app, run_app
from agfl_server.rounds.observer import DISCONNECTED, IMPLAUSIBLE, Observer, Row

if TYPE_CHECKING:
    from agfl_server.federation.federation_folder import FederationFolder
    from agfl_server.rounds.attendance import Attendance

app = new_app("Start a federation, admit the nodes of its data owners, and run it.")
log = logging.getLogger("agfl.server")
_PROGRESS_S = 5.0  # between two lines of one round

Folder = Annotated[Path, typer.Option("--federation", metavar="FOLDER", help="The federation's folder.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run configuration; a small one is written if omitted."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address under which owners reach this server; repeatable."),
    ] = None,
) -> None:
    """Make a federation folder: run configuration, certificates, room for nodes."""
    from agfl_protocol.config.run_config import load_run_config
    from agfl_protocol.identity.fingerprint import words_of_file
    from agfl_server.federation import federation_folder
    from agfl_server.search.slate import make_slate

    source = config or Path(str(files("agfl_server") / "default.yaml"))
    run = load_run_config(source)
    if run.search is not None:
        make_slate(run)  # refuses what `start` would
    if run.pretrained is not None and run.pretrained.exists():
        run.with_pretrained(run.pretrained, "model.folder")  # as above; the folder may come later
    federation_folder.init(folder, source.read_text(encoding="utf-8"), host or [])
    certificate, apart = folder / "ca.pem", federation_folder.authority_folder(folder)
    typer.echo(f"made {folder}; give every data owner {certificate}, in words:\n{words_of_file(certificate)}")
    typer.echo(f"move {apart} to where nobody who takes over this machine finds it: the server runs without it")


@app.command()
def add_node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The owner's NAME.")],
    public_file: Annotated[Path, typer.Argument(metavar="PUBLIC_FILE", help="The NAME.pub that the owner sent.")],
    folder: Folder = Path("federation"),
) -> None:
    """Admit a data owner's node, from the next start on."""
    from agfl_protocol.identity.fingerprint import words_of_file
    from agfl_protocol.identity.identity import PublicIdentity
    from agfl_protocol.identity.request_signature import key_id, short_id
    from agfl_server.federation import federation_folder

    federation_folder.add_node(folder, name, public_file)
    typer.echo(f"admitted {name}; nodes of {folder}: {_names(federation_folder.load(folder))}")
    transport = PublicIdentity.read(public_file).transport_public_key
    typer.echo(f"its transport key: {short_id(key_id(transport))}")
    typer.echo(f"its public file in words, as its owner must see them:\n{words_of_file(public_file)}")


@app.command()
def nodes(
    folder: Folder = Path("federation"),
    as_json: AsJson = False,
) -> None:
    """Show who is admitted, who is here, when it was last seen and which version it runs."""
    from rich.console import Console

    from agfl_server.federation import federation_folder
    from agfl_server.federation.nodes_table import nodes_json, print_nodes
    from agfl_server.rounds.attendance import ATTENDANCE_FILE, read_attendance

    found = federation_folder.load(folder)
    seen = read_attendance(found.run_folder / ATTENDANCE_FILE, [node.name for node in found.nodes])
    if as_json:
        typer.echo(nodes_json(seen))
    else:
        print_nodes(Console(), seen)


@app.command()
def remove_node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The owner's NAME.")],
    folder: Folder = Path("federation"),
) -> None:
    """Admit a data owner's node no longer, from the next start on. To the other owners this is a departure."""
    from agfl_server.federation import federation_folder

    federation_folder.remove_node(folder, name)
    typer.echo(f"removed {name}; nodes of {folder}: {_names(federation_folder.load(folder))}")
    typer.echo("write the roster anew (agfl-server roster), give it to all owners, who approve the plan again, and")
    typer.echo("start the server with --resume; the group that it was in takes part in sums over drawn examples alone")


@app.command()
def renew(
    folder: Folder = Path("federation"),
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address of the server; repeatable. Those of now if omitted."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where you keep the authority's folder; FOLDER-ca if omitted.")
    ] = None,
) -> None:
    """Give the server a new certificate by the same authority; owners keep their ca.pem."""
    from agfl_server.federation import federation_folder

    names = federation_folder.renew(folder, host or [], ca or federation_folder.authority_folder(folder))
    typer.echo(f"{folder / 'server.pem'} is for {', '.join(names)} now; start the server anew with it")


@app.command()
def roster(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The roster file to write.")],
    folder: Folder = Path("federation"),
) -> None:
    """Write the roster: every owner's signing key. Owners must get it, or check it, without going through you."""
    from agfl_protocol.identity.fingerprint import words_of_roster
    from agfl_protocol.identity.roster_file import roster_of, write_roster
    from agfl_server.federation import federation_folder

    nodes = federation_folder.load(folder).nodes
    write_roster(file, nodes)
    typer.echo(f"{len(nodes)} owners in {file}, in words:\n{words_of_roster(roster_of(nodes))}")
    typer.echo("every owner should compare these words with the other owners, not with you")


@app.command()
def fingerprint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A roster, a NAME.pub or a ca.pem.")],
    expect: Annotated[
        str | None, typer.Option(metavar="WORDS", help="The 24 words that somebody else sees for the same file.")
    ] = None,
) -> None:
    """Print the 24 words of a file, for people to compare; with --expect say `same` or DIFFERENT."""
    from agfl_protocol.identity.fingerprint import show_fingerprint

    show_fingerprint(file, expect)


@app.command()
def start(
    folder: Folder = Path("federation"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8443,
    health_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the gRPC health service, on 127.0.0.1.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value; repeatable.")
    ] = None,
    log_file: LogFile = None,
) -> None:
    """Run the federation: wait for nodes, run all rounds, leave everything in FOLDER/run."""
    from rich.console import Console

    from agfl_models.machine import return_freed_memory
    from agfl_protocol.flower_settings import prepare_flower
    from agfl_server.federation import federation_folder

    prepare_flower()
    return_freed_memory()
    log_to(log_file)
    found = federation_folder.load(folder)

    from agfl_models.errors import AgflError
    from agfl_protocol.config.run_config import load_with_defaults
    from agfl_protocol.identity.fingerprint import words_of_roster
    from agfl_protocol.identity.roster_file import roster_of
    from agfl_server.app import run_federation
    from agfl_server.report.run_report import write_report_of
    from agfl_server.rounds.attendance import ATTENDANCE_FILE, Attendance
    from agfl_server.run.defaults_table import print_defaults
    from agfl_server.run.settings import merged, read_settings
    from agfl_server.run.sittings import SittingLog
    from agfl_server.transport.health import health_service
    from agfl_server.transport.superlink import EmbeddedSuperLink

    kept = read_settings(found.run_folder) if resume else []
    settings = merged(kept, overrides or ())
    if kept:
        log.info("as this run was started: %s", " ".join(f"--set {shlex.quote(one)}" for one in settings))
    config, taken = load_with_defaults(found.config, settings)
    print_defaults(Console(stderr=True), taken)
    if config.aggregation.type == "plain":
        typer.secho("aggregation is plain: this server sees every owner's update", fg="red", bold=True, err=True)
    if found.exposed_authority_key is not None:
        log.warning("%s: move it off this machine; the server runs without it", found.exposed_authority_key)
    if config.baselines:
        log.warning("baselines: left out, since nobody here has the text of all owners; agfl-simulate makes them")
    superlink = EmbeddedSuperLink(
        found.nodes, certificate=found.certificate, key=found.key, host=host, port=port, spool=folder
    )
    listened = 0
    health = nullcontext() if health_port is None else health_service(health_port)
    attendance = Attendance(found.run_folder / ATTENDANCE_FILE, superlink.online_names)
    try:
        with SittingLog() as sitting, stop_signal.unwrapped(), superlink, health, attendance:
            listened = superlink.port
            log.info("listening on %s port %d; admitted: %s", host, superlink.port, _names(found))
            owners = roster_of(found.nodes)
            log.info("roster of %d owners, in words: %s", len(owners), words_of_roster(owners))
            run_federation(
                superlink.grid,
                config,
                found.run_folder,
                resume=resume,
                observer=LogObserver(config.task.main_metric.name, attendance),
                registered_name=superlink.registered_name,
                roster=owners,
                settings=settings,
                sitting=sitting,
            )
    except KeyboardInterrupt:
        again = ["agfl-server", "start", "--federation", str(folder), "--host", host, "--port", str(listened or port)]
        again += [] if health_port is None else ["--health-port", str(health_port)]
        again += [] if log_file is None else ["--log-file", str(log_file)]
        log.info("stopped by a signal; go on with: %s", shlex.join([*again, *_goes_on(found, settings)]))
        raise
    log.info("finished; the run is in %s", found.run_folder)
    try:
        log.info("report: %s", write_report_of(found.run_folder))
    except AgflError as error:
        log.warning("no report: %s", error)  # the run is done all the same


@app.command()
def report(
    folder: Folder = Path("federation"),
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; FOLDER/run/report.html if omitted.")
    ] = None,
) -> None:
    """Write the run's report, one HTML page that needs no network: after the run, or while it goes on."""
    from agfl_server.federation import federation_folder
    from agfl_server.report.run_report import write_report_of

    typer.echo(f"report: {write_report_of(federation_folder.load(folder).run_folder, output)}")


class LogObserver(Observer):
    """Tells the operator what happens, one line each; of an evaluation, the loss and `main_metric`."""

    def __init__(self, main_metric: str, attendance: Attendance | None = None) -> None:
        self._main_metric, self._attendance = main_metric, attendance
        self._finished, self._cohort, self._told_at = 0, 0, 0.0
        self._tenth = -1  # of the merges of a tokenizer, the last one that was told

    def waiting(self, connected: int, needed: int) -> None:
        log.info("waiting for nodes: %d of %d connected", connected, needed)

    def absent(self, reasons: Mapping[str, str]) -> None:
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            names_by_reason.setdefault(reason, []).append(name)
        lines = (f"{', '.join(names)} ({reason})" for reason, names in names_by_reason.items())
        log.info("not taking part: %s", "; ".join(lines))

    def held_out(self, name: str, seconds: float) -> None:
        log.info("%s is left out; asked again once it is started anew, or in %.0f s", name, seconds)

    def missing(self, names: Sequence[str]) -> None:
        log.info("waiting for %s: a sum of this kind is over whole groups of owners", ", ".join(names))

    def connected(self, name: str) -> None:
        log.info("%s connected", name)

    def identified(self, name: str, software: str) -> None:
        self._note(name, software=software)

    def client_finished(self, name: str) -> None:
        self._finished += 1
        if self._finished < self._cohort and time.monotonic() - self._told_at >= _PROGRESS_S:
            self._told_at = time.monotonic()
            log.info("%d of %d nodes have finished", self._finished, self._cohort)

    def replied(self, name: str) -> None:
        self._note(name, does="takes part")

    def pending(self, name: str, run_id: str) -> None:
        log.info("%s waits for its owner: agfl-client approve %s --keys DIR", name, run_id)
        self._note(name, does="waits for its owner's approval")

    def read(self, line: str) -> None:
        log.info("%s", line)

    def tokenizer_round(self, merges: int, max_merges: int, cohort: int) -> None:
        if (tenth := 10 * merges // max_merges) > self._tenth:
            self._tenth = tenth
            log.info("tokenizer: %d of %d merges, counting at %d nodes", merges, max_merges, cohort)

    def tokenizer_trained(self, merges: int, max_merges: int) -> None:
        log.info("tokenizer: %d of %d merges, learned", merges, max_merges)

    def search_started(self, candidates: Sequence[str], skipped: Mapping[str, str]) -> None:
        log.info("search among %d candidates: %s", len(candidates), ", ".join(candidates))
        for name, reason in skipped.items():
            log.info("candidate %s takes no part: %s", name, reason)

    def candidate_started(self, name: str, rounds: int) -> None:
        log.info("candidate %s: to round %d", name, rounds)

    def candidate_measured(self, name: str, rounds: int, loss: float | None) -> None:
        log.info("candidate %s after round %d: eval/loss %s", name, rounds, "none" if loss is None else f"{loss:.4g}")

    def candidate_left(self, name: str, fate: str) -> None:
        log.info("candidate %s %s", name, fate)

    def search_finished(self, chosen: str, candidate_rounds: int, exhaustive_rounds: int) -> None:
        log.info(
            "the search chose %s in %d rounds of candidates; all to the end are %d",
            chosen,
            candidate_rounds,
            exhaustive_rounds,
        )

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        self._finished, self._cohort, self._told_at = 0, cohort, time.monotonic()
        name = f"round {round_number}/{num_rounds}" if round_number <= num_rounds else "last evaluation"
        log.info("%s: sent to %d nodes", name, cohort)

    def refused(self, name: str, reason: str) -> None:
        if reason == DISCONNECTED:
            log.warning("%s %s", name, reason)
        else:
            log.warning("%s refused: %s", name, reason)
        self._note(name, does=f"refused: {reason}")

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        log.warning("round %d goes on, exchange %d brought no sum: %s", round_number, exchange, reason)

    def round_finished(self, row: Row) -> None:
        log.info("round %s done: %s", row["round"], _numbers(row, "clients", "train/loss", "seconds"))

    def optimizer_chosen(self, method: str) -> None:
        log.info("the server now steps by %s", method)

    def rings_planned(self, num_open: int, width_by_tier: Sequence[float]) -> None:
        log.info("owners now train the model in widths, by tier: %s", ", ".join(f"{w:g}" for w in width_by_tier))

    def remarked(self, line: str) -> None:
        log.warning("%s", line)

    def diverged(self, owners: int) -> None:
        log.warning("updates or losses of %d owners are not finite and count as none", owners)

    def implausible(self, round_number: int, reason: str) -> None:
        log.warning("round %d: %s; the sum is not used: %s", round_number, IMPLAUSIBLE, reason)

    def suspected(self, names: Sequence[str]) -> None:
        log.warning("%s: one of %s; sums go on without them for a while", IMPLAUSIBLE, ", ".join(names))

    def silent(self, names: Sequence[str]) -> None:
        log.warning("silent: %s; asked again once there is an answer, or a while later", ", ".join(names))

    def kept(self, round_number: int, folder: str) -> None:
        log.warning("the run ends early; the last good model, that of round %d, is in %s", round_number, folder)

    def delivered(self, names: Sequence[str]) -> None:
        if names:
            log.info("these owners have the model now: %s", ", ".join(names))

    def rolled_back(self, round_number: int, to_round: int, loss: float | None) -> None:
        log.warning("the losses refute the model of round %d: back to that of round %d", round_number, to_round)

    def _note(self, name: str, **what: str) -> None:
        if self._attendance is not None:
            self._attendance.note(name, **what)

    def evaluated(self, row: Row) -> None:
        numbers = _numbers(row, "eval/loss", self._main_metric) or "no owner has anything to evaluate on"
        log.info("model after round %s: %s", row["round"], numbers)


def _goes_on(found: FederationFolder, settings: Sequence[str]) -> list[str]:
    """Return the options with which the run goes on: what was set is kept, once there is something to resume."""
    from agfl_server.run.run_folder import RunFolder

    run_folder = RunFolder(found.run_folder)
    if run_folder.has_checkpoint or run_folder.search.exists():
        return ["--resume"]
    return [part for setting in settings for part in ("--set", setting)]


def _numbers(row: Row, *keys: str) -> str:
    return ", ".join(f"{key} {row[key]:.4g}" for key in keys if row.get(key) is not None)


def _names(found: FederationFolder) -> str:
    return ", ".join(node.name for node in found.nodes) or "none (see agfl-server add-node)"


def main() -> None:
    """Entry point of `agfl-server`."""
    run_app(app)
