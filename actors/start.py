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
from weft.runtime.replicas import replica_of, schedulers
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
    match role.rstrip("0123456789_"):  # of one kind there may be several
        case "tokenizer":
            return _tokenizer(config, wakes)
        case "detokenizer":
            return _detokenizer(config)
        case "adapters":
            return _adapters(config, run_dir, wakes)
        case "router":
            return _router(config)
        case "scheduler":
            return _scheduler(role, config)
        case "runner":
            return _runner(role, config, run_dir, report, epoch)
    raise AssertionError(f"no actor is called {role}")


def _tokenizer(config: Config, wakes: select.epoll) -> Actor[Any]:
    from weft.actors.tokenizer.actor import TokenizerManager
    from weft.actors.tokenizer.render_sandbox import SandboxedRenderer
    from weft.actors.tokenizer.text_model import TextModel, keep_torch_out

    keep_torch_out()
    nonce, now_s = secrets.randbits(64), int(time.time())
    model = TextModel.load(config)
    renderer = SandboxedRenderer(model.max_model_len, wakes)
    return TokenizerManager(config, model, renderer, nonce=nonce, started_s=now_s)


def _detokenizer(config: Config) -> Actor[Any]:
    from weft.actors.detokenizer.actor import Detokenizer
    from weft.actors.detokenizer.vocabulary import Vocabulary
    from weft.actors.tokenizer.text_model import TextModel, keep_torch_out

    keep_torch_out()
    vocabulary = Vocabulary(TextModel.load(config).backend)
    return Detokenizer(vocabulary, schedulers=schedulers(config.data_parallel_size))


def _adapters(config: Config, run_dir: Path, wakes: select.epoll) -> Actor[Any]:
    from weft.actors.adapters.actor import AdapterStore
    from weft.actors.adapters.base import BaseShapes
    from weft.actors.adapters.files import LocalFiles
    from weft.actors.adapters.loader import Loader
    from weft.actors.adapters.place import fitted
    from weft.actors.adapters.sandbox import SandboxedLoader
    from weft.actors.adapters.sources.build import with_sources

    config = fitted(config, run_dir)
    base, now_s = BaseShapes.load(config.model), int(time.time())
    folders = SandboxedLoader(config, base, run_dir / "adapters", wakes)
    loader: Loader = folders
    if config.has_remote_adapters:
        loader = with_sources(folders, config, base, wakes)
    return AdapterStore(
        config,
        LocalFiles(),
        loader,
        str(run_dir),
        started_s=now_s,
        schedulers=schedulers(config.data_parallel_size),
    )


def _router(config: Config) -> Actor[Any]:
    from weft.actors.router.actor import Router

    return Router(config)


def _scheduler(role: str, config: Config) -> Actor[Any]:
    from weft.actors.scheduler.actor import Scheduler

    replica = replica_of(role, config.data_parallel_size)
    return Scheduler(config, runners=serving(config).groups[role], replica=replica)


def _runner(
    role: str, config: Config, run_dir: Path, report: Callable[[float, str], None], epoch: int
) -> Actor[Any]:
    from weft.actors.runner import group
    from weft.actors.runner.actor import Runner
    from weft.actors.runner.architecture import UnsupportedModel
    from weft.actors.runner.torch_engine import TorchEngine

    replica = replica_of(role, config.data_parallel_size)
    rank = serving(config).groups[replica.scheduler].index(role)
    first_device = replica.index * config.tensor_parallel_size
    # Where the ranks of one life of a group find each other.
    meeting = run_dir / f"{replica.scheduler}.{epoch}"
    meeting.mkdir(mode=0o700, exist_ok=True)
    try:
        ends = group.join(config, rank, meeting, first_device=first_device)
        engine = TorchEngine(config, report, ends.steps, ends.loads, first_device=first_device)
    except UnsupportedModel as error:
        raise ConfigError(str(error)) from None
    return Runner(engine, role=role, scheduler=replica.scheduler, epoch=epoch)
