"""Equality with the published implementation, on every recording in the folder SPARSE_VIS_GOLDEN.

Outputs agree within 1e-5 absolute + 1e-4 relative, gradients within 1e-4 relative L2 per tensor, codes,
matches and recorded indices exactly; float32 on CPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_vis.interop.released import params_to_tensors, teacher_to_tensors
from sparse_vis.ops.sinkhorn import assignments
from sparse_vis.train.ema import update_teacher
from sparse_vis.train.gradients import loss_fn
from sparse_vis.train.optimizer import make_optimizer
from sparse_vis.types import Potentials
from tests.golden_data import FOLDER, close, load_recorded, load_trajectory, manifest, models_with, read

TERMS = {
    "loss.MSE": ("reconstruction",), "loss.VQ-CE": ("reconstruction",),
    "loss.clustering_loss": ("token_clustering",), "loss.cls_clustering_loss": ("cls_clustering",),
    "loss.mask_loss": ("set_alignment",), "loss.cls_loss": ("cls_masked", "cls_local"),
}  # fmt: skip


def test_every_model_of_the_manifest_is_compared():
    compared = {*models_with("expected"), *models_with("sizes")}
    assert compared == set(manifest()), "a model without recordings would pass unseen"


def encode(recorded, pixels, visible=None):
    """Tokens and Factors of the recorded model."""

    @jax.jit
    def run(params, pixels, visible):
        variables = {"params": params}
        tokens = recorded.model.apply(variables, pixels, visible, method="encode")
        return tokens, recorded.model.apply(variables, tokens, method="factorize")

    return run(recorded.params, pixels, visible)


def compare_features(tokens, factors, expected, prefix):
    """Whatever of the encoder's outputs was recorded under a prefix."""
    ours = {"cls": tokens.cls, "sparse": tokens.S, "dense": tokens.U, "spatial": factors.L, "lowrank": factors.Z}
    names = [name for name in ours if f"{prefix}.{name}" in expected]
    assert {"cls", "sparse", "dense"} <= set(names), f"{prefix} has no recordings"
    for name in names:
        close(ours[name], expected[f"{prefix}.{name}"], f"{prefix}.{name}")


@pytest.mark.fast
@pytest.mark.parametrize("name", models_with("expected"))
def test_encode_and_decode(name):
    r = load_recorded(name)
    e = r.expected
    tokens, factors = encode(r, e["in.image"])
    compare_features(tokens, factors, e, "encode")
    grid = r.model.grid(*e["in.image"].shape[1:3])
    decode = jax.jit(lambda p, z: r.model.apply({"params": p}, z, grid, method="decode"))
    close(decode(r.params, factors.Z), e["decode.x_hat"], "decode.x_hat")
    features = jax.jit(
        lambda p, z: r.model.apply({"params": p}, z, method=lambda m, z: m.decoder.features(z, grid))
    )
    close(features(r.params, factors.Z), e["decode.features"], "decode.features")


@pytest.mark.fast
@pytest.mark.parametrize("name", models_with("expected"))
def test_local_crops_and_masked_views(name):
    r = load_recorded(name)
    views = r.views
    local = views.local.reshape(-1, *views.local.shape[2:])
    compare_features(*encode(r, local), r.expected, "encode_local")
    masked = views.masked.reshape(-1, *views.masked.shape[2:])
    tokens, _ = encode(r, masked, views.visible.reshape(len(masked), -1))
    close(tokens.cls, r.expected["masked.cls"], "masked.cls")
    close(tokens.S, r.expected["masked.sparse"], "masked.sparse")


@pytest.mark.fast
@pytest.mark.parametrize("name", models_with("sizes"))
def test_other_image_sizes(name):
    r = load_recorded(name)
    recorded = read(FOLDER / r.entry["sizes"])
    sizes = [key.removeprefix("in.") for key in recorded if key.startswith("in.")]
    assert sizes
    for size in sizes:
        compare_features(*encode(r, recorded[f"in.{size}"]), recorded, size)


@functools.cache
def step(name):
    """Total, terms, outputs, targets and gradients of the recorded batch."""
    r = load_recorded(name)
    gradient = jax.jit(
        jax.value_and_grad(
            lambda params: loss_fn(params, r.model, r.spec, r.views, r.teacher, r.tokenizer, None), has_aux=True
        )
    )
    (total, (terms, outputs, targets)), gradients = gradient(r.params)
    return total, terms, outputs, targets, gradients


@pytest.mark.parametrize("name", models_with("expected"))
def test_targets(name):
    r = load_recorded(name)
    e, spec = r.expected, r.spec
    _, _, outputs, targets, _ = step(name)
    source = targets.source
    scores = source.sparse @ source.sparse_prototypes
    rows = assignments(scores, targets.potentials.sparse, spec.sinkhorn_temperature)
    if r.teacher is None:
        close(scores, e["cluster.logits"], "cluster.logits")
        close(rows, e["cluster.assignments"], "cluster.assignments")
    else:
        close(source.S, e["teacher.sparse"], "teacher.sparse")
        close(rows, e["teacher.assignments"], "teacher.assignments")
        cls = assignments(source.cls @ source.cls_prototypes, targets.potentials.cls, spec.sinkhorn_temperature)
        close(cls, e["teacher.cls_assignments"], "teacher.cls_assignments")
        assert np.array_equal(targets.image_match, e["teacher.image_match_index"])
        close(outputs.sparse @ outputs.sparse_prototypes, e["student_cluster.logits"], "student_cluster.logits")
    match = np.asarray(targets.masked_match).reshape(e["match.index"].shape)
    assert np.array_equal(match, e["match.index"])
    if r.tokenizer is not None:
        assert np.array_equal(targets.reconstruction, e["vq.codes"])


@pytest.mark.parametrize("name", models_with("expected"))
def test_every_loss_term_and_the_total(name):
    r = load_recorded(name)
    total, terms, *_ = step(name)
    recorded = {key for key in r.expected if key.startswith("loss.")}
    assert recorded - {"loss.total", "loss.koleo_loss"} <= set(TERMS)
    for key in recorded & set(TERMS):
        close(sum(float(terms[term]) for term in TERMS[key]), np.ravel(r.expected[key])[0], key)
    koleo = 0.1 * (float(terms["koleo_image"]) + float(terms["koleo_masked"]))
    close(koleo, np.ravel(r.expected["loss.koleo_loss"])[0], "loss.koleo_loss")
    close(total, np.ravel(r.expected["loss.total"])[0], "loss.total")


@pytest.mark.parametrize("name", models_with("expected"))
def test_every_gradient(name):
    r = load_recorded(name)
    ours = params_to_tensors(jax.tree.map(np.asarray, step(name)[-1]), r.config.model.patch)
    recorded = {key.removeprefix("grad."): x for key, x in r.expected.items() if key.startswith("grad.")}
    untrained = {"position_embedding.positional_encoding_gaussian_matrix"}
    assert set(recorded) == set(ours) - untrained
    assert not np.any(ours[untrained.copy().pop()])
    whole = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in recorded.values()))
    for key, gradient in recorded.items():
        if key.endswith("key.bias"):  # its true gradient is zero
            assert np.linalg.norm(ours[key]) < 1e-6 * whole, key
        else:
            error = np.linalg.norm(ours[key].astype(np.float64) - gradient) / np.linalg.norm(gradient)
            assert error < 1e-4, (key, error)


@pytest.mark.parametrize("name", models_with("expected", "vq_model"))
def test_tokenizer(name):
    r = load_recorded(name)
    e = r.expected
    variables = {"params": r.tokenizer}
    latent = jax.jit(lambda x: r.model.tokenizer.apply(variables, x, method="encode"))(e["vq.input"])
    close(latent, e["vq.latent"], "vq.latent")
    codes = r.model.tokenizer.apply(variables, latent, method="codes")
    assert np.array_equal(codes, e["vq.codes"])
    grid = codes.reshape(latent.shape[:3])
    decoded = jax.jit(lambda c: r.model.tokenizer.apply(variables, c, method="decode"))(grid)
    # The recording is itself up to 1.9e-5 away from a float64 evaluation of the same network: some thirty
    # convolutions deep, single pixels are not determined to 1e-5. Hence relative to the image's range.
    error = np.abs(np.asarray(decoded) - e["vq.decoded"])
    assert error.max() < 1e-4
    assert np.sqrt(np.mean(error**2)) < 1e-5


@pytest.mark.parametrize("name", models_with("trajectory"))
def test_trajectory(name):
    r = load_recorded(name)
    recorded, settings = load_trajectory(name)
    optimizer = make_optimizer(
        optax.constant_schedule(settings["lr"]), weight_decay=settings["weight_decay"],
        b1=settings["betas"][0], b2=settings["betas"][1], clip=settings["clip_global_norm"],
    )  # fmt: skip

    @jax.jit
    def update(params, state, teacher):
        if teacher is not None:
            teacher = update_teacher(teacher, params, settings["teacher_momentum"])
        (total, _), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            params, r.model, r.spec, r.views, teacher, r.tokenizer, None
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, teacher, total, optax.global_norm(gradients)

    params, teacher, state = r.params, r.teacher, optimizer.init(r.params)
    steps = settings["steps"]
    # Rounding grows along the way: 1e-5 at the first step, 1e-3 at the last.
    for i, tolerance in enumerate(np.geomspace(1e-5, 1e-3, steps)):
        params, state, teacher, total, norm = update(params, state, teacher)
        np.testing.assert_allclose(total, recorded["total"][i], rtol=tolerance, err_msg=f"total of step {i}")
        np.testing.assert_allclose(norm, recorded["grad_norm"][i], rtol=10 * tolerance, err_msg=f"norm of step {i}")
    ours = params_to_tensors(jax.tree.map(np.asarray, params), r.config.model.patch)
    if teacher is not None:
        ours |= teacher_to_tensors(jax.tree.map(np.asarray, teacher), r.config.model.patch)
    final = [key for key in recorded if key.startswith("final.")]
    assert final
    for key in final:
        x, y = ours[key.removeprefix("final.")], recorded[key]
        assert np.linalg.norm(x - y) <= 1e-3 * np.linalg.norm(y), key


@pytest.mark.parametrize("folder", sorted(p.name for p in FOLDER.glob("mae_*")))
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_mae_backbone(folder, file):
    from sparse_vis.interop.mae import read_backbone
    from tests.interop.mae_config import config_of

    path = FOLDER / folder
    config = config_of(path)
    recorded = read(path / "expected.safetensors")
    from sparse_vis.build import build_model

    model = build_model(config)
    tree = read_backbone(path / file, config)
    # The plain encoder has no queries: none at all, not just ignored ones.
    encoder = {**tree, "queries": np.zeros((0, config.model.width), np.float32)}
    bare = model.encoder.clone(queries=0, parent=None)
    tokens = bare.apply({"params": encoder}, jnp.asarray(recorded["in.image"]))
    close(tokens.cls, recorded["out.cls"], "out.cls")
    close(tokens.U, recorded["out.patches"], "out.patches")


def test_potentials_given_or_computed_give_the_same_loss():
    name = models_with("expected")[0]
    r = load_recorded(name)
    total, _, _, targets, _ = step(name)
    again = jax.jit(
        lambda p, g: loss_fn(p, r.model, r.spec, r.views, r.teacher, r.tokenizer, g)[0]
    )(r.params, Potentials(sparse=targets.potentials.sparse, cls=targets.potentials.cls))
    np.testing.assert_allclose(again, total, rtol=1e-6)
