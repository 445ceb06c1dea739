"""What a device can do at best, and how long it takes to do something."""

import statistics
import time

import torch

COPY_BYTES = 2**30
MATRIX = 8192
SAMPLES = 5
SAMPLE_S = 0.02


def find():
    """Return the device to measure: a GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name(device):
    """Return what the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, interpreted"


def processors(device):
    """Return the number of its multiprocessors."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def cache_bytes(device):
    """Return the size of its last cache."""
    if device.type == "cpu":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size


def seconds(work, device):
    """Return how long ``work`` takes, without what Python takes to launch it.

    On a GPU it is captured as a graph, and the median of several samples is returned, each of as
    many replays as fill some milliseconds. On a CPU it runs once.
    """
    if device.type == "cpu":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    work()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    once = _replay(graph, 1)
    repeats = max(1, int(SAMPLE_S / max(once, 1e-6)))
    return statistics.median(_replay(graph, repeats) for _ in range(SAMPLES))


def _replay(graph, repeats):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def copy_rate(device):
    """Return bytes a second of a large copy, read and written."""
    size = COPY_BYTES if device.type == "cuda" else 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def matrix_rate(device, dtype):
    """Return floating-point operations a second of a large product of matrices."""
    size = MATRIX if device.type == "cuda" else 128
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out), device)
