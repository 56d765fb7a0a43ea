"""Hub addresses against a cache on disk; nothing here uses the network."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import sparse_vis
from sparse_vis.interop import hub
from sparse_vis.interop.load import read_model
from sparse_vis.runtime import network
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
GOLDEN = Path(__file__).parents[1] / "golden"
COMMIT = "0123456789012345678901234567890123456789"
FILES = ("config.json", "pixel_p16.safetensors", "vq_p16.safetensors", "vq_p16.vqgan.safetensors")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is never asked whether it is there, except where that is what is tested."""
    monkeypatch.setattr(network, "unreachable", lambda: "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache with the golden models as microsoft/STELLAR at branch main."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--microsoft--STELLAR"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in FILES:
        shutil.copyfile(GOLDEN / name, snapshot / name)
    return snapshot


@pytest.mark.parametrize("arguments", [("/pixel_p16",), ("", "pixel_p16")])
def test_a_model_of_the_cache(cache, arguments):
    address, *name = arguments
    model, params = sparse_vis.load(f"hf://microsoft/STELLAR{address}", *name, local_files_only=True)
    assert model.encoder.sizes.width == 48
    expected = read_model(GOLDEN, "pixel_p16").params["sparse_head"]["prototypes"]
    np.testing.assert_array_equal(params["sparse_head"]["prototypes"], expected)


def test_the_tokenizer_is_fetched_too(cache):
    model, _ = sparse_vis.load("hf://microsoft/STELLAR/vq_p16", local_files_only=True)
    assert model.tokenizer.num_embeddings == 128
    (cache / "vq_p16.vqgan.safetensors").unlink()
    with pytest.raises(UserError, match=r"^vq_p16\.vqgan\.safetensors of hf://microsoft/STELLAR could not"):
        sparse_vis.load("hf://microsoft/STELLAR/vq_p16", local_files_only=True)


def test_the_revision_is_passed_on(cache):
    commit = {"revision": COMMIT, "local_files_only": True}
    assert sparse_vis.load("hf://microsoft/STELLAR/pixel_p16", **commit)
    with pytest.raises(UserError, match=r"^config\.json of hf://microsoft/STELLAR could not be fetched"):
        sparse_vis.load("hf://microsoft/STELLAR/pixel_p16", revision="v2", local_files_only=True)


@pytest.mark.parametrize("address", ["../x/y", "x/../y", "./x/y", "a b/c", "a/b?c", "a/b..c"])
def test_what_is_no_repository_is_refused_before_the_network(monkeypatch, address):
    monkeypatch.setattr(network, "unreachable", lambda: pytest.fail("the network was asked"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(
        UserError, match=r"^hf://\S+.* names no repository; write hf://owner/repository/model\.$"
    ):
        sparse_vis.load(f"hf://{address}")


def test_offline_the_error_says_where_files_go(cache):
    with pytest.raises(UserError) as caught:
        sparse_vis.load("hf://nobody/NOTHING/x", local_files_only=True)
    message = str(caught.value)
    assert message.startswith(
        "config.json of hf://nobody/NOTHING could not be fetched (LocalEntryNotFoundError: "
    )
    remedy = "place config.json and the other files of https://huggingface.co/nobody/NOTHING in a folder"
    assert remedy in message and "\n" not in message


def test_a_reason_without_words_does_not_matter(monkeypatch):
    def fail(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"\(TimeoutError: no reason given\); without a network, place"):
        hub.fetch("a/b", "config.json")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r'needs huggingface_hub; run `pip install -e "\.\[hub\]"`, or place conf'
    ):
        sparse_vis.load("hf://microsoft/STELLAR/stellar-b16")


@pytest.mark.parametrize("given", ["models--microsoft--STELLAR", "models--microsoft--STELLAR/snapshots"])
def test_a_folder_of_the_cache_above_the_files(cache, given):
    top = cache.parents[2]
    expected = read_model(GOLDEN, "pixel_p16").params["sparse_head"]["prototypes"]
    older = cache.parent / ("f" * 40)
    older.mkdir()  # refs/main says which is meant
    found = read_model(top / given, "pixel_p16").params["sparse_head"]["prototypes"]
    np.testing.assert_array_equal(found, expected)
    (cache.parents[1] / "refs" / "main").unlink()
    with pytest.raises(UserError, match=rf"holds 2 snapshots; give one of them: \S+{COMMIT}, \S+f\.$"):
        read_model(top / given, "pixel_p16")


@pytest.fixture
def refused(monkeypatch):
    """The hub's address is a port of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.undo()  # of no_network
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")


def test_without_an_answer_one_sentence_comes_soon(refused, tmp_path, caplog):
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"\(http://127\.0\.0\.1:\d+ does not answer: .*refused.*\); without a"
    ):
        sparse_vis.load("hf://microsoft/STELLAR/stellar-b16")
    assert time.monotonic() - start < network.PATIENCE + 1
    assert not caplog.records  # huggingface_hub warns of each of its attempts


def test_without_an_answer_the_cache_is_used(refused, cache):
    assert sparse_vis.load("hf://microsoft/STELLAR/pixel_p16")[0].encoder.sizes.width == 48


def test_a_hub_that_says_nothing_is_not_waited_for(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setattr(network, "PATIENCE", 0.3)
        start = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            hub.fetch("a/b", "config.json")
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("address", ["hf://", "hf://microsoft", "hf://microsoft/", "hf://a/b/c/d"])
def test_what_is_no_address(address):
    with pytest.raises(UserError, match="is not a hub address; write hf://owner/repository/model"):
        sparse_vis.load(address)


def test_a_name_the_repository_lacks(cache):
    with pytest.raises(
        UserError, match="STELLAR/stellar-b61 has no model 'stellar-b61'; give one of the names pix"
    ):
        sparse_vis.load("hf://microsoft/STELLAR/stellar-b61", local_files_only=True)
