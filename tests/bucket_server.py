"""A bucket on the loopback address, in memory, as a process: python -m tests.bucket_server PORT.

It is gcp-storage-emulator with two properties of the real service that it lacks, and on which locks and
tensorstore rely: an upload can be conditional on the object's generation, and a download says the generation.
"""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import time
import urllib.request
from http import HTTPStatus

BUCKET = "gs://bucket"


class Bucket:
    """The server's process; leaving the context ends it."""

    def __enter__(self) -> Bucket:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "tests.bucket_server", str(port)]
        # The emulator prints a traceback when a client closes its connection early.
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self.process.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        return self

    def _ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/storage/v1/b/bucket", timeout=5).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment of the processes that use the bucket."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs tries gRPC with TLS for a minute
            # Nobody looks for credentials, at last at an address of Google's that does not answer.
            "FSSPEC_GS_TOKEN": "anon", "NO_GCE_CHECK": "true", "GCE_METADATA_ROOT": "127.0.0.1:1",
        }  # fmt: skip


def add_generations() -> None:
    """Give the emulator's handlers the two properties; call it before its server is imported."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    insert, download = objects.insert, objects.download

    def generation(request, storage, name: str) -> str:
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            return "0"

    def conditional_insert(request, response, storage, *rest, **more):
        asked = request.query.get("ifGenerationMatch")
        name = (request.query.get("name") or [request.data["meta"]["name"]])[0] if asked else ""
        if asked and asked[0] != generation(request, storage, name):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return None
        return insert(request, response, storage, *rest, **more)

    def download_with_generation(request, response, storage, *rest, **more):
        response["x-goog-generation"] = generation(request, storage, request.params["object_id"])
        return download(request, response, storage, *rest, **more)

    objects.insert, objects.download = conditional_insert, download_with_generation


def main() -> None:
    add_generations()
    from gcp_storage_emulator.server import create_server

    http.server.HTTPServer.request_queue_size = 512  # else clients wait for seconds to connect again
    create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    main()
