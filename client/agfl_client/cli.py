"""agfl-client: make a data owner's keys, and run the owner's node."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agfl_models import stop_signal
from agfl_models.console import AsJson, LogFile, log_to, new_app, run_app

if TYPE_CHECKING:
    from agfl_client.keys import NodeKeys
    from agfl_client.node import Node
    from agfl_client.policy import Policy
    from agfl_client.secure.secure_member import SecureMember
    from agfl_protocol.randomness import OwnerRandomness

app = new_app("Take part in a federation: train on your own text without handing it over.")
log = logging.getLogger("agfl.client")

Columns = Annotated[str, typer.Option(metavar="NAME=COLUMN,...", help="What your file calls the task's columns.")]
Pretrained = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Your copy of the pretrained model, if the run has one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps or cuda:N.")]
Keys = Annotated[Path, typer.Option("--keys", metavar="DIR", help="Your keys, from keygen.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for training.")]


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your NAME in the federation.")],
    folder: Annotated[
        Path | None, typer.Option("--keys", metavar="DIR", help="A new folder; keys/NAME if omitted.")
    ] = None,
) -> None:
    """Make your keys; send the public file to the operator, and nobody the rest."""
    from agfl_client import keys
    from agfl_protocol.identity.fingerprint import words_of_file

    public_file = keys.generate(name, folder or Path("keys") / name)
    typer.echo(f"made {public_file.parent}; send {public_file} to the operator, and nobody the other files")
    typer.echo(f"the public file in words, as the operator must see them:\n{words_of_file(public_file)}")


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
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The federation's server.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The federation's ca.pem, from the operator.")],
    folder: Annotated[Path, typer.Option("--keys", metavar="DIR", help="Your keys, from keygen.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="Your data: a file, or a folder of text.")],
    columns: Columns = "",
    pretrained: Pretrained = None,
    roster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Every owner's signing key, got out of band; needed unless your policy allows plain."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What you accept, in YAML.")] = None,
    device: Device = "auto",
    parallel: Annotated[
        str,
        typer.Option(
            metavar="MODE[:RANKS][+OTHERS]",
            help="How several devices train together: single, auto, ddp or fsdp2. On CPUs you say how many: ddp:2. "
            "ddp:2+4 waits for four ranks of your other machines.",
        ),
    ] = "single",
    meet: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="This machine's own address, where ranks of your other machines join."),
    ] = None,
    threads: Threads = 1,
    save_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the trained model here, at the end of the run; a new or empty folder."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave after one run.")] = False,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long the server may be away at a time.")
    ] = 600.0,
    log_file: LogFile = None,
    draws_from: Annotated[int | None, typer.Option("--test-draws-from", metavar="SEED", hidden=True)] = None,
) -> None:
    """Run your node: it calls the server, listens on no port but --meet, and runs only the code that you installed."""
    from agfl_client import keys
    from agfl_client.approval.approvals import Approvals
    from agfl_client.transport.server_trust import TrustedServer
    from agfl_models.examples import parse_columns
    from agfl_protocol.flower_settings import prepare_flower

    _refuse_nan("--max-wait", max_wait)
    prepare_flower()
    log_to(log_file)
    named = parse_columns(columns)
    with keys.hold(folder):
        own_keys = keys.load(folder)
        trusted = TrustedServer(server, ca)  # says what is wrong before PyTorch is loaded
        trusted.tls()
        trusted.proxy()

        rules = _rules(policy)
        member = _member(own_keys, roster, rules, folder)
        for line in _data_lines(data):
            log.info("data: %s", line)

        from agfl_client.node import Node
        from agfl_client.parallel.choice import Parallel
        from agfl_client.parallel.door import with_door
        from agfl_client.parallel.machine_key import MACHINES_FILE
        from agfl_client.saved_model import SavedModel

        node = Node(
            own_keys.name,
            data,
            device,
            threads,
            parallel=with_door(Parallel.of(parallel, device), meet, folder / MACHINES_FILE),
            columns=named,
            pretrained=pretrained,
            policy=rules,
            member=member,
            folder=folder,
            randomness=_randomness(own_keys, draws_from),
            approvals=Approvals(folder, rules, hashlib.sha256(ca.read_bytes()).hexdigest()),
            tell=log.info,
            saved=None if save_model is None else SavedModel(save_model),
        )
        log.info("%s serves %s with %s; stop with Ctrl-C", node.name, server, data)
        try:
            with stop_signal.unwrapped():
                _serve_run(node, server, ca, own_keys, max_wait)
                while not once:
                    node.finished = False
                    _serve_run(node, server, ca, own_keys, max_wait)
        except KeyboardInterrupt:
            log.info("stopped by a signal")
            raise
        finally:
            node.close()


@app.command()
def rank(
    join: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where your node has its --meet.")],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="A copy of the machines.key in your node's folder of keys.")
    ],
    device: Device = "auto",
    ranks: Annotated[int | None, typer.Option(min=1, help="How many here; on CUDA all devices if omitted.")] = None,
    pretrained: Pretrained = None,
    threads: Threads = 1,
) -> None:
    """Train for your own node on another machine of yours, which needs neither your text nor your keys."""
    from agfl_client.parallel.choice import Parallel
    from agfl_client.parallel.elsewhere import keep_ranks
    from agfl_models.huggingface.folder import PretrainedFolder
    from agfl_protocol.flower_settings import prepare_flower

    prepare_flower()
    if pretrained is not None:
        PretrainedFolder(pretrained)
    devices = Parallel.of("auto" if ranks is None else f"auto:{ranks}", device).devices
    with stop_signal.unwrapped():
        raise typer.Exit(keep_ranks(join, key, devices, threads, pretrained))


@app.command()
def probe(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The run's configuration, from the operator.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="Your data, as for start.")],
    columns: Columns = "",
    pretrained: Pretrained = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What you accept, as for start.")] = None,
    device: Device = "auto",
    threads: Threads = 1,
    max_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long training may take here in a round.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure which width of a run's model this machine can train, and propose one; you decide."""
    from agfl_client.approval.policy_command import refuse_disabled
    from agfl_client.training.device import choose_device
    from agfl_client.training.probe import free_memory, measure, proposed
    from agfl_client.training.probe_table import print_proposal, print_table, probe_json
    from agfl_models.examples import parse_columns
    from agfl_protocol.config.run_config import load_run_config

    _refuse_nan("--max-seconds", max_seconds)
    refuse_disabled(config, _rules(policy))
    for line in _data_lines(data):
        typer.echo(line, err=as_json)
    run = load_run_config(config).client_plan.with_pretrained(pretrained, "--pretrained")
    where = choose_device(device)
    found = measure(run, data, parse_columns(columns), where, threads)
    steps, free = run.training.local_steps, free_memory(where)
    proposal = None if run.elastic is None or steps is None else proposed(found, steps, max_seconds, free)
    if as_json:
        print(probe_json(found, steps, where, free, proposal))
        return
    print_table(found, steps, where, free)
    if run.elastic is not None and steps is not None:
        print_proposal(proposal, found, max_seconds)


@app.command()
def approve(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run that waits for you.")],
    folder: Keys,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What you accept, as for start.")] = None,
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Look at a run's plan and approve or refuse it; your node, if it is running, goes on by itself."""
    from agfl_client.approval.approval_commands import decide_on
    from agfl_client.policy import Policy, load_policy

    decide_on(folder, run_id, load_policy(policy) if policy is not None else Policy(), refuse=refuse, yes=yes)


@app.command()
def policy(
    file: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="What you accept, as for start; the default if omitted."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A run's configuration, from the operator: show its sums only.")
    ] = None,
    pretrained: Pretrained = None,
) -> None:
    """Show what a policy permits, the plug-ins on this machine, and what a run would sum up; nothing is changed."""
    from agfl_client.approval.policy_command import print_policy, print_sums, refuse_disabled
    from agfl_protocol.config.run_config import load_run_config

    rules = _rules(file)
    if run is None:
        print_policy(rules)
        return
    refuse_disabled(run, rules)
    print_sums(rules, load_run_config(run).client_plan.with_pretrained(pretrained, "--pretrained"))


@app.command()
def runs(folder: Keys, as_json: AsJson = False) -> None:
    """List the runs that were put to you, and what you answered."""
    from agfl_client.approval.approval_commands import print_runs

    print_runs(folder, as_json=as_json)


@app.command()
def ledger(
    folder: Keys,
    run_id: Annotated[str | None, typer.Option("--run", metavar="RUN", help="One run; all if omitted.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only check that no line was changed or left out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what your node was asked for and what left, and what that can give away of your updates."""
    from agfl_client.ledger.ledger_table import print_ledger, print_verified

    if verify:
        print_verified(folder)
    else:
        print_ledger(folder, run_id, as_json=as_json)


def _refuse_nan(option: str, seconds: float) -> None:
    from agfl_models.errors import ConfigError

    if math.isnan(seconds):
        raise ConfigError("AGFL-CONFIG-060", f"{option}: must be a number, got {seconds}")


def _data_lines(data: Path) -> list[str]:
    """Return what is in the owner's files, before anybody is called; refuse what no task could read."""
    from agfl_models.errors import NoRows
    from agfl_models.reading.survey import survey

    found = survey(data)
    if not found.rows:
        raise NoRows("AGFL-DATA-057", f"data: {data}: must hold at least one row, got none in {found.files} files")
    return [f"{data}: {found.line}", *found.warnings]


def _rules(policy: Path | None) -> Policy:
    """Return the owner's policy, and say it loudly where that lets the server see an update."""
    from agfl_client.policy import Policy, load_policy

    rules = load_policy(policy) if policy is not None else Policy()
    if rules.allow_plain:
        typer.secho("your policy allows plain: the server may see your update", fg="red", bold=True, err=True)
    return rules


def _member(own_keys: NodeKeys, roster: Path | None, rules: Policy, folder: Path) -> SecureMember | None:
    """Return the node's part in secure sums; none without a roster, if the owner's policy permits that."""
    from agfl_client.secure.secure_member import SecureMember
    from agfl_models.errors import ConfigError
    from agfl_protocol.identity.fingerprint import words_of_roster
    from agfl_protocol.identity.roster_file import read_roster

    if roster is None:
        if not rules.allow_plain:
            raise ConfigError(
                "AGFL-CONFIG-061", "--roster: required, since this owner's policy allows no plain aggregation, got none"
            )
        return None
    owners = read_roster(roster)
    log.info("roster of %d owners, in words: %s", len(owners), words_of_roster(owners))
    return SecureMember(own_keys.name, own_keys.signing, owners, rules, folder)


def _randomness(own_keys: NodeKeys, draws_from: int | None) -> OwnerRandomness:
    """Return what the owner draws with: its own secret, unless a test compares the node with a simulation."""
    from agfl_protocol.randomness import OwnerRandomness

    if draws_from is None:
        return own_keys.sampling
    typer.secho(
        "TEST ONLY: your draws follow from a public seed; sums can be subtracted", fg="red", bold=True, err=True
    )
    return OwnerRandomness.of_seed(draws_from, own_keys.name)


def _serve_run(node: Node, server: str, ca: Path, own_keys: NodeKeys, max_wait_s: float) -> None:
    import threading

    from agfl_client.app import create_client_app
    from agfl_client.transport.supernode import run_node

    run_node(
        server,
        ca,
        own_keys.transport,
        create_client_app(node),
        stop=threading.Event(),  # never set: run_app turns SIGTERM into KeyboardInterrupt
        finished=lambda: node.finished,
        max_wait_s=max_wait_s,
        allowance=node.announced.most_bytes,
        name=node.name,
    )
    log.info("the run is finished")


def main() -> None:
    """Entry point of `agfl-client`."""
    run_app(app)
