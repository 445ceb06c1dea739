from dataclasses import dataclass, field

import pytest

from weft.actors.scheduler.pages import Pages


@dataclass(eq=False)
class Tenant:
    pages: list[int] = field(default_factory=list)
    is_gone: bool = False

    @property
    def page_count(self):
        return len(self.pages)

    def evict(self):
        self.is_gone = True
        return self.pages


@pytest.fixture
def pages():
    return Pages(10)


def settle(pages, *counts):
    """Tenants of so many pages each, which become idle one after the other."""
    tenants = [Tenant(pages.take(count)) for count in counts]
    for tenant in tenants:
        pages.make_idle(tenant)
    return tenants


def check(pages, tenants, *owned):
    pages.check([page for t in tenants if not t.is_gone for page in t.pages], *owned)


def test_a_page_freed_last_is_taken_first(pages):
    first, second = pages.take(2)
    pages.give_back([second, first])
    assert pages.take(3)[:2] == [first, second]


def test_idle_tenants_are_available_and_only_evicted_when_nothing_is_free(pages):
    tenants = settle(pages, 3, 4)
    assert (pages.free, pages.idle, pages.available) == (3, 7, 10)
    taken = pages.take(3)
    assert not any(tenant.is_gone for tenant in tenants)
    check(pages, tenants, taken)


def test_who_became_idle_first_is_evicted_first_and_gives_up_all_its_pages(pages):
    tenants = settle(pages, 3, 4)
    taken = pages.take(4)
    assert [tenant.is_gone for tenant in tenants] == [True, False]
    assert (pages.free, pages.available) == (2, 6)
    check(pages, tenants, taken)


def test_one_in_use_is_never_evicted(pages):
    tenants = settle(pages, 3, 4)
    pages.make_busy(tenants[0], keeps_place=False)
    taken = pages.take(7)
    assert [tenant.is_gone for tenant in tenants] == [False, True]
    with pytest.raises(AssertionError, match="1 of 0 available pages"):
        pages.take(1)
    check(pages, tenants, taken)


@pytest.mark.parametrize(("keeps_place", "gone"), [(False, 1), (True, 0)])
def test_one_that_was_used_in_between_goes_to_the_end_unless_it_keeps_its_place(
    pages, keeps_place, gone
):
    tenants = settle(pages, 3, 4)
    pages.make_busy(tenants[0], keeps_place=keeps_place)
    pages.make_idle(tenants[0])
    assert pages.order[0] is tenants[gone]
    pages.take(4)
    assert tenants[gone].is_gone
    assert not tenants[1 - gone].is_gone


def test_a_tenant_can_be_evicted_out_of_turn(pages):
    tenants = settle(pages, 3, 4)
    pages.evict(tenants[1])
    assert (pages.free, pages.idle) == (7, 3)
    check(pages, tenants)


@pytest.mark.parametrize("keeps_place", [False, True])
def test_evicting_one_in_use_is_a_bug(pages, keeps_place):
    [tenant] = settle(pages, 3)
    pages.make_busy(tenant, keeps_place=keeps_place)
    with pytest.raises((AssertionError, KeyError)):
        pages.evict(tenant)


@pytest.mark.parametrize("owned", [[[0]], [[0, 1], [1]], [[0, 0, 1]]], ids=str)
def test_a_page_that_is_lost_or_owned_twice_is_found(pages, owned):
    assert sorted(pages.take(2)) == [0, 1]
    pages.check([0], [1])
    with pytest.raises(AssertionError, match="lost or owned twice"):
        pages.check(*owned)
