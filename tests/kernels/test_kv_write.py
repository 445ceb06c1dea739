import pytest
import torch

from weft.kernels.kv_write import cpu, reference

NAN = float("nan")
PAGES, PAGE_TOKENS = 50, 3
DTYPES = [torch.float32, torch.bfloat16]

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
kernels = pytest.mark.parametrize(
    "kernel", [reference, pytest.param(cpu, marks=needs_compiler)], ids=["reference", "native"]
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2], ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def caches(heads, size, dtype):
    """Keys and values that share pages, with a gap behind them; all NaN."""
    half = PAGE_TOKENS * heads * size
    memory = torch.full((PAGES, 2 * half + 5), NAN, dtype=dtype)
    parts = memory[:, :half], memory[:, half : 2 * half]
    return memory, *(part.unflatten(1, (PAGE_TOKENS, heads, size)) for part in parts)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "size"), [(0, 2, 8), (1, 1, 1), (4, 2, 7), (70, 2, 64), (140, 8, 128)]
)
def test_tokens_come_to_their_places_and_nothing_else_is_touched(
    kernel, tokens, heads, size, dtype, threads
):
    memory, k_cache, v_cache = caches(heads, size, dtype)
    qkv = torch.randn(tokens, (heads * 3 + 1) * size)  # of which a part is keys, a part values
    key = qkv[:, : heads * size].view(-1, heads, size)
    value = qkv[:, (heads + 1) * size : (2 * heads + 1) * size].view(-1, heads, size)
    slots = torch.randperm(PAGES * PAGE_TOKENS)[:tokens]
    kernel.kv_write(key, value, k_cache, v_cache, slots)
    for i, slot in enumerate(slots.tolist()):
        place = slot // PAGE_TOKENS, slot % PAGE_TOKENS
        assert k_cache[place].equal(key[i].to(dtype))
        assert v_cache[place].equal(value[i].to(dtype))
    assert int((~memory.isnan()).sum()) == 2 * tokens * heads * size


@kernels
def test_bfloat16_is_rounded_to_the_nearest_and_keeps_its_limits(kernel):
    inf = float("inf")
    numbers = [1.00390625, 1.01171875, -1.00390625, 3.4e38, inf, -inf, 1e-40, -0.0, 0.1, 0.0]
    # Not a number whose upper half alone would say infinity.
    sly = torch.tensor([0x7F800001, 0xFF800001 - (1 << 32)], dtype=torch.int32).view(torch.float32)
    key = torch.cat((torch.tensor(numbers), sly))[None, None]
    _, k_cache, v_cache = caches(1, key.shape[2], torch.bfloat16)
    kernel.kv_write(key, -key, k_cache, v_cache, torch.tensor([PAGE_TOKENS]))
    stored = k_cache[1, 0, 0]
    assert stored[: len(numbers)].equal(key[0, 0, : len(numbers)].bfloat16())
    assert stored[len(numbers) :].isnan().all()
    assert v_cache[1, 0, 0, : len(numbers)].equal(-stored[: len(numbers)])
