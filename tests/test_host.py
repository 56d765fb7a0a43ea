"""What is set before Python starts, and what the user's own settings keep."""

import os
import pathlib

import pytest

from sparse_vis import host


@pytest.mark.fast
@pytest.mark.parametrize("own", [None, "", "/elsewhere"])
def test_compiled_programs_are_kept_in_a_folder_of_the_user_unless_he_names_another(
    monkeypatch, tmp_path, own
):
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": "", "XDG_CACHE_HOME": str(tmp_path)})
    if own is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = own
    host.prepare()
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert folder == own if own is not None else pathlib.Path(folder).parent == tmp_path / "sparse_vis"
