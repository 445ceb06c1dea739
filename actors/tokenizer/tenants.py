"""Whose share a request is, and what of it depends on that alone."""

from __future__ import annotations

from weft.actors.tokenizer.refusal import Refusal, need
from weft.runtime.config import ANY_OTHER, Config
from weft.runtime.messages import PRIORITY_MAX, Submit


class Tenants:
    """Names a request's tenant, and knows which ranks it may use."""

    def __init__(self, config: Config) -> None:
        self._rank_max = {
            name: limits.max_lora_rank
            for name, limits in config.tenants.items()
            if limits.max_lora_rank is not None or name != ANY_OTHER
        }

    def of(self, submit: Submit, model: str) -> str:
        """Return the tenant: who the request names, else its user, else the model itself.

        So without any of them each adapter is a tenant, and so is the base.
        """
        return submit.tenant or submit.user or model

    def check_rank(self, tenant: str, rank: int) -> None:
        """Raise ``Refusal`` if an adapter's rank is more than the tenant may use."""
        limit = self._rank_max.get(tenant, self._rank_max.get(ANY_OTHER))
        if limit is not None and rank > limit:
            raise Refusal(
                "lora_rank_exceeded",
                f"the adapter has rank {rank}, and yours may have {limit} at most (max_lora_rank "
                f"of the tenant); use another adapter",
                "model",
            )


def check_priority(priority: int) -> None:
    """Raise ``Refusal`` for a priority out of its range."""
    need(
        abs(priority) <= PRIORITY_MAX,
        "priority",
        f"{priority} is not in {-PRIORITY_MAX} .. {PRIORITY_MAX}; lower is earlier",
    )
