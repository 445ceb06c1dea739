import numpy as np
import pytest
import torch

from weft.actors.runner.staging import ALIGNMENT, Staging

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def staging():
    made = Staging(1024, DEVICE)
    made.begin()
    return made


def integers(*values):
    return np.array(values, dtype=np.int64)


def test_what_is_put_is_on_the_device_once_it_is_sent(staging):
    numbers = staging.put(integers(1, 2, 3))
    halves = staging.put(np.array([0.5], dtype=np.float32))
    field = staging.take(np.int32, 2)
    field.host[:] = 7, 8
    assert numbers.eq(0).all()
    staging.sender()()
    assert (numbers.tolist(), halves.tolist(), field.tensor.tolist()) == ([1, 2, 3], [0.5], [7, 8])
    assert (numbers.dtype, halves.dtype) == (torch.int64, torch.float32)


def test_steps_that_take_the_same_room_find_it_at_the_same_addresses(staging):
    def laid_out(count):
        staging.begin()
        tensors = [staging.put(integers(*range(count)), room=5), staging.take(np.int32, 3).tensor]
        return [tensor.data_ptr() for tensor in tensors]

    first = laid_out(2)
    assert laid_out(5) == laid_out(0) == first
    assert all(address % ALIGNMENT == first[0] % ALIGNMENT for address in first)


def test_room_that_is_not_used_holds_padding(staging):
    numbers = staging.put(integers(4, 5), room=4, padding=9)
    staging.sender()()
    assert numbers.tolist() == [4, 5, 9, 9]


def test_a_step_can_be_laid_out_before_the_one_before_is_sent(staging):
    first = staging.put(integers(1))
    send_first = staging.sender()
    staging.begin()
    second = staging.put(integers(2))
    send_second = staging.sender()
    send_first()
    assert first.tolist() == [1]
    send_second()
    assert second.tolist() == [2]


def test_room_at_the_end_that_is_not_used_is_not_sent(staging):
    staging.begin()
    staging.put(integers(1))
    field = staging.take(np.int64, 2, room=8)
    field.host[:] = 5, 6
    field.tensor.fill_(3)
    staging.sender()()
    assert field.tensor.tolist() == [5, 6, 3, 3, 3, 3, 3, 3]


def test_more_than_there_is_room_for_is_an_assertion(staging):
    with pytest.raises(AssertionError, match="needs 1032 bytes of 1024"):
        staging.take(np.int64, 0, room=129)
