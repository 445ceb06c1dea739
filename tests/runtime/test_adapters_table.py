import pytest

from weft.runtime.adapters_table import ROWS, View, summary, table
from weft.runtime.client import Adapter, Report


def adapter(name, **changes):
    values = {
        "name": name, "version": 1, "digest": "ab" * 32, "root": f"/{name}", "rank": 8,
        "size_bytes": 3 * 2**20, "tier": "disk", "pinned": False, "requests": 0,
        "requests_total": 0, "created_s": 7, "hits": [0, 0, 0],
    }  # fmt: skip
    return Adapter(**(values | changes))


def names(text):
    return [line.split()[0] for line in text.splitlines()[1:]]


BUSY = adapter(
    "busy", requests=3, requests_total=9, tier="device", hits=[6, 2, 1], queue_s_mean=0.0042
)
USED = adapter("used", version=2, requests_total=12, tier="host", rank=64)
BAD = adapter("bad", version=3, digest=None, rank=None, size_bytes=None, refused="no weights")
ALL = [BAD, adapter("idle", version=4, size_bytes=2**31), USED, BUSY]


def test_the_busiest_come_first_and_others_as_they_were_known():
    assert names(table(ALL)) == ["busy", "used", "bad", "idle", "bad"]


def test_a_row_says_where_an_adapter_lay_for_its_requests_and_how_long_these_waited():
    row = table([BUSY]).splitlines()[1].split()
    assert row == [
        "busy", "1", "abababababab", "8", "3MiB", "device", "no", "3", "9", "6/2/1", "4.2ms",
        "/busy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pins", "shown"),
    [
        ({}, "no"),
        ({"pinned": True}, "yes"),
        ({"pinned": True, "pinned_on_device": True}, "device"),
    ],
)
def test_a_row_says_how_an_adapter_is_pinned(pins, shown):
    assert table([adapter("a", **pins)]).splitlines()[1].split()[6] == shown


def test_what_cannot_be_used_says_why():
    assert table([BAD]).splitlines()[-1] == "bad cannot be used: no weights"


@pytest.mark.parametrize(
    ("sort", "first"),
    [("name", "bad"), ("rank", "used"), ("size", "idle"), ("version", "idle"), ("queue", "busy"),
     ("tier", "busy")],
)  # fmt: skip
def test_the_order_can_be_chosen(sort, first):
    assert names(table(ALL, View(sort=sort)))[0] == first


def test_rows_can_be_chosen_by_name_and_tier():
    assert names(table(ALL, View(match="*us*"))) == ["busy", "used"]
    assert names(table(ALL, View(tier="host"))) == ["used"]
    assert names(table(ALL, View(tier="refused"))) == ["bad", "bad"]


def test_two_thousand_rows_are_read_a_page_at_a_time():
    many = [adapter(f"a{number}", version=number) for number in range(2000)]
    shown = table(many).splitlines()
    assert len(shown) == 1 + ROWS + 1
    assert shown[-1].startswith(f"1 to {ROWS} of 2000; --offset")
    second = names(table(many, View(limit=3, offset=1998)))
    assert second == ["a1998", "a1999", "1999"]
    assert len(table(many, View(limit=0)).splitlines()) == 2001
    assert table(many, View(offset=5000)).splitlines()[-1].startswith("none of 2000")


def test_a_summary_says_what_lies_where():
    sections = {
        "adapters": {"loaded_bytes": 6 * 2**20, "bytes_max": 2**32, "evictions_total": 4},
        "scheduler": {
            "adapters_resident": 1, "adapter_slots": 8, "pages_adapters": 5, "pages": 100,
            "adapter_evictions_total": 2,
        },
    }  # fmt: skip
    loads = [{"process": "adapters", "tier": "host", "seconds": [1, 3], "seconds_sum": 0.01}]
    assert summary(ALL, Report(sections, [], [], loads)).splitlines() == [
        "4 adapters: 1 on the device, 1 in host memory, 1 on disk, 1 refused",
        "host: 6MiB of 4.0GiB, 4 evicted, 4 read in 2.5ms each",
        "device (scheduler): 1 of 8 slots, 5 of 100 pages, 2 evicted, none copied",
    ]
