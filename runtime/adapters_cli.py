"""``weft adapters``: what a running weft's adapters are, and the operations on them."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from weft.runtime import sources
from weft.runtime.adapters_table import ROWS, SORTS, TIERS, View, summary, table
from weft.runtime.client import Changed, Client, Disconnected, NoRun, Refused
from weft.runtime.config import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its own commands."""
    parser = commands.add_parser(
        "adapters",
        help="show, load, replace and unload the adapters of a running weft",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", help="as `weft serve` prints it; default: newest")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="a table of them (what happens without an action)")
    _add_view(parser, is_action=False)
    _add_view(listing, is_action=True)
    load = actions.add_parser("load", help="let a name mean an adapter")
    load.add_argument("name", metavar="NAME")
    load.add_argument("source", metavar="SOURCE", help="a folder, org/name of the hub, or a URL")
    load.add_argument("--digest", metavar="SHA256", help="that its content must have")
    load.add_argument("--replace", action="store_true", help="though it means another one now")
    load.add_argument("--pin", action="store_true", help="keep it in host memory")
    pin = actions.add_parser("pin", help="keep an adapter in host memory")
    pin.add_argument("name", metavar="NAME")
    pin.add_argument("--device", action="store_true", help="and on the device")
    for action, text in (
        ("unload", "forget a name, and wait until its memory is free"),
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


def _done(client: Client, options: argparse.Namespace) -> str:
    match options.action:
        case None | "list":
            return _listed(client, options)
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
        case "pin":
            changed = client.pin_adapter(options.name, on_device=options.device)
        case "unpin":
            changed = client.pin_adapter(options.name, pinned=False)
        case "prefetch":
            changed = client.prefetch_adapter(options.name)
        case _:
            raise AssertionError(options.action)
    return _told(options.name, changed)


def _add_view(parser: argparse.ArgumentParser, *, is_action: bool) -> None:
    """Add what may be said of a table, before its action or after it."""
    view = parser.add_argument_group("of the table")

    def add(flag: str, default: object, text: str, **more: Any) -> None:
        # What is not said after the action must not undo what was said before it.
        view.add_argument(
            flag, default=argparse.SUPPRESS if is_action else default, help=text, **more
        )

    add("--match", None, "only names like this, with * and ?", metavar="PATTERN")
    add("--tier", None, "only those that lie there", choices=TIERS)
    add("--sort", "use", "default: use, the busiest first", choices=list(SORTS))
    add("--limit", None, f"rows; 0: all; default: {ROWS}", type=int, metavar="N")
    add("--offset", 0, "rows that are left out before them", type=int, metavar="N")
    add("--json", False, "all fields, for programs; all rows by default", action="store_true")


def _listed(client: Client, options: argparse.Namespace) -> str:
    if (options.limit or 0) < 0 or options.offset < 0:
        raise ConfigError("--limit and --offset cannot be negative")
    rows = 0 if options.json else ROWS
    limit = rows if options.limit is None else options.limit
    view = View(options.match, options.tier, options.sort, limit, options.offset)
    adapters = client.adapters()
    if options.json:
        chosen = view.page(view.chosen(adapters))
        return json.dumps([adapter._asdict() for adapter in chosen], indent=1)
    return f"{table(adapters, view)}\n\n{summary(adapters, client.inspect())}"


def _told(name: str, changed: Changed) -> str:
    outcome = changed.outcome.replace("_", " ")
    if not changed.adapters:
        return f"{name}: {outcome}"
    [adapter] = changed.adapters
    return f"{name}: {outcome}, version {adapter.version}, tier {adapter.tier}"
