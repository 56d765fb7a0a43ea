"""SIGTERM: leave at once where nothing would be lost, else finish the step and save first."""

from __future__ import annotations

import os
import signal


class StopSignal:
    """What the training loop asks whether it shall save and stop.

    Attributes:
        received: whether a SIGTERM has come. keep: True while there are steps to save; without it,
            a SIGTERM prints `message` and ends the process with status 0 on the spot.
        message: one sentence on what is left undone.
    """

    def __init__(self):
        self.received = False
        self.keep = False
        self.message = "SIGTERM before the first step: nothing had to be saved; the same command continues."

    def listen(self) -> StopSignal:
        """Handle SIGTERM from now on; only the main thread may call it."""
        signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, *_) -> None:
        self.received = True
        if not self.keep:
            # Straight to the descriptor and out: print may be interrupted in the middle of itself, and an
            # exception raised here may be swallowed by whatever library is running.
            os.write(1, f"{self.message}\n".encode())
            os._exit(0)

    def at(self, step: int) -> bool:
        """Whether to save and stop at this step; the same answer on all processes of a run."""
        import jax  # here, so that a SIGTERM during the heavy imports is handled too
        from jax.experimental import multihost_utils

        # With several processes, jax.distributed notices the signal and agrees on a step.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = True
        return self.received
