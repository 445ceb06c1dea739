"""The command line: ``weft serve CONFIG [--option value ...]``, ``weft adapters``, and others."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from weft.runtime import adapters_cli, config, log, topology
from weft.runtime.config import Config, ConfigError
from weft.runtime.launch import Launcher
from weft.runtime.meanings import MEANINGS
from weft.runtime.process import EXIT_REFUSED

# Options whose value on the command line is a path, relative to where the user is.
_PATHS = ("model", "chat_template", "adapters_folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    _open_standard_streams()
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    try:
        if unknown:
            raise ConfigError(_unknown(unknown[0], options))
        if options.command == "topology":
            show = topology.as_mermaid if options.mermaid else topology.as_table
            print(show(topology.serving(_shown(options))))
            return 0
        if options.command == "adapters":
            return adapters_cli.run(options)
        return _serve(options)
    except ConfigError as error:
        print(f"weft: error: {error}", file=sys.stderr)
        return EXIT_REFUSED


def _open_standard_streams() -> None:
    """Have those that were closed lead nowhere: the next file would take their number.

    A socket that is called 1 gets what any library prints, here or in a child.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _serve(options: argparse.Namespace) -> int:
    given = {
        name: value for name, value in vars(options).items()
        if name in Config.__struct_fields__ and value is not None
    }  # fmt: skip
    for name in _PATHS:
        if name in given:
            given[name] = str(Path(given[name]).absolute())
    loaded = config.load(options.config, given)
    log.setup("launcher", loaded.log_level)
    return Launcher(loaded, "weft.runtime.topology:serving").run()


def _shown(options: argparse.Namespace) -> Config:
    """Return the configuration whose topology is asked for; without a file, of the defaults."""
    shown = config.load(options.config) if options.config else Config(model="")
    given = {
        name: value for name in ("tensor_parallel_size", "data_parallel_size")
        if (value := vars(options)[name]) is not None
    }  # fmt: skip
    return msgspec.structs.replace(shown, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weft",
        description="Serve one base model and many LoRA adapters in the same batch.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model until Ctrl-C or SIGTERM",
        description="Serve what a YAML file describes. Every option of the file is a flag too, "
        "which overrides it.",
        allow_abbrev=False,
    )
    serve.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/")
    overrides = serve.add_argument_group("options of the configuration")
    for field in msgspec.structs.fields(Config):
        _add_override(overrides, field)
    adapters_cli.add_parser(commands)
    show = commands.add_parser(
        "topology", help="show the processes and what flows between them", allow_abbrev=False
    )
    show.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="of this YAML file")
    show.add_argument("--mermaid", action="store_true", help="as a diagram in Mermaid's language")
    for size in ("--tensor-parallel-size", "--data-parallel-size"):
        show.add_argument(size, type=int, metavar="INT", help="default: CONFIG's")
    return parser


def _add_override(group: argparse._ArgumentGroup, field: msgspec.structs.FieldInfo) -> None:
    group.add_argument(
        _flag(field),
        dest=field.name,
        metavar=_kind(field.type),
        help="; ".join(filter(None, (MEANINGS[field.name], _default(field)))).replace("%", "%%"),
    )


def _kind(annotation: Any) -> str:
    """Return what a value looks like: a type's name, or the words that may stand there."""
    options = [kind for kind in get_args(annotation) if kind is not type(None)]
    if all(isinstance(option, str) for option in options) and options:
        return "|".join(options)
    if options and all(get_origin(option) is Literal for option in options):
        return "|".join(str(word) for option in options for word in get_args(option))
    if annotation in (bool, int, float, str):
        return str(annotation.__name__).upper()
    if options and options[0] in (int, float, str) and type(None) in get_args(annotation):
        return str(options[0].__name__).upper()
    return "YAML"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"default: {field.default_factory()}"
    if field.default is msgspec.NODEFAULT or field.default is None:
        return ""
    return f"default: {field.default}"


def _unknown(argument: str, options: argparse.Namespace) -> str:
    command = " ".join(filter(None, ("weft", options.command, vars(options).get("action"))))
    hint = f"; see `{command} --help`"
    if options.command == "serve":
        given = argument.partition("=")[0].replace("_", "-")
        known = [_flag(field) for field in msgspec.structs.fields(Config)]
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else hint
    return f"unknown argument {argument}{hint}"


def _flag(field: msgspec.structs.FieldInfo) -> str:
    return f"--{field.name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
