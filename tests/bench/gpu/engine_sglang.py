"""SGLang's default kernels (csgmv), where SGLang is installed."""

import torch
from sglang.kernels.ops.lora.dense.chunked_sgmv_expand import chunked_sgmv_lora_expand_forward
from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import chunked_sgmv_lora_shrink_forward
from sglang.srt.lora.utils import LoRABatchInfo

from tests.bench.gpu import adapters

NAME = "SGLang"


class Engine:
    """All adapters in every layer; layers hold the same."""

    def __init__(self, shape, ranks, *, layers, tokens_max, dtype, place):
        self._shape, self._place = shape, place
        self._ranks = torch.tensor(ranks, dtype=torch.int32, device=place)
        self._scalings = torch.ones(len(ranks), device=place)
        rank = int(max(ranks))

        def empty(*sizes):
            return torch.zeros(len(ranks), *sizes, dtype=dtype, device=place)

        a = [empty(len(site.widths) * rank, site.features) for site in shape.sites]
        b = [empty(site.out, rank) for site in shape.sites]
        for slot, own in enumerate(map(int, ranks)):
            for i, site in enumerate(adapters.matrices(shape, slot, own, place, dtype)):
                # The A of an adapter's modules follow one another without padding between them.
                a[i][slot, : own * len(site)] = torch.cat([one for one, _ in site])
                b[i][slot, :, :own] = torch.cat([other for _, other in site])
        self._a = [[tensor.clone() for tensor in a] for _ in range(layers)]
        self._b = [[tensor.clone() for tensor in b] for _ in range(layers)]
        ends = [torch.tensor((0, *site.widths)).cumsum(0) for site in shape.sites]
        self._offsets_host = [end.to(torch.int32) for end in ends]
        self._offsets = [end.to(place) for end in self._offsets_host]

    def prepare(self, rows):
        """Return ``add(y, x, layer, site)`` for a batch."""
        info = self._batch(rows)

        def add(y, x, layer, site):
            widths = self._shape.sites[site].widths
            v = chunked_sgmv_lora_shrink_forward(x, self._a[layer][site], info, len(widths))
            chunked_sgmv_lora_expand_forward(
                v, self._b[layer][site], info, self._offsets[site], max(widths), y,
                slice_offsets_cpu=self._offsets_host[site],
            )  # fmt: skip

        return add

    def _batch(self, rows):
        # As its backend chooses: more rows at a time in larger batches.
        tokens = len(rows)
        chunk = 128 if tokens >= 256 else 32 if tokens >= 64 else 16
        starts, slots = [], []
        for slot in sorted(set(rows.tolist())):
            (mine,) = (rows == slot).nonzero()
            for start in range(mine[0], mine[-1] + 1, chunk):
                starts.append(start)
                slots.append(slot)

        def ints(values, dtype=torch.int32):
            return torch.tensor(values, dtype=dtype, device=self._place)

        return LoRABatchInfo(
            use_cuda_graph=False, bs=tokens, num_segments=len(slots),
            seg_indptr=ints([*starts, tokens]), weight_indices=ints(slots),
            lora_ranks=self._ranks, scalings=self._scalings, max_len=chunk, seg_lens=None,
            permutation=torch.arange(tokens, device=self._place, dtype=torch.int32),
        )  # fmt: skip
