"""Which actor a role is, and what it is made of.

Each process imports its own actor only, so that all but the runner start without torch.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.runtime.actor import Actor
from weft.runtime.config import Config, ConfigError
from weft.runtime.topology import serving


def build(
    role: str,
    config: Config,
    run_dir: Path,
    report: Callable[[float, str], None],
    wakes: select.epoll,
    epoch: int,
) -> Actor[Any]:
    """Return the actor of ``role``; ``report`` hears how far a long start has come, 0 to 1.

    What is registered with ``wakes`` gives the actor a turn once it is readable. ``epoch`` counts
    the role's lives.
    Raises ``ConfigError`` for what the user can mend.
    """
    match role.rstrip("0123456789"):  # of one kind there may be several
        case "tokenizer":
            return _tokenizer(config)
        case "detokenizer":
            return _detokenizer(config)
        case "adapters":
            return _adapters(config, run_dir, wakes)
        case "scheduler":
            return _scheduler(config)
        case "runner":
            return _runner(role, config, run_dir, report, epoch)
    raise AssertionError(f"no actor is called {role}")


def _tokenizer(config: Config) -> Actor[Any]:
    from weft.actors.tokenizer.actor import TokenizerManager
    from weft.actors.tokenizer.text_model import TextModel, keep_torch_out

    keep_torch_out()
    nonce, now_s = secrets.randbits(64), int(time.time())
    return TokenizerManager(config, TextModel.load(config), nonce=nonce, started_s=now_s)


def _detokenizer(config: Config) -> Actor[Any]:
    from weft.actors.detokenizer.actor import Detokenizer
    from weft.actors.detokenizer.vocabulary import Vocabulary
    from weft.actors.tokenizer.text_model import TextModel, keep_torch_out

    keep_torch_out()
    return Detokenizer(Vocabulary(TextModel.load(config).backend))


def _adapters(config: Config, run_dir: Path, wakes: select.epoll) -> Actor[Any]:
    from weft.actors.adapters.actor import AdapterStore
    from weft.actors.adapters.base import BaseShapes
    from weft.actors.adapters.files import LocalFiles
    from weft.actors.adapters.loader import Loader
    from weft.actors.adapters.sandbox import SandboxedLoader
    from weft.actors.adapters.sources.build import with_sources

    base, now_s = BaseShapes.load(config.model), int(time.time())
    folders = SandboxedLoader(config, base, run_dir / "adapters", wakes)
    loader: Loader = folders
    if config.has_remote_adapters:
        loader = with_sources(folders, config, base, wakes)
    return AdapterStore(config, LocalFiles(), loader, str(run_dir), started_s=now_s)


def _scheduler(config: Config) -> Actor[Any]:
    from weft.actors.scheduler.actor import Scheduler

    [runners] = serving(config).groups.values()
    return Scheduler(config, runners=runners)


def _runner(
    role: str, config: Config, run_dir: Path, report: Callable[[float, str], None], epoch: int
) -> Actor[Any]:
    from weft.actors.runner import group
    from weft.actors.runner.actor import Runner
    from weft.actors.runner.architecture import UnsupportedModel
    from weft.actors.runner.torch_engine import TorchEngine

    try:
        table = serving(config)
        name = table.process(role).group
        # Where only this life's ranks come: one of the last that were still there met nobody.
        place = run_dir / f"{name}.{epoch}"
        place.mkdir(exist_ok=True)
        joined = group.join(config, table.groups[name].index(role), place)
        engine = TorchEngine(config, lambda share: report(share, "loading weights"), joined)
    except UnsupportedModel as error:
        raise ConfigError(str(error)) from None
    return Runner(engine, role=role, epoch=epoch)
