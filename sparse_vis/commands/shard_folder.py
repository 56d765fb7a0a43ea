"""The folder of an extraction: its planned shards, and the manifest that identifies the extraction."""

from __future__ import annotations

import time
from pathlib import Path

from sparse_vis.commands.shards import entry_of, fingerprint, read_shard
from sparse_vis.data.folder import note_times
from sparse_vis.runtime import skipped
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import CHECKSUM, holds_files, read_json, write_json, write_whole
from sparse_vis.runtime.progress import REPORT_SECONDS

POLL_SECONDS = 0.2
MANIFEST = "manifest.json"


def plan(output: Path, images: int, shard_size: int) -> dict[Path, range]:
    """Path of every shard -> indices of its images.

    Args:
        output: folder of the shards. images: number of images. shard_size: images per shard.
    """
    starts, shards = range(0, images, shard_size), {}
    for number, start in enumerate(starts):
        path = output / f"features-{number:05d}-of-{len(starts):05d}.parquet"
        shards[path] = range(start, min(start + shard_size, images))
    return shards


def wait_for(paths: list[Path], what: str) -> None:
    """Wait until other processes have written these files.

    Args:
        paths: in a folder that the processes share. what: name of the files, for the line printed meanwhile.
    """
    printed = time.perf_counter()
    while missing := [path for path in paths if not path.exists()]:
        time.sleep(POLL_SECONDS)
        if time.perf_counter() - printed >= REPORT_SECONDS:
            printed = time.perf_counter()
            print(f"waiting for {len(missing)} {what} of the other processes", flush=True)


def drop_changed(shards: dict[Path, dict[str, str]]) -> None:
    """Delete finished shards whose images have changed since, so that they are written again.

    Args:
        shards: path → `stamp` of its present images.
    """
    other_times = []
    for path, now in shards.items():
        try:
            entry = read_json(entry_of(path))
            images, times = entry["images"], entry["times"]
        except (OSError, ValueError, KeyError):  # missing or damaged, as `read_shard` will report
            continue
        if images != now["images"]:
            print(f"note: images of {path.name} have changed; it is written again", flush=True)
            path.unlink(missing_ok=True)
        elif times != now["times"]:
            other_times.append(path.name)
    note_times(other_times)


def finish(output: Path, manifest: dict, shards: dict[Path, range]) -> tuple[int, int]:
    """Complete the folder when all shards exist: write skipped.txt, and the manifest with the shards' rows.

    Args:
        output: folder. manifest: as for `open_output`. shards: all, from `plan`.

    Returns:
        (rows, skipped images) of all shards.

    Raises:
        UserError: a shard is damaged, judging by its length and number of rows.
    """
    # The processes that found or wrote the shards have checked their contents.
    settings = fingerprint(manifest)
    found = {
        path.name: read_shard(path, len(images), settings, content=False) for path, images in shards.items()
    }
    skips = [skip for shard in found.values() for skip in shard.skipped]
    write_whole(output / skipped.FILE, "".join(sorted(skipped.lines(skips))))
    said = {
        name: {
            "rows": shard.rows,
            "skipped": len(shard.skipped),
            "bytes": shard.bytes,
            "sha256": shard.sha256,
        }
        for name, shard in found.items()
    }
    write_json(output / MANIFEST, manifest | {"shards": said})
    return sum(shard.rows for shard in found.values()), len(skips)


def open_output(output: Path, manifest: dict, first: bool) -> None:
    """Create the output folder with its manifest, or check that it belongs to the same extraction.

    Args:
        output: folder. manifest: of this extraction; its "checkpoint" is for information and may differ.
        first: whether this process creates the folder; others wait for it.

    Raises:
        UserError: the folder holds something else, features with other settings, or a damaged manifest.
    """
    from sparse_vis.config.settings import differences

    path = output / MANIFEST
    if first and not path.exists():
        # If only the manifest is lost, each shard's entry has a fingerprint of the settings.
        planned = plan(output, manifest["images"], manifest["shard_size"])
        ours = {skipped.FILE, *(file.name for shard in planned for file in (shard, entry_of(shard)))}
        if holds_files(output, ours):
            raise UserError(f"folder {output} holds something else; give --output a new or empty folder.")
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, manifest)
        return
    wait_for([path], "manifest")
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, or no manifest of an extraction ({error}); delete it to have it written "
            "again, or give --output another folder."
        ) from None
    free = {"checkpoint": "", "shards": {}, CHECKSUM: ""}
    if changed := differences(found | free, manifest | free):
        raise UserError(
            f"folder {output} holds features of another extraction ({'; '.join(changed)}); "
            "repeat its settings, or give --output another folder."
        )
    if CHECKSUM not in found:
        raise UserError(
            f"the features in {output} are of an earlier version, which kept no checksums, so they cannot be "
            "continued; they can be read as before: give --output another folder."
        )
