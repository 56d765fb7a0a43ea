"""Our parameters and views as the peer takes them."""

from __future__ import annotations

import jax
import numpy as np
import torch

from benchmarks.peer.peer_model import Peer
from sparse_vis.types import Views


def torch_views(views: Views) -> tuple[torch.Tensor, ...]:
    """image, masked, visible, local; channels before rows and columns, as PyTorch has them."""

    def pixels(x):
        return torch.from_numpy(np.moveaxis(np.array(x), -1, -3).copy())

    visible = torch.from_numpy(np.array(views.visible)).long()
    return pixels(views.image), pixels(views.masked), visible, pixels(views.local)


def _linear(name: str, p: dict) -> dict:
    return {f"{name}.weight": p["kernel"].T, f"{name}.bias": p["bias"]}


def _norm(name: str, p: dict) -> dict:
    return {f"{name}.weight": p["scale"], f"{name}.bias": p["bias"]}


def _trunk(name: str, p: dict) -> dict:
    found = _norm(f"{name}.norm", p["norm"])
    for i in range(len(p["blocks"]["qkv"]["bias"])):
        block, at = jax.tree.map(lambda x, i=i: x[i], p["blocks"]), f"{name}.layers.{i}"
        kernels = np.split(block["qkv"]["kernel"], 3, axis=1)
        biases = np.split(block["qkv"]["bias"], 3)
        for letter, kernel, bias in zip("qkv", kernels, biases, strict=True):
            found |= _linear(f"{at}.attention.{letter}_proj", {"kernel": kernel, "bias": bias})
        found |= _linear(f"{at}.attention.o_proj", block["attention_out"])
        found |= _linear(f"{at}.mlp.fc1", block["mlp_in"]) | _linear(f"{at}.mlp.fc2", block["mlp_out"])
        found |= _norm(f"{at}.layernorm_before", block["norm_attention"])
        found |= _norm(f"{at}.layernorm_after", block["norm_mlp"])
    return found


def transplant(params: dict, peer: Peer) -> None:
    """Copy our parameter tree into the peer; every one of its tensors is set."""
    p = jax.tree.map(np.asarray, jax.device_get(params))
    e, d = p["encoder"], p["decoder"]
    tensors = {
        "cls": e["cls_token"], "cls_position": e["cls_position"], "positions": e["position_table"],
        "queries": e["queries"], "fourier": d["fourier"], "pixel_bias": d["pixel_bias"],
        "pixel_weight": d["pixel_kernel"].reshape(len(d["pixel_kernel"]), -1),
        **_linear("embedding", e["patch_embedding"]), **_trunk("trunk", e["trunk"]),
        **_linear("dense_proj", p["factorizer"]["dense_proj"]),
        **_linear("sparse_proj", p["factorizer"]["sparse_proj"]),
        **_linear("decoder_in", d["proj"]), **_trunk("decoder", d["trunk"]),
        "mean": peer.mean, "std": peer.std,
    }  # fmt: skip
    for name in ("sparse_head", "cls_head"):
        head = p[name]
        tensors |= _linear(f"{name}.inner", head["predictor_in"]) | _linear(
            f"{name}.outer", head["predictor_out"]
        )
        tensors[f"{name}.prototypes"] = head["prototypes"]
    peer.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, strict=True)
