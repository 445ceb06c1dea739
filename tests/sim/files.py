"""Adapter folders that need no disk."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from weft.actors.adapters import defaults
from weft.actors.adapters.actor import AdapterStore
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter, GivenUp
from weft.actors.adapters.files import FileError, LocalFiles
from weft.actors.adapters.loader import REASON_CHARACTERS_MAX, Content, Facts, Loaded
from weft.actors.adapters.reading import read

BASE = BaseShapes(num_hidden_layers=1, hidden_size=4, intermediate_size=4, num_attention_heads=1)


class MemoryFiles:
    """Folders, and what the store writes."""

    def __init__(self, folders):
        self.folders = folders  # folder -> name -> content
        self.written = {}
        self.is_full = False

    def names(self, folder):
        if folder not in self.folders:
            raise FileError(f"{folder} is gone; put it back")
        return sorted(self.folders[folder])

    def subfolders(self, folder):
        prefix = f"{folder}/"
        return sorted(path.removeprefix(prefix) for path in self.folders if path.startswith(prefix))

    def read(self, folder, name, *, bytes_max):
        try:
            return self.folders[folder][name]
        except KeyError:
            raise FileError(f"{name} is gone; put it back") from None

    def write(self, path, parts):
        if self.is_full:
            raise FileError(f"{path}: No space left on device")
        self.written[path] = b"".join(parts)

    def move(self, source, path):
        self.written[path] = self.written.pop(source)

    def remove(self, path):
        del self.written[path]


class DirectLoader:
    """Reads adapters in this process as soon as it is asked; is silent as long as it is slow."""

    def __init__(self, config, base, files, folder="/run/adapters"):
        self.is_slow = False
        self.faults = {}  # source -> exceptions that its next readings end in
        self._config = config
        self._base = base
        self._files = files
        self._folder = folder
        self._base_text = BaseText(config.model)
        self._tickets = 0
        self._done = []
        self._due_ns = {}  # by ticket
        self._clock = self._draw_ns = lambda: 0

    def delay(self, clock, draw_ns):
        """From now on a reading takes as long as is drawn, whichever was begun first."""
        self._clock, self._draw_ns = clock, draw_ns

    def start(self, source, *, with_file):
        self._tickets += 1
        self._due_ns[self._tickets] = self._clock() + self._draw_ns()
        file = f"{self._folder}/{self._tickets}.partial" if with_file else None
        self._done.append(Loaded(self._tickets, self._read(source, file)))
        return self._tickets

    def finished(self):
        if self.is_slow:
            return []
        now_ns = self._clock()
        done = sorted(
            (loaded for loaded in self._done if self._due_ns[loaded.ticket] <= now_ns),
            key=lambda loaded: self._due_ns[loaded.ticket],
        )
        self._done = [loaded for loaded in self._done if loaded not in done]
        return done

    def wait(self):
        assert self._done

    def cancel(self, ticket):
        for loaded in self._done:
            if loaded.ticket == ticket:
                if isinstance(loaded.result, Content) and loaded.result.file is not None:
                    self._files.remove(loaded.result.file)
                self._done[self._done.index(loaded)] = Loaded(ticket, GivenUp())
                return True
        return False

    def counters(self):
        return {}

    def close(self):
        self._done.clear()

    def _read(self, source, file):
        base, config = self._base, self._config
        if self.faults.get(source):
            return self.faults[source].pop(0)
        try:
            found = read(
                self._files,
                source,
                base,
                rank_max=config.max_lora_rank,
                whole_bytes_max=config.whole_modules_bytes_max,
            )
            rows = base.vocab_size + found.tokens_added
            said = defaults.read(self._files, source, self._base_text, rows=rows)
            parts = found.file()
            if file is not None:
                self._files.write(file, parts)
        except (BadAdapter, FileError) as error:
            return BadAdapter(str(error)[:REASON_CHARACTERS_MAX])
        granules = found.granules(base, base.shards(config.tensor_parallel_size))
        size_bytes = sum(len(part) for part in parts)
        facts = Facts(
            found.digest, found.rank, size_bytes, granules, found.tokens_added, found.is_additive,
            list(found.invocation_tokens), said,
        )  # fmt: skip
        return Content(facts, file, source)


class DiskFiles(LocalFiles):
    """Files of this machine, for a loader in this process."""

    def write(self, path, parts):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"".join(parts))


def store_on_disk(config, base, run_dir):
    """An adapter store of real folders, without child processes."""
    loader = DirectLoader(config, base, DiskFiles(), f"{run_dir}/adapters")
    return AdapterStore(config, LocalFiles(), loader, str(run_dir), started_s=0)


def adapter_folder(number, *, rank=2, **options):
    """A PEFT folder whose weights are unlike any other number's."""
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {
        name.format("A"): np.full((rank, 4), number, np.float32),
        name.format("B"): np.full((4, rank), 1, np.float32),
    }
    return {
        "adapter_config.json": json.dumps(config | options).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(weights),
    }
