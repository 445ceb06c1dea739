"""Makes a ``Generate`` of what a request says, what its names mean, and its encoded prompt."""

from __future__ import annotations

import hashlib

from weft.actors.tokenizer import sampling
from weft.actors.tokenizer.apart import Asked
from weft.actors.tokenizer.composition import Composition
from weft.actors.tokenizer.prompt import PromptEncoder
from weft.actors.tokenizer.tenants import Tenants
from weft.runtime.config import Config
from weft.runtime.messages import Generate


class Assembly:
    """Fills in every default, and gives each request its id."""

    def __init__(self, config: Config, *, nonce: int) -> None:
        """``nonce`` is 64 random bits, new for every life."""
        assert 0 <= nonce < 2**64
        self.count = 0  # of requests so far
        self._tenants = Tenants(config)
        self._nonce = nonce

    def generate(
        self,
        asked: Asked,
        composition: Composition,
        prompts: PromptEncoder,
        prompt: list[int],
    ) -> Generate:
        """Return the request, complete. Raises ``Refusal``."""
        client, submit = asked
        wanted, model = submit.sampling, prompts.model
        sampling.check_tokens(wanted, model.vocab_size)
        tenant = self._tenants.of(submit, composition.tenant)
        self._tenants.check_rank(tenant, composition.rank)
        lora_start = prompts.lora_start(submit, prompt, composition.invocation_tokens)
        stop_token_ids = sampling.stop_tokens(wanted, model.eos_token_ids)
        request_id = f"{self._nonce:016x}{self.count:016x}"
        generate = Generate(
            request_id=request_id,
            client=client,
            label=submit.label,
            model=composition.name,
            prompt=prompt,
            adapters=composition.uses,
            salt="",
            max_tokens=prompts.output_tokens_max(wanted, len(prompt)),
            choices=wanted.n,
            stop_token_ids=stop_token_ids,
            sampling=sampling.fill(
                wanted,
                model.defaults,
                seed=_seed(request_id),
                stop_token_ids=stop_token_ids,
            ),
            stop=sampling.stops(wanted, model.stop),
            include_stop=wanted.include_stop,
            skip_special_tokens=wanted.skip_special_tokens,
            tenant=tenant,
            priority=submit.priority,
            lora_start=lora_start,
            added_tokens=list(model.added_tokens),
        )
        self.count += 1
        return generate


def _seed(request_id: str) -> int:
    """Return a request's own seed, 0 .. 2**63 - 1, when it names none."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8]) >> 1
