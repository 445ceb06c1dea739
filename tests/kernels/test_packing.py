import pytest
import torch

from weft.kernels.sgmv import granules, packing
from weft.kernels.sgmv.granules import Affine, Laid, Module, Piece, Tables, pack_affine
from weft.kernels.sgmv.host_matrix import HostMatrix

TYPES = [torch.float32, torch.bfloat16, torch.float16]
MATRICES = [(1, 1), (8, 128), (9, 129), (3, 500), (16, 64), (40, 300), (512, 130)]


def compiled():
    if packing.library() is None:
        pytest.skip("no C compiler")


def filled(laid, dtype, *, page_granules=3):
    """What ``put`` makes of scattered pages among NaN: [granules, 8, 128]."""
    count = -(-laid.granules // page_granules)
    memory = torch.full((2 * count + 1, page_granules, 8, 128), float("nan"), dtype=dtype)
    pages = torch.randperm(len(memory))[:count].tolist()
    packing.put(laid, memory, pages)
    others = [page for page in range(len(memory)) if page not in pages]
    assert memory[others].isnan().all()
    found = memory[pages].flatten(0, 1)
    assert found[laid.granules :].count_nonzero() == 0
    return found[: laid.granules]


def same_bits(left, right):
    size = torch.int32 if left.dtype == torch.float32 else torch.int16
    return left.view(size).equal(right.view(size))


@pytest.mark.parametrize("target", TYPES, ids=str)
@pytest.mark.parametrize("source", TYPES, ids=str)
@pytest.mark.parametrize(("rank", "columns"), MATRICES)
def test_c_cuts_a_matrix_as_torch_does(rank, columns, source, target):
    compiled()
    matrix = torch.randn(rank, columns).to(source)
    groups, blocks = -(-rank // 8), -(-columns // 128)
    laid = Laid([Piece(HostMatrix.of(matrix), 0, groups)], groups * blocks)
    expected = granules.pack(matrix.to(target))
    assert same_bits(packing.assemble(laid, target), expected)
    assert same_bits(filled(laid, target), expected)


@pytest.mark.parametrize("target", TYPES, ids=str)
@pytest.mark.parametrize("source", TYPES, ids=str)
def test_a_matrix_may_be_a_part_of_another_and_lie_on_its_side(source, target):
    compiled()
    whole = torch.randn(300, 90).to(source)
    for matrix in (whole[3:260, 7:60], whole[3:260, 7:60].t(), whole.t()):
        groups, blocks = -(-matrix.shape[0] // 8), -(-matrix.shape[1] // 128)
        laid = Laid([Piece(HostMatrix.of(matrix), 0, groups)], groups * blocks)
        assert same_bits(filled(laid, target), granules.pack(matrix.to(target)))


@pytest.mark.parametrize("target", TYPES, ids=str)
def test_numbers_are_rounded_to_the_nearest_even_one(target):
    compiled()
    steps = torch.arange(0, 2**16, dtype=torch.int32)
    numbers = (0x3F800000 + steps * 7).view(torch.float32).reshape(64, -1)
    tiny = torch.tensor([[0.0, -0.0, 1e-8, -1e-8, 6e-8, 1e-41, 65504.0, -65504.0]])
    for matrix in (numbers, numbers.t(), tiny, tiny.t()):
        groups, blocks = -(-matrix.shape[0] // 8), -(-matrix.shape[1] // 128)
        laid = Laid([Piece(HostMatrix.of(matrix), 0, groups)], groups * blocks)
        assert same_bits(filled(laid, target), granules.pack(matrix.to(target)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_of_floats_survive_in_granules_of_any_type(dtype):
    compiled()
    affine = Affine(torch.randn(500), torch.randn(500))
    granule = pack_affine(affine, dtype)
    laid = Laid([Piece(HostMatrix.of(granule.transpose(0, 1).reshape(8, -1)), 0, 1)], len(granule))
    assert same_bits(filled(laid, dtype), granule)
    back = granules.unpack_affine(filled(laid, dtype), 500)
    assert back.factor.equal(affine.factor)
    assert back.offset.equal(affine.offset)


@pytest.mark.parametrize("page_granules", [1, 2, 7, 64])
def test_a_whole_layer_lies_where_its_tables_say(page_granules):
    compiled()
    tables = Tables(slots=1, layers=1, sites=2, pages_max=200)
    affine = Affine(torch.randn(130), torch.randn(130))
    sites = [
        [
            Module(0, torch.randn(9, 300), torch.randn(200, 9), 1.0),
            Module(2, torch.randn(64, 300), torch.randn(130, 64), 2.0, affine),
        ],
        [Module(0, torch.randn(512, 20), torch.randn(33, 512), 3.0)],
    ]
    laid = tables.lay_out(0, 0, sites, torch.bfloat16)
    expected = packing.assemble(laid, torch.bfloat16)
    assert same_bits(filled(laid, torch.bfloat16, page_granules=page_granules), expected)
    # A of both modules of the first site share its blocks of columns: 2 and 8 groups.
    start = int(tables.a_start[0, 0, 0])
    both = granules.unpack(expected[start : start + 3 * 10], 10)
    assert both[:9, :300].equal(sites[0][0].a.bfloat16())
    assert both[16:80, :300].equal(sites[0][1].a.bfloat16())


def test_without_a_compiler_torch_does_it(monkeypatch):
    monkeypatch.setattr(packing, "library", lambda: None)
    matrix = torch.randn(20, 300)
    laid = Laid([Piece(HostMatrix.of(matrix), 0, 3)], 9)
    assert same_bits(filled(laid, torch.float32), granules.pack(matrix))


def test_parts_of_a_described_matrix_are_those_of_the_tensor():
    whole = torch.randn(30, 40).bfloat16()
    described = HostMatrix.of(whole)
    assert described.tensor().equal(whole)
    assert described.t().tensor().equal(whole.t())
    for rows, columns in [(slice(3, 17), slice(None)), (slice(None), slice(8, 9))]:
        assert described.part(rows, columns).tensor().equal(whole[rows, columns])
        assert described.part(rows, columns).t().tensor().equal(whole[rows, columns].t())
    assert described.part(slice(5, 5), slice(None)).tensor().shape == (0, 40)
