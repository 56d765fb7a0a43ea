"""The peer: STELLAR's training step in PyTorch around transformers' ViT layers, written from docs/method.md.

It is as fast as PyTorch is without kernels of its own: one encoder call per shape of view, only visible
patches embedded, scaled_dot_product_attention, fused AdamW. Pixel target, no teacher.
"""

import math

import jax
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn
from transformers import ViTConfig, ViTModel

from sparse_vis.interop.families import as_transformers_4
from sparse_vis.interop.released import params_to_tensors, renamed
from sparse_vis.losses.spec import LossSpec
from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from sparse_vis.types import Views


class Trunk(nn.Module):
    """Blocks and last norm of a ViTModel, without its embeddings."""

    def __init__(self, width: int, layers: int, heads: int, mlp_dim: int):
        super().__init__()
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp_dim,
            hidden_act="gelu", layer_norm_eps=1e-12, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        )  # fmt: skip
        model = ViTModel(config, add_pooling_layer=False)
        self.layers, self.layernorm = model.layers, model.layernorm

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x)


class Head(nn.Module):
    """Predictor MLP to the unit sphere, and prototypes (dim, K)."""

    def __init__(self, width: int, hidden: int, dim: int, count: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.prototypes = nn.Parameter(torch.randn(dim, count))

    def forward(self, x):
        return F.normalize(self.outer(F.gelu(self.inner(x))), dim=-1, eps=1e-7)


class Peer(nn.Module):
    """The model of config.model; `tokens`, `encode` and `forward` mirror docs/method.md sections 2 to 5."""

    def __init__(self, config: ConfigDict):
        super().__init__()
        m = config.model
        self.patch, self.side, self.queries_count = m.patch, m.image_size // m.patch, m.tokens
        self.temperature = m.spatial_temperature
        self.cls = nn.Parameter(torch.zeros(m.width))
        self.cls_position = nn.Parameter(torch.zeros(m.width))
        self.positions = nn.Parameter(torch.zeros(self.side**2, m.width))
        self.queries = nn.Parameter(torch.randn(m.tokens, m.width) * m.width**-0.5)
        self.embedding = nn.Linear(3 * m.patch**2, m.width)
        self.trunk = Trunk(m.width, m.layers, m.heads, m.mlp_dim)
        self.dense_proj, self.sparse_proj = (nn.Linear(m.width, m.width) for _ in range(2))
        d, p = m.decoder, m.prototypes
        self.decoder_in = nn.Linear(m.width, d.width)
        self.decoder = Trunk(d.width, d.layers, d.heads, d.mlp_dim)
        self.register_buffer("fourier", torch.randn(2, d.width // 2))
        self.pixel_weight = nn.Parameter(torch.zeros(d.width, m.patch**2 * 3))
        self.pixel_bias = nn.Parameter(torch.zeros(3))
        self.sparse_head, self.cls_head = (Head(m.width, p.hidden, p.dim, p.count) for _ in range(2))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def tokens(self, pixels, visible=None):
        """(CLS, S, U) of images (B, 3, H, W); `visible` (B, keep): indices of the patches to encode."""
        batch, _, height, width = pixels.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        x = ((pixels - self.mean) / self.std).view(batch, 3, rows, p, columns, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
        table = self.positions
        if (rows, columns) != (self.side, self.side):
            table = table.T.view(1, -1, self.side, self.side)
            table = F.interpolate(table, (rows, columns), mode="bicubic", align_corners=False)
            table = table.flatten(2)[0].T
        if visible is None:
            x = self.embedding(x) + table
        else:
            x = torch.gather(x, 1, visible[..., None].expand(-1, -1, x.shape[-1]))
            x = self.embedding(x) + table[visible]
        first = (self.cls + self.cls_position).expand(batch, 1, -1)
        x = self.trunk(torch.cat([first, x, self.queries.expand(batch, -1, -1)], dim=1))
        return x[:, 0], x[:, -self.queries_count :], x[:, 1 : -self.queries_count]

    def factorize(self, S, U):
        """L (B, n, r) and Z = L S."""
        u = F.normalize(self.dense_proj(U), dim=-1, eps=1e-7)
        s = F.normalize(self.sparse_proj(S), dim=-1, eps=1e-7)
        L = torch.softmax(u @ s.transpose(1, 2) / self.temperature, dim=-1)
        return L, L @ S

    def encode(self, pixels):
        """CLS, S, U, L and Z of images (B, 3, H, W)."""
        cls, S, U = self.tokens(pixels)
        return cls, S, U, *self.factorize(S, U)

    def position_code(self):
        centres = (torch.arange(self.side, dtype=torch.float32) + 0.5) / self.side * 2 - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        angle = 2 * math.pi * torch.stack([x, y], dim=-1).view(-1, 2) @ self.fourier
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    def decode(self, Z):
        """Pixels (B, 3, H, W)."""
        x = self.decoder(self.decoder_in(Z) + self.position_code())
        p, g = self.patch, self.side
        x = (x @ self.pixel_weight).view(-1, g, g, p, p, 3) + self.pixel_bias
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, g * p, g * p)

    def forward(self, image, masked, visible, local):
        """All that the losses need.

        image (B, 3, H, W), masked (B, V, 3, H, W), visible (B, V, keep), local (B, Vl, 3, h, w).
        """
        batch = image.shape[0]
        cls, S, U = self.tokens(image)
        _, Z = self.factorize(S, U)
        masked_cls, masked_S, _ = self.tokens(masked.flatten(0, 1), visible.flatten(0, 1))
        local_cls, _, _ = self.tokens(local.flatten(0, 1))
        return dict(
            S=S, masked_S=masked_S.unflatten(0, (batch, -1)), pixels=self.decode(Z),
            sparse=self.sparse_head(S), masked_sparse=self.sparse_head(masked_S).unflatten(0, (batch, -1)),
            cls=self.cls_head(cls), masked_cls=self.cls_head(masked_cls).unflatten(0, (batch, -1)),
            local_cls=self.cls_head(local_cls).unflatten(0, (batch, -1)),
            sparse_prototypes=self.sparse_head.prototypes, cls_prototypes=self.cls_head.prototypes,
        )  # fmt: skip


@torch.no_grad()
def sinkhorn(logits, temperature: float, iterations: int):
    """Assignments (rows, K); rows sum to one."""
    scaled = logits / temperature
    q = torch.exp(scaled - scaled.max(dim=0).values + 50)
    for _ in range(iterations):
        q = q / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q


@torch.no_grad()
def matches(S, target, epsilon: float, iterations: int):
    """For each token of S (N, r, d), the index of its target token, by an entropic plan."""
    kernel = -torch.cdist(S, target, compute_mode="donot_use_mm_for_euclid_dist") / epsilon
    f, g = torch.zeros_like(kernel[:, :, :1]), torch.zeros_like(kernel[:, :1])
    for _ in range(iterations):
        f = -torch.logsumexp(kernel + g, dim=2, keepdim=True)
        g = -torch.logsumexp(kernel + f, dim=1, keepdim=True)
    return (kernel + f + g).argmax(dim=-1)


def koleo(S):
    """-log of half the distance to the nearest neighbour within each set, mean over tokens."""
    s = F.normalize(S.flatten(0, -3), dim=-1, eps=1e-8)
    with torch.no_grad():
        cosine = s @ s.transpose(1, 2)
        cosine.diagonal(dim1=1, dim2=2).fill_(-2)
        nearest = cosine.argmax(dim=-1)
    neighbour = torch.gather(s, 1, nearest[..., None].expand_as(s))
    return -torch.log(0.5 * F.pairwise_distance(s, neighbour, eps=1e-8) + 1e-8).mean()


def cross_entropy(x, prototypes, targets, temperature: float):
    """Mean over rows of CE(targets, softmax(x W / temperature)); targets are broadcast over views."""
    logits = x @ prototypes / temperature
    return F.cross_entropy(logits.flatten(0, -2), targets.expand_as(logits).flatten(0, -2))


def total_loss(out: dict, image, spec: LossSpec):
    """Weighted total of the published terms."""
    batch, views, count, _ = out["masked_S"].shape
    how = (spec.sinkhorn_temperature, spec.sinkhorn_iterations)
    sparse = sinkhorn(out["sparse"].flatten(0, 1) @ out["sparse_prototypes"], *how).view(batch, count, -1)
    cls = sinkhorn(out["cls"] @ out["cls_prototypes"], *how)
    repeated = out["S"].repeat_interleave(views, dim=0)
    match = matches(out["masked_S"].flatten(0, 1), repeated, spec.match_epsilon, spec.match_iterations)
    rows = torch.arange(batch, device=match.device)[:, None, None]
    matched = sparse[rows, match.view(batch, views, count)]
    W, V, tau = out["sparse_prototypes"], out["cls_prototypes"], spec.student_temperature
    return (
        spec.reconstruction * F.mse_loss(out["pixels"], image)
        + spec.token_clustering * cross_entropy(out["sparse"], W, sparse, tau)
        + spec.set_alignment * cross_entropy(out["masked_sparse"], W, matched, tau)
        + spec.cls_clustering * cross_entropy(out["cls"], V, cls, tau)
        + spec.cls_masked * cross_entropy(out["masked_cls"], V, cls[:, None], tau)
        + spec.cls_local * cross_entropy(out["local_cls"], V, cls[:, None], tau)
        + spec.koleo_image * koleo(out["S"])
        + spec.koleo_masked * koleo(out["masked_S"])
    )


class Step:
    """The peer's training step; called with (image, masked, visible, local), it returns total, gradient norm.

    `optimizer`: config.optimizer. `compile`: whether torch.compile compiles forward pass and losses.
    """

    def __init__(self, peer: Peer, spec: LossSpec, optimizer: ConfigDict, *, compile: bool):
        self.peer, self.clip = peer, optimizer.clip
        self.optimizer = torch.optim.AdamW(
            peer.parameters(), optimizer.peak_lr, weight_decay=optimizer.weight_decay, fused=True
        )

        def loss(image, masked, visible, local):
            return total_loss(peer(image, masked, visible, local), image, spec)

        self.loss = torch.compile(loss) if compile else loss

    def __call__(self, *views):
        self.optimizer.zero_grad(set_to_none=True)
        total = self.loss(*views)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.peer.parameters(), self.clip)
        self.optimizer.step()
        return total.detach(), norm


def torch_views(views: Views) -> tuple[torch.Tensor, ...]:
    """image, masked, visible and local, with channels before rows and columns, as in PyTorch."""

    def pixels(x):
        return torch.from_numpy(np.moveaxis(np.array(x), -1, -3).copy())

    visible = torch.from_numpy(np.array(views.visible)).long()
    return pixels(views.image), pixels(views.masked), visible, pixels(views.local)


# Beginning of a released name -> that of the peer's name; the first that fits. Layers are named as released.
NAMES = {
    "sparse_tokens": "queries", "encoder.embeddings.cls_token": "cls",
    "encoder.embeddings.position_embeddings": "positions",
    "encoder.embeddings.patch_embeddings.projection": "embedding",
    "encoder.": "trunk.", "decoder_proj": "decoder_in",
    "position_embedding.positional_encoding_gaussian_matrix": "fourier",
    "reconstruction_head.weight": "pixel_weight", "reconstruction_head.bias": "pixel_bias",
    "clustering_head.layer.weight": "sparse_head.prototypes",
    "clustering_head.predictor.layers.0": "sparse_head.inner",
    "clustering_head.predictor.layers.2": "sparse_head.outer",
    "cls_cluster_head.layer.weight": "cls_head.prototypes",
    "cls_cluster_head.predictor.layers.0": "cls_head.inner",
    "cls_cluster_head.predictor.layers.2": "cls_head.outer",
}  # fmt: skip


def transplant(params: dict, peer: Peer) -> None:
    """Copy our parameter tree into the peer, whose tensors must all be set by it."""
    tensors = params_to_tensors(jax.device_get(params), peer.patch, names=renamed(NAMES))
    table = tensors["positions"][0]
    tensors |= {"cls": tensors["cls"][0, 0], "cls_position": table[0], "positions": table[1:]}
    for name in ("embedding.weight", "pixel_weight"):  # in the peer's patches, colours are the last axis
        tensors[name] = tensors[name].transpose(0, 2, 3, 1).reshape(len(tensors[name]), -1)
    for name in ("sparse_head.prototypes", "cls_head.prototypes"):
        tensors[name] = tensors[name].T
    tensors |= {"mean": peer.mean, "std": peer.std}
    own = as_transformers_4({name: name for name in peer.state_dict()})
    state = {own[name]: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
    peer.load_state_dict(state, strict=True)
