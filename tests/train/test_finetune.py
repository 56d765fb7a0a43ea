"""Fine-tuning: its loss and rates in closed form, resume, and what loads and classifies afterwards."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.commands import probe
from sparse_vis.commands import run as command
from sparse_vis.data.loader import train_batches
from sparse_vis.data.sources import as_source
from sparse_vis.evals.columns import ranks
from sparse_vis.losses.classes import smoothed_cross_entropy
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name
from sparse_vis.train import log, loop
from sparse_vis.train.finetune import finetune_optimizer, finetune_params, finetune_recipe, prepare
from sparse_vis.train.step import initial_state, step_key
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views
from tests.tiny_checkpoint import write_checkpoints
from tests.train.test_log import NoBoard
from tests.train.test_resume import metrics, state
from tests.train.tiny_config import get_config

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 40)}
STEPS = 6


class StopAt:
    """A SIGTERM that comes in a given step, or never."""

    name, received, keep, message = "SIGTERM", False, False, ""

    def __init__(self, step=None):
        self.step = step

    def at(self, step):
        self.received = step == self.step
        return self.received


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (path / name).mkdir()
        for i in range(8):
            pixels = np.clip(colour + rng.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained")
    write_checkpoints(path, {1: 1}, config=get_config())
    return path


@pytest.fixture
def config(folder, pretrained, monkeypatch):
    monkeypatch.setattr(log, "TensorBoard", NoBoard)
    config = get_config()
    config.init = str(pretrained)
    config.data.update(source="folder", path=str(folder), split="")
    config.train.update(batch=4, steps=STEPS, save_every=3, log_every=2)
    config.eval.update(
        tasks=("classifier",), train_split="", test_split="", holdout=0.5, short_side=1.0, batch=12,
        train_records=0, test_records=0,
    )  # fmt: skip
    return config


@pytest.mark.fast
def test_the_loss_is_that_of_smoothed_labels_and_leaves_out_images_without_a_class():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.normal(0, 2, (5, 3)), jnp.float32), jnp.array([0, 2, 1, 2, -1])
    loss, terms = smoothed_cross_entropy(logits, labels, 0.2)
    targets = optax.smooth_labels(jax.nn.one_hot(labels[:4], 3), 0.2)
    expected = optax.softmax_cross_entropy(logits[:4], targets).sum() / 5
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    right = sum(int(np.argmax(logits[i])) == int(labels[i]) for i in range(4)) / 5
    np.testing.assert_allclose(terms["class_accuracy"], right)


@pytest.mark.fast
def test_the_loss_of_a_blend_is_the_blend_of_the_losses():
    rng = np.random.default_rng(1)
    logits, share = jnp.asarray(rng.normal(0, 2, (4, 3)), jnp.float32), jnp.array([0.0, 0.25, 1.0, 0.5])
    labels, other = jnp.array([0, 2, 1, 2]), jnp.array([1, 2, 0, -1])
    loss, _ = smoothed_cross_entropy(logits, labels, 0.1, other, share)

    def error(which):
        targets = optax.smooth_labels(jax.nn.one_hot(which, 3), 0.1)
        return optax.softmax_cross_entropy(logits, targets) * (which >= 0)

    np.testing.assert_allclose(loss, (share * error(labels) + (1 - share) * error(other)).mean(), rtol=1e-6)


@pytest.mark.fast
def test_ranks_by_hand():
    probability = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [1, 0, 0]], np.float32)
    assert ranks(probability, np.array([2, 0, 1, -1])).tolist() == [1, 0, 1, -1]


@pytest.mark.fast
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_each_layer_has_its_rate(weight_decay):
    """Adam's first step moves every weight by the rate, whatever its gradient; so it shows the rates."""
    config, decay, rate = get_config(), 0.5, 0.01
    config.model.layers, config.finetune.classes = 3, ("a", "b")
    recipe = finetune_recipe(config)
    shapes = jax.eval_shape(functools.partial(initial_state, recipe)).params
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    make = functools.partial(finetune_optimizer, optax.constant_schedule(rate), 3, decay)
    optimizer = make(weight_decay=weight_decay, b1=0.9, b2=0.999, clip=1e30)
    updates, _ = jax.jit(lambda ones: optimizer.update(ones, optimizer.init(ones), ones))(ones)
    found = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(updates)}
    full, names = -rate * (1 + weight_decay), set(found)
    for name in ("classifier/kernel", "classifier/bias", "encoder/trunk/norm/scale"):
        np.testing.assert_allclose(found[name], full, rtol=1e-5)
        names.remove(name)
    for name in ("encoder/patch_embedding/kernel", "encoder/queries", "encoder/position_table"):
        np.testing.assert_allclose(found[name], full * 0.0625, rtol=1e-5)  # 0.5 ** 4
        names.remove(name)
    blocks = {name for name in names if name.startswith("encoder/trunk/blocks/")}
    assert len(blocks) == 12
    for name in blocks:
        for layer, expected in enumerate((0.125, 0.25, 0.5)):
            np.testing.assert_allclose(found[name][layer], full * expected, rtol=1e-5, err_msg=name)
    frozen = {name for name in names if not name.startswith(("encoder/", "classifier/"))}
    assert {name.split("/")[0] for name in frozen} == {"factorizer", "decoder", "sparse_head", "cls_head"}
    assert not any(found[name].any() for name in frozen)  # weight decay does not move them either


@pytest.mark.parametrize("pool", ["mean_S", "cls", "concat_S"])
def test_gradients_reach_all_of_the_encoder_and_nothing_else(config, pool):
    config.finetune.pool = pool
    prepare(config)
    recipe, params = finetune_recipe(config), finetune_params(config)
    rng = np.random.default_rng(0)
    batch = Batch(
        image=jnp.asarray(rng.integers(0, 256, (4, 24, 24, 3), np.uint8)), height=jnp.full(4, 24),
        width=jnp.full(4, 24), index=jnp.arange(4, dtype=jnp.uint32), label=jnp.array([0, 1, 2, 1]),
    )  # fmt: skip

    @jax.jit
    @jax.grad
    def gradient(params):
        views = make_views(step_key(0, 0), batch, recipe.views)
        return recipe.objective(recipe.model.apply({"params": params}, views), views, None)[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        name = path_name(path)
        assert bool(np.any(leaf)) == name.startswith(("encoder/", "classifier/")), name


def test_labels_travel_with_their_images(folder):
    source = as_source(folder)
    batches = train_batches(
        source, global_batch=6, seed=0, start_index=0, steps=2, canvas=24, min_side=6, workers=0, threads=1,
        on_error="stop", process_index=0, process_count=1, labels=True,
    )  # fmt: skip
    for batch, _ in batches:
        strongest = batch.image.mean(axis=(1, 2)).argmax(axis=1)  # 0 for red, the last of the classes
        assert batch.label.tolist() == (2 - strongest).tolist()


def test_a_stopped_run_continues_bit_identically_and_its_classifier_is_loaded(
    config, tmp_path, monkeypatch, capsys
):
    config.finetune.mixup = 0.2
    for workdir, stops in ((tmp_path / "whole", (None,)), (tmp_path / "run", (4, None))):
        for stop in stops:
            with monkeypatch.context() as patch:  # the images are listed once, when their classes are read
                patch.setattr(loop, "build_source", lambda *_: pytest.fail("they are listed again"))
                command.run(config.copy_and_resolve_references(), workdir, "finetune", StopAt(stop))
    (found, place), (expected, same) = (state(tmp_path / name, STEPS) for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert place == same and metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    model, params = sparse_vis.load(tmp_path / "run")
    assert model.classifier.classes == ("blue", "green", "red")
    before = sparse_vis.load(config.init)[1]
    for name in ("decoder", "factorizer", "cls_head"):
        jax.tree.map(np.testing.assert_array_equal, params[name], before[name])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params["encoder"], before["encoder"])
    assert all(jax.tree.leaves(moved))

    source = as_source(config.data.path)
    images = np.stack([np.asarray(Image.open(config.data.path + "/" + source.name_of(i))) for i in range(24)])
    names, probabilities = sparse_vis.classify(model, params, images)
    S = np.asarray(sparse_vis.encode(model, params, images).sparse).mean(axis=1)
    logits = S @ np.asarray(params["classifier"]["kernel"]) + np.asarray(params["classifier"]["bias"])
    np.testing.assert_allclose(
        np.log(probabilities), logits - np.logaddexp.reduce(logits, 1)[:, None], atol=1e-4
    )
    test = range(1, 24, 2)  # a holdout of one half
    right = np.mean([names[i] == source.classes[source.labels[i]] for i in test])
    encoders = json.loads((tmp_path / "run" / "evaluation.json").read_text())["encoders"]
    assert encoders["trained"]["classifier"]["metrics"][""]["accuracy"] == pytest.approx(right)

    # A probe beside it is not what load takes; the printed call is true.
    monkeypatch.setattr(
        sys, "argv", ["probe", f"--checkpoint={tmp_path / 'run'}", f"--input={source.path}", "--kind=knn"]
    )
    probe.main()
    said = capsys.readouterr().out
    (call,) = re.findall(
        r"; load it with sparse_vis\.(load\(.*\)), and export it with .*; without these, they take", said
    )
    assert "gallery" in eval(call, {"load": sparse_vis.load})[1]["classifier"]
    assert "kernel" in sparse_vis.load(tmp_path / "run")[1]["classifier"]

    # The pretraining's own commands do not take it for theirs.
    saved = tmp_path / "run"
    with pytest.raises(UserError, match=r"'classifier' measures a classifier that exists only after fine"):
        command.run(config.copy_and_resolve_references(), tmp_path / "new", "train", StopAt())
    config.eval.tasks = ()
    with pytest.raises(UserError, match=r"config\.finetune\.classes is set, so this is a fine-tuning; give"):
        again = config.copy_and_resolve_references()
        again.finetune.classes = model.classifier.classes
        command.run(again, saved, "train", StopAt())
    with pytest.raises(
        UserError,
        match=r"holds a fine-tuning, and this is a pretraining; give another --workdir, or --mode=f",
    ):
        command.run(config.copy_and_resolve_references(), saved, "train", StopAt())
    again.finetune.pool = "cls"
    with pytest.raises(UserError, match=r"another classifier \(finetune\.pool: mean_S -> cls\)"):
        command.run(again, saved, "finetune", StopAt())


def test_what_cannot_be_fine_tuned_is_one_sentence(config, tmp_path):
    config.finetune.classes = ("cat", "dog")
    with pytest.raises(UserError, match=r"config\.finetune\.classes are not the classes of FolderSource"):
        prepare(config)
    config.data.path = str(tmp_path / "plain")
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "plain" / "a.png")
    config.finetune.classes = ()
    with pytest.raises(UserError, match=r"needs images of two or more classes, and .* has none; give"):
        prepare(config)
    config.train.probe_every = 10
    with pytest.raises(UserError, match=r"config\.train\.probe_every measures pretraining"):
        prepare(config)
