import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


# Processes among which the cases are dealt out.
SHARES = 8


def reports(capability, part="", index=0, count=1):
    """Compile in a process of its own: in this one Triton interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiled"]
    command += [str(capability), part, str(index), str(count)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(reports):
    assert reports
    assert [report for report in reports if report["spilled_bytes"]] == []
    # These sum in another order than mma.sync, and are chosen by the number of rows.
    assert [report for report in reports if "wgmma.mma_async" in report["instructions"]] == []


def test_the_kernels_of_a_small_site_compile_for_hopper_without_spills():
    check(reports(90, "Qwen2.5-0.5B decode down"))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(SHARES))
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_of_every_model_compile_without_spills(capability, index):
    check(reports(capability, "", index, SHARES))
