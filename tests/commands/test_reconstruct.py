"""Folders of images to side-by-side PNGs, and the name that module and notebook function share."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import sparse_vis
import sparse_vis.commands.reconstruct as tool
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.errors import command_line
from sparse_vis.viz.overlays import token_colours

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent.parent / "golden"
PIXEL, VQ, VQGAN = (GOLDEN / f"{name}.safetensors" for name in ("pixel_p16", "vq_p16", "vq_p16.vqgan"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images of different size, form and folder: the recorded inputs of pixel_p16, in 8 bits."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    recorded = load_file(GOLDEN / "pixel_p16.expected.safetensors")["in.image"]
    images = [Image.fromarray(np.uint8(np.round(255 * image))) for image in recorded]
    for image, name, size in zip(
        images, ("a.png", "sub/b.png", "c.webp"), ((73, 73), (90, 73), (73, 110)), strict=True
    ):
        image.resize(size).save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    return folder


def run(monkeypatch, capsys, **flags):
    """The command line: (exit message or None, standard output)."""
    named = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in flags.items()
    ]
    monkeypatch.setattr(sys, "argv", ["reconstruct", *named])
    try:
        command_line(tool.main)
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return None, capsys.readouterr().out


def centre(path):
    """An image as the model sees it: short side 73 = 64 * 256 / 224, then the centre of 64 px."""
    image = np.asarray(Image.open(path).convert("RGB"))
    top, left = (image.shape[0] - 64) // 2, (image.shape[1] - 64) // 2
    return image[top : top + 64, left : left + 64]


def test_images_that_cannot_be_used_are_refused_or_left_out_and_listed(tmp_path, monkeypatch, capsys, photos):
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "b\n.png").write_text("no image")
    flags = dict(checkpoint=PIXEL, input=tmp_path / "in", output=tmp_path / "out")
    code, _ = run(monkeypatch, capsys, **flags)
    assert re.search(r"'b\\x0a\.png' \(it is not an image\).*, or pass --on-error=skip\.$", code)
    code, printed = run(monkeypatch, capsys, **flags, on_error="skip")
    assert code is None and "1 images skipped" in printed
    sheets = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert sheets == {"a.png", "c.png", "sub/b.png"}
    name, reason = (tmp_path / "out" / "skipped.txt").read_text().rstrip("\n").split("\t")
    assert name == r"b\x0a.png" and "it is not an image" in reason
    sheet = np.asarray(Image.open(tmp_path / "out" / "sub" / "b.png"))  # the image after the damaged one
    np.testing.assert_array_equal(sheet[:, :64], centre(photos / "sub" / "b.png"))
    for path in (tmp_path / "in").rglob("*.*"):
        path.write_text("no image")
    code, _ = run(monkeypatch, capsys, **flags, on_error="skip")
    assert code.startswith("error: none of the 4 images can be used; the first one: cannot decode 'a.png'")


@pytest.mark.fast
def test_pixel_model(tmp_path, monkeypatch, capsys, photos):
    code, printed = run(monkeypatch, capsys, checkpoint=PIXEL, input=photos, output=tmp_path / "out")
    assert code is None
    model, params = sparse_vis.load(PIXEL)
    errors = []
    for name in ("a.png", "c.webp", "sub/b.png"):
        sheet = np.asarray(Image.open((tmp_path / "out" / name).with_suffix(".png")))
        assert sheet.shape == (64, 128, 3) and sheet.dtype == np.uint8
        seen = centre(photos / name)
        np.testing.assert_array_equal(sheet[:, :64], seen)
        out = sparse_vis.encode(model, params, seen[None])
        pixels = np.asarray(sparse_vis.reconstruct(model, params, out))[0]
        assert np.abs(sheet[:, 64:] / 255 - pixels).max() < 0.51 / 255
        errors.append(np.mean((pixels - seen / 255) ** 2))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3
    shown = float(re.search(r"mean PSNR (\S+) dB", printed)[1])
    assert abs(shown - np.mean(-10 * np.log10(errors))) < 0.006
    assert f"\nwrote 3 PNGs into {tmp_path / 'out'}\n" in printed
    assert re.search(r"^reconstructing: 3/3 images  \S+ images/s  ETA 0:00:00$", printed, re.M)


@pytest.mark.fast
def test_images_of_an_address_are_named_in_full_and_stay_in_the_output(tmp_path, monkeypatch, capsys, photos):
    tar, output = tmp_path / "t.tar", tmp_path / "out"
    with tarfile.open(tar, "w") as file:
        file.add(photos / "a.png", "sub/a.png")
    code, printed = run(monkeypatch, capsys, checkpoint=PIXEL, input=f"webdataset:{tar}", output=output)
    assert code is None and f"1 image in 1 tar of {tar}, no classes" in printed
    sheet = np.asarray(Image.open(output / "t.tar" / "sub" / "a.png.png"))
    np.testing.assert_array_equal(sheet[:, :64], centre(photos / "a.png"))
    with tarfile.open(tar, "w") as file:
        file.add(photos / "a.png", "../../../a.png", filter=lambda info: info)
        file.add(photos / "a.png", "more.png")
    code, _ = run(monkeypatch, capsys, checkpoint=PIXEL, input=f"webdataset:{tar}", output=output)
    assert (
        "the image name 't.tar/../../../a.png' leads out of" in code and not (tmp_path / "a.png.png").exists()
    )
    code, _ = run(monkeypatch, capsys, checkpoint=PIXEL, input=f"webdataset:{tar}", output=output, split="x")
    assert "has no {split}; set --split= (empty)" in code


def test_vq_model(tmp_path, monkeypatch, capsys, photos):
    """A release without the tokenizer, which is then given; compared with the notebook's functions."""
    for name in ("config.json", "vq_p16.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    weights = tmp_path / "vq_p16.safetensors"
    flags = dict(checkpoint=weights, input=photos, output=tmp_path / "out")
    code, _ = run(monkeypatch, capsys, **flags)
    assert code.startswith(f"error: {weights} reconstructs through a VQ tokenizer, whose weights were not")
    assert code.endswith("; give --tokenizer=FILE.")
    code, printed = run(monkeypatch, capsys, **flags, tokenizer=VQGAN, compare_bf16=True)
    assert code is None
    model, params = sparse_vis.load(VQ)
    names = ("a.png", "c.webp", "sub/b.png")
    seen = np.stack([centre(photos / name) for name in names])
    pixels = sparse_vis.reconstruct(model, params, sparse_vis.encode(model, params, seen))
    for name, image, expected in zip(names, seen, pixels, strict=True):
        sheet = np.asarray(Image.open((tmp_path / "out" / name).with_suffix(".png")))
        np.testing.assert_array_equal(sheet[:, :64], image)
        assert np.abs(sheet[:, 64:] / 255 - expected).max() < 0.51 / 255 + 1e-4

    share = float(re.search(r"with a bfloat16 tokenizer (\S+) of the codes stay", printed)[1])
    assert 0.5 < share <= 1


@pytest.mark.fast
def test_the_share_of_kept_codes_is_counted_on_the_training_targets():
    """A model that says which codes each dtype gives: three of every eight agree."""

    class Twin:
        __class__ = Stellar  # to annotations

        def __init__(self, dtype="none"):
            self.tokenizer, self.dtype = self, dtype

        def clone(self, dtype=None, tokenizer=None):
            return Twin(dtype or tokenizer.dtype)

        def apply(self, variables, pixels, method):
            assert method == "codes" and variables == {"params": {"weights": 1}}
            codes = jnp.arange(8) + jnp.round(255 * pixels[:, 0, :1, 0]).astype(int)
            return {"float32": codes, "bfloat16": jnp.where(jnp.arange(8) < 3, codes, 0)}[self.dtype]

    share = tool.make_agreement(Twin(), {"weights": 1})
    assert share(np.full((2, 4, 4, 3), 7, np.uint8)) == 3 / 8


def test_the_dtype_reaches_the_tokenizer(monkeypatch, capsys, photos, tmp_path):
    seen = []
    monkeypatch.setattr(
        tool, "reconstruct_folder", lambda model, *_, **__: seen.append(model.tokenizer.dtype)
    )
    for dtype in ("float32", "bfloat16"):
        run(monkeypatch, capsys, checkpoint=VQ, input=photos, output=tmp_path / "out", tokenizer_dtype=dtype)
    assert seen == ["float32", "bfloat16"]


@pytest.mark.fast
def test_images_that_share_a_stem_do_not_overwrite_each_other(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    source = tool.open_input(str(tmp_path))
    target = tool.target_of(source, Path("out"))
    assert {name: target(name) for name in source.names} == {
        "a.jpg": Path("out/a.jpg.png"),
        "a.png": Path("out/a.png.png"),
        "b.png": Path("out/b.png"),
    }


@pytest.mark.fast
def test_a_larger_reconstruction_is_shown_beside_the_enlarged_image():
    sheet = np.asarray(tool.side_by_side(np.full((14, 28, 3), 0.2), np.full((16, 32, 3), 1.0)))
    assert sheet.shape == (16, 64, 3)
    assert (sheet[:, :32] == 51).all() and (sheet[:, 32:] == 255).all()


@pytest.mark.fast
def test_a_full_disk_is_one_sentence_and_leaves_no_half_picture(tmp_path, monkeypatch, capsys, photos):
    class Sheet:
        def save(self, path, format):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tool, "side_by_side", lambda *_: Sheet())
    code, _ = run(monkeypatch, capsys, checkpoint=PIXEL, input=photos, output=tmp_path / "out")
    assert re.match(
        r"error: .*out cannot be written \(.*No space left.*\); .* or free disk space and repeat", code
    )
    assert "\n" not in code and not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.fast
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    good = dict(checkpoint=PIXEL, input=photos, output=tmp_path / "out")
    cases = [
        (dict(input=tmp_path / "empty"), r"empty.*--input"),
        (dict(input=tmp_path / "none"), r"none' does not exist; give --input"),
        (dict(checkpoint=tmp_path / "none"), r"checkpoint .*none does not exist .*; give"),
        (dict(checkpoint=GOLDEN), "holds several models; give one of the names"),
        (dict(compare_bf16=True), "reconstructs pixels without a tokenizer; leave out --compare-bf16"),
        (dict(tokenizer=VQGAN), r"does not use a tokenizer; leave out tokenizer="),
        (dict(checkpoint=VQ, tokenizer=PIXEL), r"pixel_p16\.safetensors is not a MaskGIT-VQGAN"),
        (dict(output=photos), "is inside the --input folder, .*; give another"),
        (dict(output=photos / "sub" / "out"), "is inside the --input folder, .*; give another"),
        (dict(output=tmp_path / "file", checkpoint="x"), "file is a file.; give another --output"),
        (dict(outptu="x"), "--outptu is not a flag of .*; did you mean --output"),
    ]
    for changes, sentence in cases:
        code, _ = run(monkeypatch, capsys, **{**good, **changes})
        assert re.match("error: ", code) and re.search(sentence, code) and "\n" not in code, (changes, code)
    assert sorted(p.name for p in photos.rglob("*.*")) == ["a.png", "b.png", "c.webp"]


def test_maps_are_shown_below_in_the_tokens_colours():
    image, L = np.full((32, 64, 3), 0.5, np.float32), np.full((8, 4), 0.25, np.float32)  # a grid of 2 x 4
    L[:4] = [0.7, 0.1, 0.1, 0.1]  # the upper half is token 0's
    L[7] = [0.1, 0.1, 0.7, 0.1]
    found = np.asarray(tool.with_maps(tool.side_by_side(image, image), image, L, (2, 4))).astype(int)
    assert found.shape == (32 + 24, 3 * 64, 3)  # four maps of 48 x 24 below
    colours = np.rint(255 * token_colours(4)).astype(int)
    grey = np.array([128] * 3)
    for place, token in (((4, 130), 0), ((28, 186), 2)):  # argmax L: 0.6 of the colour over the image
        assert np.abs(found[place] - (0.6 * colours[token] + 0.4 * grey)).max() <= 2
    assert (found[32, 24] == colours[0]).all() and (found[55, 24 + 96] < 90).all()
    assert np.abs(found[55, 96 + 47] - colours[2]).max() <= 12 and (found[33, 96 + 4] == 0).all()


@pytest.mark.parametrize("letterbox", [False, True])
def test_a_size_and_a_letterbox_show_more_of_an_image(tmp_path, monkeypatch, capsys, letterbox):
    (tmp_path / "in").mkdir()
    whole = np.zeros((32, 128, 3), np.uint8)
    whole[:, :16, 0] = whole[:, -16:, 2] = 255  # red at the left, blue at the right
    Image.fromarray(whole).save(tmp_path / "in" / "a.png")
    flags = {"letterbox": True} if letterbox else {}
    code, _ = run(
        monkeypatch,
        capsys,
        checkpoint=PIXEL,
        input=tmp_path / "in",
        output=tmp_path / "out",
        size="64x128",
        **flags,
    )
    shown = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)[:, :128]
    assert code is None and shown.shape == (64, 128, 3)
    if letterbox:  # the whole image at its own size, above and below a border
        np.testing.assert_array_equal(shown[16:48], whole)
        assert (shown[:16] == [124, 116, 104]).all() and (shown[48:] == [124, 116, 104]).all()
    else:  # its middle half, twice as large: neither red nor blue
        assert shown.max() <= 2


def test_the_psnr_is_that_of_whole_patches(tmp_path, monkeypatch, capsys, photos):
    how = dict(checkpoint=PIXEL, input=photos, output=tmp_path / "out", size="70x64")  # patches of 16 pixels
    code, printed = run(monkeypatch, capsys, **how)
    assert code is None
    model, params = sparse_vis.load(PIXEL)
    errors = []
    for sheet in (tmp_path / "out").rglob("*.png"):
        seen = np.asarray(Image.open(sheet))[:64, :64]
        pixels = sparse_vis.reconstruct(model, params, sparse_vis.encode(model, params, seen[None]))
        errors.append(np.mean((np.asarray(pixels)[0] - seen / 255) ** 2))
    shown = float(re.search(r"mean PSNR (\S+) dB", printed)[1])
    assert abs(shown - np.mean(-10 * np.log10(errors))) < 0.006


def test_a_size_below_a_patch_is_refused(tmp_path, monkeypatch, capsys, photos):
    how = dict(checkpoint=PIXEL, input=photos, output=tmp_path / "out")
    for size, message in (
        ("8x64", r"smaller than a patch of the model \(16"),
        ("64", "not a size"),
        ("9000x64", "8192"),
    ):
        code, _ = run(monkeypatch, capsys, **how, size=size)
        assert re.search(message, code)
