"""Our configuration for a folder in the form of an MAE release."""

import json

from sparse_vis.config.defaults import default_config


def config_of(folder):
    e = json.loads((folder / "config.json").read_text())
    config = default_config()
    config.model.update(
        image_size=e["image_size"], patch=e["patch_size"], width=e["hidden_size"],
        layers=e["num_hidden_layers"], heads=e["num_attention_heads"], mlp_dim=e["intermediate_size"],
    )  # fmt: skip
    config.efficiency.dtype = "float32"
    return config
