"""Files of Debian packages, as sources of data sets that are not committed."""

import pathlib
import subprocess

from sparse_vis.runtime.errors import UserError


def unpack_debian(names: tuple[str, ...], downloads: pathlib.Path, tree: pathlib.Path) -> None:
    """Unpack packages into one tree of folders; what `downloads` lacks is fetched into it with apt-get.

    Raises:
        UserError: apt-get or dpkg-deb fail.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            if not list(downloads.glob(f"{name}_*.deb")):
                print(f"fetching {name}", flush=True)
                subprocess.run(["apt-get", "-q", "download", name], cwd=downloads, check=True)
            file = next(downloads.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", file.resolve(), tree], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        failed = error.cmd[0] if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(
            f"The package {name} cannot be fetched or unpacked (failed: {failed}); on Debian run apt-get "
            f"update, or put its .deb file into --downloads (all that are needed: {', '.join(names)})."
        ) from None
