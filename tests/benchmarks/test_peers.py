"""Peers of lightly: what needs no lightly, with small modules in place of its methods."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.evidence import peer_training, peers, plot
from benchmarks.evidence.experiments import GROUPS
from sparse_vis.evals.features import encode
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.stop import StopSignal
from tests.train.tiny_config import get_config


class Layer(nn.Module):
    """torchvision's EncoderBlock, with its names."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width), nn.Dropout(0.0)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Backbone(nn.Module):
    """torchvision's VisionTransformer as `vit`, with its names, and lightly's `encode`."""

    def __init__(self, m):
        super().__init__()
        vit = self.vit = nn.Module()
        vit.class_token = nn.Parameter(torch.randn(1, 1, m.width))
        vit.conv_proj = nn.Conv2d(3, m.width, m.patch, m.patch)
        vit.encoder = nn.Module()
        length = 1 + (m.image_size // m.patch) ** 2
        vit.encoder.pos_embedding = nn.Parameter(torch.randn(1, length, m.width))
        vit.encoder.layers, vit.encoder.ln = nn.Sequential(), nn.LayerNorm(m.width, eps=1e-6)
        for number in range(m.layers):
            vit.encoder.layers.add_module(f"encoder_layer_{number}", Layer(m.width, m.heads, m.mlp_dim))
        for parameter in self.parameters():  # LayerNorms and biases too
            nn.init.normal_(parameter, 0.0, 0.3)

    def encode(self, images):
        x = self.vit.conv_proj(images).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.vit.class_token.expand(len(x), -1, -1), x], dim=1)
            + self.vit.encoder.pos_embedding
        )
        return self.vit.encoder.ln(self.vit.encoder.layers(x))


class Method(nn.Module):
    """Learns from noisy images."""

    def __init__(self, side):
        super().__init__()
        self.backbone = nn.Linear(3 * side * side, 2)

    def views(self, image):
        pixels = torch.from_numpy(np.array(image)).float() / 255
        return [pixels.flatten() + torch.randn(()), pixels.flatten()]

    def loss(self, views, step):
        return (self.backbone(views[0]) - 1).square().mean() + self.backbone(views[1]).square().mean()

    def after_backward(self, step):
        pass


def test_a_backbone_of_torchvision_is_our_encoder(tmp_path):
    config = get_config()
    config.model.update(layers=2, norm_epsilon=1e-6)
    torch.manual_seed(0)
    method = nn.Module()
    method.backbone = Backbone(config.model)
    encoder = peers.as_encoder(method, config, tmp_path, {"from": "here"})
    images = np.random.default_rng(1).random((3, 24, 24, 3), np.float32)
    found = encode(encoder, images, ("cls", "dense"), 3)
    scaled = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = method.backbone.encode(torch.tensor(scaled).float().permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found["cls"], expected[:, :1], atol=2e-5)
    np.testing.assert_allclose(found["dense"], expected[:, 1:], atol=2e-5)
    for layer in method.backbone.vit.encoder.layers:
        layer.ln_1.eps = 0.1  # no tensor shows it
    with pytest.raises(UserError, match=r"features differ by .* from torch's"):
        peers.as_encoder(method, config, tmp_path, {})


def test_a_run_continues_as_if_it_had_not_been_interrupted(tmp_path, capsys):
    config = get_config()
    config.train.update(steps=4, save_every=2)

    def trained(workdir, stop):
        torch.manual_seed(0)
        method = Method(config.data.canvas)
        workdir.mkdir(exist_ok=True)
        done = peer_training.train(method, config, "mae", workdir, stop)
        return done, method.backbone.weight.detach().numpy()

    class StopAtTwo(StopSignal):
        def at(self, step):
            return step == 2

    done, straight = trained(tmp_path / "straight", StopSignal())
    begun, halfway = trained(tmp_path / "stopped", StopAtTwo())
    assert done and not begun and np.abs(halfway - straight).max() > 1e-4
    assert trained(tmp_path / "stopped", StopSignal())[0]
    assert "step 2" in capsys.readouterr().out
    finished, continued = trained(tmp_path / "stopped", StopSignal())
    np.testing.assert_array_equal(continued, straight)
    assert finished
    rows = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(math.isfinite(row["total"]) for row in rows)
    config.seed = 1
    with pytest.raises(UserError, match=r"holds a run of --peer=mae with config\.seed=0"):
        trained(tmp_path / "stopped", StopSignal())
    (tmp_path / "stopped" / "peer.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        trained(tmp_path / "stopped", StopSignal())


@pytest.mark.fast
def test_the_rates_rise_and_fall_as_ours():
    config = get_config()
    config.train.steps = 100
    config.optimizer.update(peak_lr=1.0, final_lr=0.2, warmup=0.1)
    rates = peer_training.learning_rates(config)
    assert rates.shape == (100,)
    np.testing.assert_allclose(rates[[0, 5, 10]], [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(rates[55], 0.6, atol=1e-6)  # halfway down the cosine


def result(row, knn, linear, psnr, **encoders):
    """A result file with one trained encoder, and others."""
    probe = {} if psnr is None else {"reconstruction_probe": {"U, centre": {"psnr": psnr}}}
    trained = {
        "knn": {name: {"k20": value} for name, value in knn.items()},
        "linear": {name: {"accuracy": value} for name, value in linear.items()},
    }
    return {"row": row, "metrics": {"trained": trained | probe, **encoders}}


@pytest.mark.fast
def test_the_plot_shows_mean_S_or_the_better_feature_and_lines_without_a_PSNR(tmp_path, monkeypatch):
    pixels = {"knn": {"mean_U": {"k20": 0.79}}, "linear": {"mean_U": {"accuracy": 0.82}}}
    runs = [
        result("ours", {"mean_S": 0.8, "cls": 0.9}, {"mean_S": 0.81}, 22.0, pixels=pixels),
        result("ours", {"mean_S": 0.7, "cls": 0.9}, {"mean_S": 0.83}, 24.0, pixels=pixels),
        result("DINO", {"cls": 0.6, "mean_U": 0.5}, {"cls": 0.7, "cls_mean_U": 0.75}, 19.0),
    ]
    found = plot.curves(GROUPS["fashion"], runs, "kNN (k = 20)")
    assert found == {
        "ours": ([0.8, 0.7], [22.0, 24.0]),
        "pixels": ([0.79, 0.79], []),
        "DINO": ([0.6], [19.0]),
    }
    assert plot.curves(GROUPS["fashion"], runs, "linear")["DINO"] == ([0.75], [19.0])
    axis = plot.figure(GROUPS["fashion"], runs).axes[0]
    (ours, dino), (line,) = axis.containers, [x for x in axis.lines if x.get_linestyle() == "--"]
    np.testing.assert_allclose([*ours.lines[0].get_xdata(), *ours.lines[0].get_ydata()], [23.0, 0.75])
    assert dino.get_label() == "DINO" and list(line.get_ydata()) == [0.79, 0.79]

    monkeypatch.setattr("sys.argv", ["plot.py", f"--output={tmp_path / 'new'}"])
    with pytest.raises(UserError, match=r"new ends in neither \.png nor \.svg"):
        plot.main()
    command = ["plot.py", f"--output={tmp_path / 'new.png'}", f"--results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match="has no results; first run the group"):
        plot.main()
    (tmp_path / "fashion").mkdir()
    for number, run in enumerate(runs):
        (tmp_path / "fashion" / f"{number}.json").write_text(json.dumps(run))
    plot.main()
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG")
