"""What tenants and limited adapters have had, and what they have under way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weft.actors.scheduler.fair import INPUT_COST, OUTPUT_COST
from weft.actors.scheduler.limits import (
    Budget,
    Excess,
    concurrency_excess,
    rate_excess,
    refilled,
)
from weft.runtime.config import ANY_OTHER, Config, Limits, TenantLimits
from weft.runtime.messages import Generate, Refused

# Accounts with nothing under way that are remembered: whoever makes up names fills no memory. The
# one that has been idle longest is forgotten first, and begins anew where those who wait are.
IDLE_MAX = 1024


@dataclass(eq=False, slots=True)
class Account:
    """One tenant's, or one adapter's."""

    name: str
    limits: Limits
    input_price: float  # what a token adds to the counter
    output_price: float
    budget: Budget
    counter: float = 0.0  # service so far, divided by the weight
    live: int = 0  # sequences that are not over

    def excess(self, generate: Generate, now_ns: int) -> Excess | None:
        """Say why a request is beyond the limits, if it is."""
        found = concurrency_excess(self.live, generate.choices, self.limits.max_concurrency)
        per_minute = self.limits.max_tokens_per_minute
        if found is None and per_minute is not None:
            budget = refilled(self.budget, now_ns, per_minute)
            found = rate_excess(budget, len(generate.prompt), per_minute)
        return found

    def spend(self, tokens: int, now_ns: int) -> None:
        """Pay for tokens, where they are limited."""
        per_minute = self.limits.max_tokens_per_minute
        assert per_minute is not None
        budget = refilled(self.budget, now_ns, per_minute)
        self.budget = budget._replace(tokens=budget.tokens - tokens)


class Accounts:
    """Accounts by name, made when they are needed.

    Invariant, checked by ``check``: an account is idle or has something under way, and at most
    ``IDLE_MAX`` are idle.
    """

    def __init__(self, limits: Mapping[str, Limits]) -> None:
        """``limits`` are by name; ``ANY_OTHER`` stands for whom they do not name."""
        self._limits = limits
        self._accounts: dict[str, Account] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # the one idle longest first

    def __len__(self) -> int:
        return len(self._accounts)

    def get(self, name: str, now_ns: int) -> Account:
        """Return an account, a new one if there is none. It is kept once it is taken."""
        account = self._accounts.get(name)
        if account is None:
            limits = self._limits.get(name) or self._limits.get(ANY_OTHER) or Limits()
            weight = limits.weight if isinstance(limits, TenantLimits) else 1.0
            full = Budget(float(limits.max_tokens_per_minute or 0), now_ns)
            account = Account(name, limits, INPUT_COST / weight, OUTPUT_COST / weight, full)
        return account

    def take(self, account: Account, sequences: int) -> None:
        """Note sequences that begin to be under way."""
        self._accounts[account.name] = account
        self._idle.pop(account.name, None)
        account.live += sequences

    def give_back(self, account: Account) -> None:
        """Note a sequence that is over."""
        account.live -= 1
        if account.live == 0:
            self._idle[account.name] = None
            if len(self._idle) > IDLE_MAX:
                forgotten, _ = self._idle.popitem(last=False)
                del self._accounts[forgotten]

    def counter(self, name: str) -> float:
        """Return a tenant's counter; 0 for who is not known."""
        account = self._accounts.get(name)
        return account.counter if account else 0.0

    def check(self, live: Mapping[str, int]) -> None:
        """Assert the invariant; ``live`` are the sequences of each name that are not over."""
        assert len(self._idle) <= IDLE_MAX
        found = {name: account.live for name, account in self._accounts.items() if account.live}
        assert found == dict(live)
        assert self._idle.keys() == self._accounts.keys() - found.keys()


class Payers:
    """Finds the accounts that a request is counted in: its tenant's, and its adapters'."""

    def __init__(self, config: Config) -> None:
        self.tenants = Accounts(config.tenants)
        self.adapters = Accounts(config.adapter_limits)
        self._limits_adapters = bool(config.adapter_limits)

    def of(self, generate: Generate, now_ns: int) -> tuple[Account, list[Account]]:
        """Return a request's tenant, and its adapters if adapters are limited."""
        tenant = self.tenants.get(generate.tenant, now_ns)
        if not self._limits_adapters:
            return tenant, []
        return tenant, [self.adapters.get(use.name, now_ns) for use in generate.adapters]

    def refusal(self, generate: Generate, now_ns: int) -> Refused | None:
        """Say which limit a request is beyond, if it is beyond one."""
        tenant, adapters = self.of(generate, now_ns)
        named = ((account, f"of {account.name!r}") for account in adapters)
        for account, whose in ((tenant, "yours"), *named):
            excess = account.excess(generate, now_ns)
            if excess is not None:
                return excess.refused(generate.label, whose)
        return None

    def take(self, generate: Generate, now_ns: int) -> tuple[Account, list[Account]]:
        """Note that a request begins, and let it pay for its prompt; return its accounts."""
        tenant, adapters = self.resume(generate, generate.choices, now_ns)
        for account in metered(tenant, adapters):
            account.spend(len(generate.prompt), now_ns)
        return tenant, adapters

    def resume(
        self, generate: Generate, choices: int, now_ns: int
    ) -> tuple[Account, list[Account]]:
        """Note so many choices of a request that has paid for its prompt elsewhere."""
        tenant, adapters = self.of(generate, now_ns)
        self.tenants.take(tenant, choices)
        for adapter in adapters:
            self.adapters.take(adapter, choices)
        return tenant, adapters

    def give_back(self, tenant: Account, adapters: Iterable[Account]) -> None:
        """Note a choice of theirs that is over."""
        self.tenants.give_back(tenant)
        for adapter in adapters:
            self.adapters.give_back(adapter)


def metered(tenant: Account, adapters: Iterable[Account]) -> list[Account]:
    """Return who pays for tokens by the minute."""
    return [a for a in (tenant, *adapters) if a.limits.max_tokens_per_minute is not None]
