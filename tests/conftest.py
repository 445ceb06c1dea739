import os
from glob import glob

# Test models are tiny: threads would only wait for each other. Read when torch is first imported,
# and handed down to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Without a GPU Triton's kernels run in its interpreter. That is decided when triton is first
# imported, which other packages do too. What compiles them takes this away again.
if not glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
