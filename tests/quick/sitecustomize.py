"""For every Python that a test starts, which finds this file before others of its name: see conftest.py."""

import gc

gc.set_threshold(50_000, 20, 20)  # a fifth of the time of tracing would go into looking for garbage
