"""timm's VisionTransformer in a few lines, by its tensor names; timm itself would bring torchvision."""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, scaled):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), nn.Sequential()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = (
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )  # fmt: skip
        self.ls1, self.ls2 = (Scale(width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class TimmViT(nn.Module):
    """Calling it gives [CLS, registers, patches]. With `no_embed_class`, CLS has no position."""

    def __init__(self, image, patch, width, layers, heads, scaled=False, registers=0, no_embed_class=False):
        super().__init__()
        self.cls_token, self.patch_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Sequential()
        rows = (image // patch) ** 2 + (not no_embed_class)
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.patch_embed.flat = nn.Flatten(2)
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.blocks = nn.Sequential(*(Block(width, heads, scaled) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed(images).transpose(1, 2)
        cls = self.cls_token.expand(len(x), -1, -1)
        if self.pos_embed.shape[1] > x.shape[1]:
            x = torch.cat([cls, x], dim=1) + self.pos_embed
        else:
            x = torch.cat([cls, x + self.pos_embed], dim=1)
        if self.reg_token is not None:
            x = torch.cat([x[:, :1], self.reg_token.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        return self.norm(self.blocks(x))
