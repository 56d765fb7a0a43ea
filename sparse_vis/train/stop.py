"""Handle SIGTERM and Ctrl-C: end at once if nothing would be lost, else finish the step and save first."""

import os
import signal
import sys
import threading

SIGNALS = signal.SIGINT, signal.SIGTERM


class StopSignal:
    """Context that handles both signals and tells the training loop when to save and stop.

    A first Ctrl-C is handled like a SIGTERM, but the process then ends as if interrupted, so that a shell
    script's loop over runs ends too. A second Ctrl-C ends the process at once. `status`: exit status after a
    SIGTERM.
    """

    def __init__(self, status: int = 0):
        self.status = status
        self.number = None  # of the signal received
        # Whether there are steps to save; if not, a signal prints the message and ends the process.
        self.keep = False
        self.message = "before the first step: there was nothing to save; repeat the command to start again."

    @property
    def received(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        """The signal's name, for messages."""
        return "Ctrl-C" if self.number == signal.SIGINT else "SIGTERM"

    def __enter__(self) -> "StopSignal":
        # None is a handler that was not set from Python, and could not be restored.
        self.before = {n: h for n in SIGNALS if (h := signal.getsignal(n)) is not None}
        self.listen()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Handle both signals from now on; only the main thread may call it."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def share(self) -> None:
        """With several processes, turn Ctrl-C into SIGTERM, after which JAX makes all agree on a step."""
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def at(self, step: int) -> bool:
        """Whether to save and stop at this step; all processes of a run get the same answer."""
        import jax  # here, so that a signal during the heavy imports is handled too
        from jax.experimental import multihost_utils

        # With several processes, jax.distributed receives the signal and chooses a step for all.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.number = signal.SIGTERM
        return self.received

    def end(self) -> None:
        """After a Ctrl-C, end the process as if interrupted; after a SIGTERM, with `status`."""
        if self.number == signal.SIGINT:
            sys.stdout.flush()
            _end_by_interrupt()
        if self.received and self.status:
            sys.exit(self.status)

    def _handle(self, number: int, _) -> None:
        self.number = number
        if not self.keep:
            # os.write and os._exit, because the signal may have interrupted a print, and an exception raised
            # here may be swallowed by the library that is running.
            os.write(1, f"{self.name} {self.message}\n".encode())
            if number == signal.SIGINT:
                _end_by_interrupt()
            os._exit(self.status)
        if number == signal.SIGINT:
            os.write(2, b"\nCtrl-C: saving after this step; another Ctrl-C ends without that\n")
            signal.signal(signal.SIGINT, signal.SIG_DFL)


class StopCall(StopSignal):
    """A StopSignal for `sparse_vis.train`, whose process, e.g. a notebook, goes on after the call.

    The first Ctrl-C or SIGTERM saves after the step. One before the first step, and a second one, goes to the
    handlers that were there before; that of Ctrl-C raises KeyboardInterrupt. Outside the main thread, which
    gets all signals in Python, nothing is handled.
    """

    def __enter__(self) -> "StopCall":
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            super().__enter__()
        return self

    def end(self) -> None:
        """Raise again the signal that stopped the training, for the handlers that were there before."""
        if self.received:
            signal.raise_signal(self.number)

    def _handle(self, number: int, _) -> None:
        if self.keep and not self.received:
            self.number = number
            os.write(2, f"\n{self.name}: saving after this step; another one ends without that\n".encode())
            return
        self.__exit__()
        signal.raise_signal(number)


def _end_by_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
