import os
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from weft.actors.adapters import place
from weft.runtime.config import Config

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 22 0:23 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=1g
31 22 0:40 / /data/with\\040space rw shared:7 - xfs /dev/vdb rw
"""

Status = namedtuple("Status", ["f_bavail", "f_frsize"])


@pytest.mark.parametrize(
    ("device", "expected"), [((254, 0), False), ((0, 23), True), ((0, 40), False), ((9, 9), False)]
)
def test_a_place_is_memory_if_its_file_system_is(device, expected):
    assert place.is_in_memory(os.makedev(*device), MOUNTS) == expected


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_this_machines_shared_memory_is_memory():
    mounts = Path("/proc/self/mountinfo").read_text()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert place.is_in_memory(os.stat(folder).st_dev, mounts)


def test_adapters_get_no_more_memory_than_there_is_for_their_files(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "statvfs", lambda path: Status(1000, 2**20))
    config = Config(model="-", adapter_host_memory_mib=4096)
    with caplog.at_level("WARNING", "weft.adapters"):
        assert place.fitted(config, tmp_path).adapter_host_memory_mib == 900
    assert f"{tmp_path} has room for 900" in caplog.text
    small = Config(model="-", adapter_host_memory_mib=900)
    assert place.fitted(small, tmp_path) is small
