import os

# Test models are tiny: threads would only wait for each other. Read when torch is first imported,
# and handed down to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
