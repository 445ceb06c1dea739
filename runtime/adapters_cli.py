"""``weft adapters``: what a running weft's adapters are, and the operations on them."""

from __future__ import annotations

import argparse
import os

from weft.runtime import sources
from weft.runtime.client import Adapter, Changed, Client, Disconnected, NoRun, Refused
from weft.runtime.config import ConfigError

_COLUMNS = ("NAME", "VERSION", "DIGEST", "RANK", "TIER", "PINNED", "REQUESTS", "TOTAL", "ROOT")
DIGEST_DIGITS_SHOWN = 12


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its own commands."""
    parser = commands.add_parser(
        "adapters",
        help="show, load, replace and unload the adapters of a running weft",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", help="as `weft serve` prints it; default: newest")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="a table of all of them (what happens without an action)")
    load = actions.add_parser("load", help="let a name mean an adapter")
    load.add_argument("name", metavar="NAME")
    load.add_argument("source", metavar="SOURCE", help="a folder, org/name of the hub, or a URL")
    load.add_argument("--digest", metavar="SHA256", help="that its content must have")
    load.add_argument("--replace", action="store_true", help="though it means another one now")
    load.add_argument("--pin", action="store_true", help="keep it in host memory")
    for action, text in (
        ("unload", "forget a name, and wait until its memory is free"),
        ("pin", "keep an adapter in host memory"),
        ("unpin", "let an adapter leave host memory"),
        ("prefetch", "read an adapter into host memory"),
    ):
        actions.add_parser(action, help=text).add_argument("name", metavar="NAME")


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks; return the exit code. Raises ``ConfigError``."""
    try:
        with Client(options.run, name="command") as client:
            print(_done(client, options))
    except (NoRun, Disconnected, Refused, sources.BadSource) as error:
        raise ConfigError(str(error)) from None
    return 0


def table(adapters: list[Adapter]) -> str:
    """Return adapters as lines of columns, and what is wrong with those that cannot be used."""
    rows = [_COLUMNS, *map(_row, adapters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"{a.name} cannot be used: {a.refused}" for a in adapters if a.refused is not None]
    return "\n".join(lines)


def _done(client: Client, options: argparse.Namespace) -> str:
    match options.action:
        case None | "list":
            return table(client.adapters())
        case "load":
            pinned = True if options.pin else None
            changed = client.load_adapter(
                options.name,
                sources.located(options.source, os.getcwd()),
                replace=options.replace,
                pinned=pinned,
                digest=options.digest,
            )
        case "unload":
            changed = client.unload_adapter(options.name)
        case "pin" | "unpin":
            changed = client.pin_adapter(options.name, pinned=options.action == "pin")
        case "prefetch":
            changed = client.prefetch_adapter(options.name)
        case _:
            raise AssertionError(options.action)
    return _told(options.name, changed)


def _told(name: str, changed: Changed) -> str:
    outcome = changed.outcome.replace("_", " ")
    if not changed.adapters:
        return f"{name}: {outcome}"
    [adapter] = changed.adapters
    return f"{name}: {outcome}, version {adapter.version}, tier {adapter.tier}"


def _row(adapter: Adapter) -> tuple[str, ...]:
    return (
        adapter.name,
        str(adapter.version),
        (adapter.digest or "-")[:DIGEST_DIGITS_SHOWN],
        "-" if adapter.rank is None else str(adapter.rank),
        "refused" if adapter.refused else adapter.tier,
        "yes" if adapter.pinned else "no",
        str(adapter.requests),
        str(adapter.requests_total),
        adapter.root,
    )
