"""The peer's targets and losses in PyTorch (docs/method.md sections 5 and 6), and its training step."""

import torch
import torch.nn.functional as F

from benchmarks.peer.peer_model import Peer
from sparse_vis.losses.spec import LossSpec


@torch.no_grad()
def sinkhorn(logits, temperature: float, iterations: int):
    """Assignments (rows, K) with rows that sum to one."""
    scaled = logits / temperature
    q = torch.exp(scaled - scaled.max(dim=0).values + 50)
    for _ in range(iterations):
        q = q / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q


@torch.no_grad()
def matches(S, target, epsilon: float, iterations: int):
    """For each token of S (N, r, d) the index of its target token, by an entropic plan."""
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
    """Mean over rows of CE(targets, softmax(x W / temperature)); targets broadcast over views."""
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
    """The peer's training step: call it with (image, masked, visible, local), get (total, gradient norm).

    Args:
        peer: the model. spec: loss settings. rate, weight_decay, clip: of AdamW and the gradient clipping.
        compile: whether torch.compile makes one program of forward pass and losses.
    """

    def __init__(
        self, peer: Peer, spec: LossSpec, *, rate: float, weight_decay: float, clip: float, compile: bool
    ):
        self.peer, self.clip = peer, clip
        self.optimizer = torch.optim.AdamW(
            peer.parameters(), lr=rate, weight_decay=weight_decay, betas=(0.9, 0.999), fused=True
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
