"""A run folder with a trunk and nothing else, for what only wants one."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pirl.config import Config
from pirl.methods.models import Trunk


def write_run(folder: Path, config: Config) -> Trunk:
    """A run with one checkpoint that has a trunk alone."""
    torch.manual_seed(0)
    trunk = Trunk(config.model.arch, config.model.width, config.model.stem)
    checkpoint = folder / "checkpoint_000000003"
    checkpoint.mkdir(parents=True)
    save_file(trunk.state_dict(), checkpoint / "trunk.safetensors")
    for place in (folder, checkpoint):
        (place / "config.json").write_text(config.model_dump_json())
    sizes = {name: (checkpoint / name).stat().st_size for name in ("trunk.safetensors", "config.json")}
    (checkpoint / "state.json").write_text(json.dumps({"version": 0, "step": 3, "bytes": sizes}))
    return trunk
