"""What adapters take, by arithmetic on their shapes; and what processes take, as Linux tells it."""

import time
from pathlib import Path

from weft.actors.adapters.base import BaseShapes

FILE_BYTES = 2  # of a number, as adapters are saved here
PAGE_TOKENS = 16

# In which a thread that clears pages has cleared some.
SETTLING_S = 1.0


def file_bytes(catalogue, names):
    """Return the bytes of the weights themselves: rank x (inputs + outputs) of every module."""
    widths = sum(sum(catalogue.base.shape(module)) for module in catalogue.shape.modules)
    ranks = sum(catalogue.ranks[name] for name in names)
    return FILE_BYTES * ranks * catalogue.shape.layers * widths


def device_pages(catalogue, names):
    """Return the pages of adapters: granules of 8 ranks by 128 columns, in whole pages."""
    per_page = -(-_kv_bytes(catalogue) // _granule_bytes(catalogue))
    columns = sum(
        -(-width // 128)
        for module in catalogue.shape.modules
        for width in catalogue.base.shape(module)
    )
    return sum(-(-catalogue.ranks[name] // 8 * columns // per_page) for name in names)


def page_bytes(catalogue):
    """Return the bytes of a page in all layers."""
    granule = _granule_bytes(catalogue)
    return catalogue.shape.layers * -(-_kv_bytes(catalogue) // granule) * granule


def _granule_bytes(catalogue):
    return 8 * 128 * catalogue.shape.dtype.itemsize


def _kv_bytes(catalogue):
    base: BaseShapes = catalogue.base
    # weft computes in float32 on a CPU, whatever the weights' type, and keeps KV in it.
    return 2 * PAGE_TOKENS * base.num_key_value_heads * _head_dim(base) * 4


def _head_dim(base):
    return base.head_dim or base.hidden_size // base.num_attention_heads


def files_on_host(server):
    """Return the bytes of the store's files: memory, since they lie in /dev/shm."""
    return sum(path.stat().st_blocks * 512 for path in (server.run_dir / "adapters").iterdir())


def settled_bytes(server, role):
    """Return the memory of one process, once it does not grow by itself: it asks for pages."""
    before, now = -1, resident_bytes(server, role)
    while now > before:
        time.sleep(SETTLING_S)
        before, now = now, resident_bytes(server, role)
    return now


def resident_bytes(server, role):
    """Return the memory of one process of a run."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                if role.encode() in command and str(server.run_dir).encode() in command:
                    pages = int((process / "statm").read_text().split()[1])
                    return pages * 4096
            except (FileNotFoundError, ProcessLookupError):
                continue
    raise LookupError(f"no process of {server.run_dir} is called {role}")
