"""Whether the Hugging Face hub can be reached, and how to do without it."""

import contextlib
import sys
import threading
from collections.abc import Iterator

PATIENCE = 3  # seconds


def unreachable() -> str:
    """Why the hub does not answer within PATIENCE seconds; "" if it does.

    Call it before a download, because huggingface_hub itself would retry for half a minute, with a warning
    each time. It respects the same proxies and HF_HUB_OFFLINE. A thread asks, because resolving a host name
    has no time limit.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    found: list[str] = []

    def ask():
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            found.append("")
        except Exception as error:
            found.append(f"{constants.ENDPOINT} does not answer: {str(error)[:80] or type(error).__name__}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else f"{constants.ENDPOINT} does not answer within {PATIENCE} s"


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Context in which huggingface_hub and `datasets` take only what is in their caches, and ask no server.

    Both read the variable HF_HUB_OFFLINE when they are imported, so it is too late to set it.
    """
    modules = [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config")]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
