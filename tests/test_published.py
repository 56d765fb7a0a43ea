"""Equality with the published implementation, on every recording in the folder SPARSE_VIS_GOLDEN.

Outputs agree within 1e-5 absolute + 1e-4 relative, gradients within 1e-4 relative L2 per tensor, codes,
matches and recorded indices exactly; float32 on CPU. A model is compared with whatever was recorded of it.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from sparse_vis.build import build_model
from sparse_vis.data.cut import centre_cut, labels_at
from sparse_vis.data.records import SHORT_SIDE
from sparse_vis.evals.maps.segmentation import (
    HeadInput,
    HeadProtocol,
    Probe,
    batch_scores,
    segmentation_loss,
)
from sparse_vis.interop.backbones import read_backbone
from sparse_vis.interop.released import params_to_tensors, teacher_to_tensors
from sparse_vis.ops.matching import entropic_plan
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.ops.sinkhorn import assignments, column_potentials
from sparse_vis.train.optimizer import make_optimizer, update_teacher
from tests.golden_data import (
    ABSOLUTE,
    FOLDER,
    close,
    component,
    load_recorded,
    load_trajectory,
    manifest,
    models_recording,
    models_with,
    read,
    recording,
)
from tests.interop.mae_config import config_of
from tests.step_loss import loss_fn

TERMS = {
    "loss.MSE": ("reconstruction",), "loss.VQ-CE": ("reconstruction",),
    "loss.clustering_loss": ("token_clustering",), "loss.cls_clustering_loss": ("cls_clustering",),
    "loss.mask_loss": ("set_alignment",), "loss.cls_loss": ("cls_masked", "cls_local"),
}  # fmt: skip
FOURIER = "position_embedding.positional_encoding_gaussian_matrix"
BACKBONES = [
    path
    for folder in sorted(FOLDER.glob("mae_*"))
    for path in sorted(folder.iterdir())
    if path.suffix in (".safetensors", ".bin") and path.name != "expected.safetensors"
]
# Most of the time of these tests is compilation; results stay within the tolerances without optimisation.
QUICK = {"xla_backend_optimization_level": 0}
compiled = functools.partial(jax.jit, compiler_options=QUICK)
PROTOCOLS = component("protocols")
RESIZED = [key.split(".")[1] for key in PROTOCOLS if key.startswith("resize.") and key.endswith(".in")]
needs_segmentation = pytest.mark.skipif("seg.logits" not in PROTOCOLS, reason="not recorded")


@pytest.mark.parametrize("name", manifest())
def test_every_tensor_comes_back(name):
    r = load_recorded(name)
    ours, recorded = params_to_tensors(r.params, r.config.model.patch), load_file(FOLDER / r.entry["weights"])
    if r.teacher is not None:
        ours |= teacher_to_tensors(r.teacher, r.config.model.patch)
    for key in ours.keys() & recorded.keys():
        assert np.array_equal(ours[key], recorded[key]), key
    left = recorded.keys() - ours.keys()
    assert all("pooler." in key or key.startswith(("decoder.embeddings.", "teacher_")) for key in left), left


@functools.partial(compiled, static_argnums=0)
def encode(model, params, pixels, visible=None):
    """Tokens and Factors; models of equal sizes share what is compiled."""
    tokens = model.apply({"params": params}, pixels, visible, method="encode")
    return tokens, model.apply({"params": params}, tokens, method="factorize")


@functools.partial(compiled, static_argnums=(0, 3))
def decode(model, params, Z, grid):
    """Reconstruction and the decoder's features."""
    features = model.apply({"params": params}, Z, method=lambda m, z: m.decoder.features(z, grid))
    return model.apply({"params": params}, Z, grid, method="decode"), features


def compare(ours, expected, prefix):
    """Whatever of our arrays was recorded under a prefix; at least one is."""
    names = [name for name in ours if f"{prefix}.{name}" in expected]
    assert names, f"{prefix} has no recordings"
    for name in names:
        close(ours[name], expected[f"{prefix}.{name}"], f"{prefix}.{name}")


def features(tokens, factors):
    return {
        "cls": tokens.cls, "sparse": tokens.S, "dense": tokens.U, "spatial": factors.L, "lowrank": factors.Z,
    }  # fmt: skip


@pytest.mark.parametrize("name", models_recording("encode."))
def test_encode(name):
    r = load_recorded(name)
    compare(features(*encode(r.model, r.params, r.expected["in.image"])), r.expected, "encode")


@pytest.mark.parametrize("name", models_recording("decode."))
def test_decode(name):
    r = load_recorded(name)
    image = r.expected["in.image"]
    _, factors = encode(r.model, r.params, image)
    x_hat, decoded = decode(r.model, r.params, factors.Z, r.model.grid(*image.shape[1:3]))
    compare({"x_hat": x_hat, "features": decoded}, r.expected, "decode")


@pytest.mark.parametrize("name", models_recording("encode_local."))
def test_local_crops(name):
    r = load_recorded(name)
    local = r.expected["in.local_views"]
    found = encode(r.model, r.params, local.reshape(-1, *local.shape[-3:]))
    compare(features(*found), r.expected, "encode_local")


@pytest.mark.parametrize("name", models_recording("masked."))
def test_masked_views(name):
    r = load_recorded(name)
    masked, visible = r.expected["in.global_views"], r.expected["in.visible_patches"].astype("int32")
    views = masked.reshape(-1, *masked.shape[-3:])
    found = encode(r.model, r.params, views, visible.reshape(len(views), -1))
    compare(features(*found), r.expected, "masked")


@pytest.mark.parametrize("name", models_with("sizes"))
def test_other_image_sizes(name):
    r = load_recorded(name)
    recorded = read(recording(name, "sizes"))
    sizes = [key.removeprefix("in.") for key in recorded if key.startswith("in.")]
    assert sizes
    for size in sizes:
        compare(features(*encode(r.model, r.params, recorded[f"in.{size}"])), recorded, size)


@functools.cache
def gradient(name):
    """(params, teacher) -> ((total, (terms, outputs, targets)), gradients) on the recorded batch."""
    r = load_recorded(name)

    def loss(params, teacher):
        return loss_fn(params, r.model, r.spec, r.views, teacher, r.tokenizer)

    return compiled(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def step(name):
    """Total, terms, outputs, targets and gradients of the recorded batch."""
    r = load_recorded(name)
    (total, (terms, outputs, targets)), gradients = gradient(name)(r.params, r.teacher)
    return total, terms, outputs, targets, gradients


@pytest.mark.parametrize("name", models_recording("cluster.", "teacher."))
def test_assignments(name):
    r = load_recorded(name)
    e, t = r.expected, r.spec.sinkhorn_temperature
    _, terms, outputs, targets, _ = step(name)
    source = targets.embeddings
    scores = source.S @ source.S_prototypes
    rows = assignments(scores, targets.potentials.S[-1], t)
    if r.teacher is None:
        loss = terms["token_clustering"]
        compare({"logits": scores, "assignments": rows, "loss": loss}, e, "cluster")
        return
    tokens, _ = encode(r.model, {**r.params, **r.teacher}, r.views.masked[:, 1])
    cls = assignments(source.cls @ source.cls_prototypes, targets.potentials.cls[-1], t)
    ours = {"cls": tokens.cls, "sparse": tokens.S, "assignments": rows, "cls_assignments": cls}
    compare(ours, e, "teacher")
    scores = outputs.embeddings.S @ outputs.embeddings.S_prototypes
    potentials = column_potentials(scores.reshape(-1, scores.shape[-1]), t, r.spec.sinkhorn_iterations)
    compare({"logits": scores, "assignments": assignments(scores, potentials, t)}, e, "student_cluster")


@pytest.mark.parametrize("name", models_recording("match.", "teacher.image_match_index"))
def test_matches(name):
    r = load_recorded(name)
    e, (_, _, outputs, targets, _) = r.expected, step(name)
    if "match.index" in e:
        ours = np.asarray(targets.masked_match).reshape(e["match.index"].shape)
        assert np.array_equal(ours, e["match.index"])
    if "match.plan" in e:
        masked = outputs.masked_S.reshape(-1, *outputs.masked_S.shape[2:])
        tokens = outputs.tokens
        if r.teacher is not None:
            tokens, _ = encode(r.model, {**r.params, **r.teacher}, r.views.masked[:, 1])
        repeated = tokens.S.repeat(outputs.masked_S.shape[1], axis=0)
        how = (r.spec.match_epsilon, r.spec.match_iterations)
        plan = compiled(jax.vmap(lambda a, b: entropic_plan(a, b, *how)))
        close(plan(masked, repeated), e["match.plan"], "match.plan")
    if "teacher.image_match_index" in e:
        assert np.array_equal(targets.image_match, e["teacher.image_match_index"])


@pytest.mark.parametrize("name", models_recording("loss."))
def test_every_loss_term_and_the_total(name):
    r = load_recorded(name)
    total, terms, *_ = step(name)
    ours = {key: sum(float(terms.get(term, 0)) for term in parts) for key, parts in TERMS.items()}
    ours["loss.total"] = float(total)
    ours["loss.koleo_loss"] = 0.1 * (float(terms["koleo_image"]) + float(terms["koleo_masked"]))
    recorded = {key for key in r.expected if key.startswith("loss.")}
    assert recorded <= ours.keys()
    for key in recorded:
        close(ours[key], np.ravel(r.expected[key])[0], key)


@pytest.mark.parametrize("name", models_recording("grad."))
def test_every_gradient(name):
    r = load_recorded(name)
    ours = params_to_tensors(jax.tree.map(np.asarray, step(name)[-1]), r.config.model.patch)
    recorded = {
        key.removeprefix("grad."): np.asarray(x) for key, x in r.expected.items() if key.startswith("grad.")
    }
    assert recorded.keys() <= ours.keys()
    # Nothing was recorded for what takes no gradient: the Fourier matrix, an untrained CLS head.
    assert FOURIER not in recorded
    for key in ours.keys() - recorded.keys():
        assert not np.any(ours[key]), key
    whole = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in recorded.values()))
    for key, gradient in recorded.items():
        if key.endswith("key.bias"):  # its true gradient is zero
            assert np.linalg.norm(ours[key]) < 1e-6 * whole, key
        else:
            error = np.linalg.norm(ours[key].astype(np.float64) - gradient) / np.linalg.norm(gradient)
            assert error < 1e-4, (key, error)


def tokenizer_input(model, expected):
    """The image at the size whose codes form the grid of patches, as recorded and as we resize it."""
    if "in.image" not in expected:
        return expected["vq.input"]
    image, stride = expected["in.image"], model.tokenizer.stride
    rows, columns = model.grid(*image.shape[1:3])
    pixels = image[:, : rows * model.patch, : columns * model.patch]
    if model.patch != stride:
        pixels = resize_bicubic(pixels, (rows * stride, columns * stride))
    if "vq.input" in expected and expected["vq.input"].shape == pixels.shape:
        close(pixels, expected["vq.input"], "vq.input")
    return pixels


@pytest.mark.parametrize("name", models_recording("vq."))
def test_tokenizer(name):
    r = load_recorded(name)
    e, variables = r.expected, {"params": r.tokenizer}
    pixels = tokenizer_input(r.model, e)
    latent = compiled(lambda x: r.model.tokenizer.apply(variables, x, method="encode"))(pixels)
    if "vq.latent" in e:
        close(latent, e["vq.latent"], "vq.latent")
    codes = r.model.tokenizer.apply(variables, latent, method="codes")
    if "vq.codes" in e:
        assert np.array_equal(codes, np.reshape(e["vq.codes"], codes.shape))
    if "vq.decoded" in e:
        grid = codes.reshape(latent.shape[:3])
        decoded = compiled(lambda c: r.model.tokenizer.apply(variables, c, method="decode"))(grid)
        # The recording is itself up to 1.9e-5 away from a float64 evaluation of the same network: some thirty
        # convolutions deep, single pixels are not determined to 1e-5. Hence relative to the image's range.
        error = np.abs(np.asarray(decoded) - e["vq.decoded"])
        assert error.max() < 1e-4
        assert np.sqrt(np.mean(error**2)) < 1e-5


@pytest.mark.parametrize("name", models_recording("vq.codes"))
def test_the_training_targets_are_the_codes(name):
    r = load_recorded(name)
    targets = step(name)[3]
    assert np.array_equal(
        targets.reconstruction, np.reshape(r.expected["vq.codes"], targets.reconstruction.shape)
    )


@pytest.mark.parametrize("name", models_with("trajectory", "expected"))
def test_trajectory(name):
    r = load_recorded(name)
    recorded, settings = load_trajectory(name)
    optimizer = make_optimizer(
        optax.constant_schedule(settings["lr"]), weight_decay=settings["weight_decay"],
        b1=settings["betas"][0], b2=settings["betas"][1], clip=settings["clip_global_norm"],
    )  # fmt: skip

    @compiled
    def apply(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(gradients)

    params, teacher, state = r.params, r.teacher, optimizer.init(r.params)
    # Rounding grows along the way: 1e-5 at the first step, 1e-3 at the last.
    for i, tolerance in enumerate(np.geomspace(1e-5, 1e-3, settings["steps"])):
        if teacher is not None:
            teacher = update_teacher(teacher, params, settings["teacher_momentum"])
        (total, _), gradients = gradient(name)(params, teacher)
        params, state, norm = apply(params, state, gradients)
        np.testing.assert_allclose(total, recorded["total"][i], tolerance, err_msg=f"total of step {i}")
        np.testing.assert_allclose(
            norm, recorded["grad_norm"][i], 10 * tolerance, err_msg=f"norm of step {i}"
        )
    ours = params_to_tensors(jax.tree.map(np.asarray, params), r.config.model.patch)
    if teacher is not None:
        ours |= teacher_to_tensors(jax.tree.map(np.asarray, teacher), r.config.model.patch)
    final = [key for key in recorded if key.startswith("final.")]
    assert final
    for key in final:
        x, y = ours[key.removeprefix("final.")], recorded[key]
        assert np.linalg.norm(x - y) <= 1e-3 * np.linalg.norm(y), key


@functools.partial(compiled, static_argnums=0)
def plain_encode(encoder, params, pixels):
    return encoder.apply({"params": params}, pixels)


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_mae_backbone(path):
    config = config_of(path.parent)
    recorded = read(path.parent / "expected.safetensors")
    # The plain encoder has no queries: none at all, not just ignored ones.
    params = {**read_backbone(path, config), "queries": np.zeros((0, config.model.width), np.float32)}
    bare = build_model(config).encoder.clone(queries=0, parent=None)
    tokens = plain_encode(bare, params, recorded["in.image"])
    compare({"cls": tokens.cls, "patches": tokens.U}, recorded, "out")


@pytest.mark.parametrize("name", models_recording("loss.")[:1])
def test_potentials_given_or_computed_give_the_same_loss(name):
    r = load_recorded(name)
    total, _, _, targets, _ = step(name)

    @compiled
    def loss(params, potentials):
        return loss_fn(params, r.model, r.spec, r.views, r.teacher, r.tokenizer, potentials)[0]

    np.testing.assert_allclose(loss(r.params, targets.potentials), total, rtol=1e-6)


@pytest.mark.parametrize("name", RESIZED)
def test_test_images_and_label_maps(name):
    r = {key.removeprefix(f"resize.{name}."): np.asarray(x) for key, x in PROTOCOLS.items()}
    size = len(r["out"])
    cut = centre_cut(*r["in"].shape[:2], size, round(size * SHORT_SIDE))
    np.testing.assert_allclose(cut.image(r["in"]), r["out"], 0, ABSOLUTE)
    if "mask_in" in r:
        assert np.array_equal(cut.labels(r["mask_in"]), r["mask_out"])


@needs_segmentation
def test_segmentation_loss_and_score():
    r = {key.removeprefix("seg."): np.asarray(x) for key, x in PROTOCOLS.items()}
    logits, classes = r["logits"].transpose(0, 2, 3, 1), r["logits"].shape[1]
    grid = logits.shape[1:3]
    labels = labels_at(r["labels"], grid)
    assert np.array_equal(labels, r["labels_at_logits"])
    entropy = segmentation_loss(logits, labels, 0.0)
    whole = segmentation_loss(logits, labels)
    parts = {"cross_entropy": entropy, "loss": whole, "dice": whole - entropy}
    parts |= batch_scores(logits.argmax(-1), labels, classes, len(labels))
    # The probe itself, its linear map the identity: it is given labels at their own size.
    probe = Probe(grid, classes, HeadProtocol(batch_norm=False, dtype="float32"))
    tokens = HeadInput(logits.reshape(len(logits), -1, classes))
    probe.learn(tokens, r["labels"])
    identity = {"kernel": np.eye(classes, dtype=np.float32), "bias": np.zeros(classes, np.float32)}
    probe.variables = {"params": {"Dense_0": identity}}
    parts["loss of the probe"] = probe.learn(tokens, r["labels"])
    for name, ours in parts.items():
        recorded = r["loss" if name == "loss of the probe" else name]
        np.testing.assert_allclose(np.float64(ours), np.ravel(recorded)[0], 0, ABSOLUTE, err_msg=name)
