"""vLLM's Triton kernels, where vLLM is installed."""

import torch
from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

from tests.bench.gpu.engine_torch import Stacked

NAME = "vLLM"


class Engine:
    """All adapters in every layer; layers hold the same."""

    def __init__(self, shape, ranks, *, layers, tokens_max, dtype, place, stacked=None):
        self._stacked = stacked or Stacked(shape, ranks, layers=layers, dtype=dtype, place=place)
        self._place = place
        self._adapters = len(ranks)
        self._rank = int(max(ranks))

    def prepare(self, rows):
        """Return ``add(y, x, layer, site)`` for a batch."""
        tokens = len(rows)
        meta = LoRAKernelMeta.make(self._adapters, tokens, self._place)
        meta.prepare_tensors(torch.from_numpy(rows).to(self._place, torch.int32))
        arguments = meta.meta_args(tokens, specialize_active_lora=True)

        def add(y, x, layer, site):
            a, b = self._stacked.a[layer][site], self._stacked.b[layer][site]
            v = torch.empty(len(a), tokens, self._rank, dtype=torch.float32, device=self._place)
            lora_shrink(x, a, v, *arguments, 1.0)
            lora_expand(v, b, y, *arguments, offset_start=0, add_inputs=True)

        return add
