import os

os.environ.setdefault("PJRT_NPROC", "32")  # two cores: long dispatch queues deadlock without it
os.environ.setdefault("JAX_PLATFORMS", "cpu")
