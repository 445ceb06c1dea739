"""Prints in which layouts attention's kernels sum over a tile's keys, as compiled for a GPU.

    python -m tests.kernels.attention_layouts 90

Lines of JSON: model, type, rows of the tile, layouts. Not under TRITON_INTERPRET.
"""

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.kernels.compiled import recorded
from tests.kernels.compiled_operations import attend
from tests.kernels.compiled_sgmv import MODELS


def main(capability: int) -> None:
    for model_name, model in MODELS.items():
        for dtype in (torch.bfloat16, torch.float32):
            with recorded() as launches:
                attend(model, dtype, counts=[1, 500])
            for launch in launches[:2]:  # narrow and wide tiles
                target = GPUTarget("cuda", capability, 32)
                kernel = triton.compile(launch.source(), target=target, options=launch.options)
                text = kernel.asm["ttgir"]
                sums = re.findall(
                    r'"tt\.reduce".*?axis = 1 : i32.*?\(tensor<\d+x\d+xf32, (#\w+)>', text, re.S
                )
                layouts = [re.search(rf"^{name} = (.*)$", text, re.M)[1] for name in sums]
                rows = launch.arguments["BLOCK_M"]
                print(json.dumps([model_name, str(dtype), rows, layouts]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
