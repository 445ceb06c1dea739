import json

import pytest
import torch
from safetensors.torch import save_file

from weft.actors.runner.adapter_file import AdapterFile

TENSORS = {
    "x.A": torch.randn(3, 50),
    "x.B": torch.randn(7, 3).bfloat16(),
    "y.A": torch.randn(4, 5).half(),
    "y.ids": torch.tensor([3, 1, 2], dtype=torch.int32),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file(TENSORS, path, metadata={"digest": "d", "scales": json.dumps({"x": 0.5})})
    return path


def opened(path, digest="d"):
    with open(path, "rb") as file:
        return AdapterFile(file.fileno(), digest)


def test_a_file_of_safetensors_is_read_as_it_was_written(path):
    file = opened(path)
    assert set(file.names) == set(TENSORS)
    assert file.scales == {"x": 0.5}
    for name, tensor in TENSORS.items():
        assert file.tensor(name).dtype == tensor.dtype
        assert file.tensor(name).equal(tensor)


@pytest.mark.parametrize("name", ["x.A", "x.B", "y.A"])
def test_a_matrix_is_described_where_it_lies(path, name):
    matrix = opened(path).matrix(name)
    assert matrix.tensor().equal(TENSORS[name])
    assert matrix.part(slice(1, 3), slice(0, 2)).tensor().equal(TENSORS[name][1:3, :2])


def test_its_name_may_vanish(path):
    file = opened(path)
    path.unlink()
    assert file.tensor("x.A").equal(TENSORS["x.A"])


def test_a_file_of_another_adapter_is_noticed(path):
    with pytest.raises(AssertionError, match="not e's"):
        opened(path, "e")
