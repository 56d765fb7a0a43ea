"""SIGTERM and Ctrl-C: leave at once where nothing would be lost, else finish the step and save first."""

from __future__ import annotations

import os
import signal
import sys


class StopSignal:
    """What the training loop asks whether it shall save and stop.

    A first Ctrl-C is treated like a SIGTERM, but the process then ends as Ctrl-C usually ends it, so that a
    shell leaves its loop over runs too. A second one ends the process at once.

    Attributes:
        number: the signal that has come; None before.
        keep: True while there are steps to save; without it, a signal prints `message` and ends the process.
        message: what is left undone, after the signal's name.
    """

    def __init__(self):
        self.number = None
        self.keep = False
        self.message = "before the first step: nothing had to be saved; the same command continues."

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    @property
    def name(self) -> str:
        """The signal's name, for messages."""
        return "Ctrl-C" if self.number == signal.SIGINT else "SIGTERM"

    def listen(self) -> StopSignal:
        """Handle both signals from now on; only the main thread may call it."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def share(self) -> None:
        """With several processes: turn Ctrl-C into SIGTERM, after which JAX agrees on a step for all."""
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def at(self, step: int) -> bool:
        """Whether to save and stop at this step; the same answer on all processes of a run."""
        import jax  # here, so that a signal during the heavy imports is handled too
        from jax.experimental import multihost_utils

        # With several processes, jax.distributed notices the signal and agrees on a step.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.number = signal.SIGTERM
        return self.received

    def end(self) -> None:
        """End the process if it was Ctrl-C that stopped it; after a SIGTERM, return."""
        if self.number == signal.SIGINT:
            sys.stdout.flush()
            _end_by_interrupt()

    def _handle(self, number: int, _) -> None:
        self.number = number
        if not self.keep:
            # Straight to the descriptor and out: print may be interrupted in the middle of itself, and an
            # exception raised here may be swallowed by whatever library is running.
            os.write(1, f"{self.name} {self.message}\n".encode())
            if number == signal.SIGINT:
                _end_by_interrupt()
            os._exit(0)
        if number == signal.SIGINT:
            os.write(2, b"\nCtrl-C: saving after this step; another Ctrl-C ends without that\n")
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_by_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
