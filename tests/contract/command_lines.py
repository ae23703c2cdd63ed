"""A pair of command lines for each argument of each command: without it, and with it."""

from __future__ import annotations

from dataclasses import fields

from sharp_cog.config.dataset import DatasetSettings
from tests.config.test_dataset import ENVIRONMENT

Rows = dict[str, tuple[str, str]]
"""By the argument: the rest of a command line without it, and with it."""

FOCAL: Rows = {
    "focal_length_px": ("", "--focal-length-px 500"),
    "focal_length_mm": ("", "--focal-length-mm 90"),
}
MODEL: Rows = {
    "checkpoint": ("", "--checkpoint other.pt"),
    "device": ("", "--device cpu"),
    "precision": ("", "--precision float16"),
}
OUTPUT: Rows = {
    "format": ("", "--format spz"),
    "max_gaussians": ("", "--max-gaussians 5"),
    "min_opacity": ("", "--min-opacity 0.5"),
    "axes": ("", "--axes opengl"),
    "scale": ("", "--scale 2"),
    "center": ("", "--center"),
    "spz_version": ("--format spz", "--spz-version 4"),
}
LOUD: Rows = {"verbose": ("missing.png", "-v")}


def with_inputs(inputs: str, rows: Rows) -> Rows:
    """Rows with what a command cannot do without."""
    return {name: (f"{inputs} {base}", more) for name, (base, more) in rows.items()}


DEPTH = "photo.png --depth depth.npy"
PRO = "-o out --estimators depth-pro"
FILM = "room.ply -o a.webp --duration 0.2 --fps 10 --width 48"
TABLE: dict[str, Rows] = {
    "predict": {
        **LOUD,
        "inputs": ("photo.png", "other.png"),
        "output": ("photo.png", "-o elsewhere.ply"),
        "recursive": ("folder", "-r"),
        "model": ("photo.png", "--model lift"),
        "depth": ("photo.png", "--depth depth.npy"),
        "depth_from": ("photo.png", "--depth-from depth-pro"),
        "estimator_checkpoint": ("photo.png --depth-from depth-pro", "--estimator-checkpoint mine"),
        "depth_format": (DEPTH, "--depth-format inverse-relative"),
        "depth_mode": (DEPTH, "--depth-mode align"),
        "back_surface_factor": (DEPTH, "--back-surface-factor 2"),
        "depth_fit": (DEPTH, "--depth-fit median"),
        "depth_scale": (DEPTH, "--depth-scale 2"),
        "depth_offset": (DEPTH, "--depth-offset 1"),
        "save_internal_depth": ("photo.png", "--save-internal-depth"),
        "preview": ("photo.png", "--preview"),
        **with_inputs("photo.png", {**FOCAL, **OUTPUT, **MODEL}),
    },
    "download": {"verbose": ("--cache-dir none", "-v"), "cache_dir": ("", "--cache-dir elsewhere")},
    "info": {**LOUD, "file": ("photo.png", "other.png"), "json": ("photo.png", "--json")},
    "convert": {
        "verbose": ("missing.ply out.ply", "-v"),
        "source": ("room.ply out.ply", "wall.ply out.ply"),
        "target": ("room.ply out.ply", "room.ply other.splat"),
        "input_axes": ("room.ply out.ply", "--input-axes opengl"),
        **with_inputs("room.ply out.ply", OUTPUT),
    },
    "depth": {
        **LOUD,
        "inputs": ("photo.png", "other.png"),
        "output": ("photo.png", "-o maps"),
        "recursive": ("folder", "-r"),
        "estimator": ("photo.png", "--estimator depth-anything-v2-metric"),
        "estimator_checkpoint": ("photo.png", "--estimator-checkpoint mine"),
        **with_inputs("photo.png --estimator sharp", MODEL),
    },
    "compare-depth": {
        "verbose": ("missing.png -o out", "-v"),
        "image": (f"photo.png {PRO}", f"other.png {PRO}"),
        "output": (f"photo.png {PRO}", f"photo.png {PRO} -o elsewhere"),
        "estimators": (f"photo.png {PRO}", "--estimators depth-pro,depth-anything-v2-metric"),
        "depth_pro": (f"photo.png {PRO}", "--depth-pro mine"),
        "depth_anything": ("photo.png -o out --estimators depth-anything-v2-metric", "--depth-anything mine"),
        **with_inputs(f"photo.png {PRO}", MODEL),
    },
    "render": {
        "verbose": ("missing.ply", "-v"),
        "splat": ("room.ply -o a.png", "wall.ply -o a.png"),
        "output": ("room.ply -o a.png", "room.ply -o b.png"),
        "path": (FILM, "--path swipe"),
        "duration": (FILM, "--duration 0.4"),
        "fps": (FILM, "--fps 20"),
        "width": (FILM, "--width 64"),
        "range": (FILM, "--range 0.02"),
        "depth": (FILM, "--depth"),
        "stereo": (FILM, "--stereo"),
        "input_axes": ("room.ply -o a.png", "--input-axes opengl"),
    },
    "verify": {
        **LOUD,
        "image": ("photo.png", "wide.png"),
        "tolerance": ("photo.png", "--tolerance 0.1"),
        **with_inputs("photo.png", {**FOCAL, "checkpoint": MODEL["checkpoint"], "device": MODEL["device"]}),
    },
    "serve": {
        "verbose": ("", "-v"),
        "model": ("", "--model lift"),
        "host": ("", "--host 127.0.0.2"),
        "port": ("", "--port 0"),
        **MODEL,
    },
    "dataset": {"verbose": ("status --run-id none", "-v"), "action": ("run --input-dir in", "status --input-dir in")},
}


def dataset_rows() -> Rows:
    """A row for each flag of a setting, with what it does not go without."""
    needs = {
        "source": "--queries a --order-by latest",
        "queries": "--source search",
        "order_by": "--source list",
        "hf_upload": "--hf-repo-id you/splats",
        "hf_formats": "--formats ply,spz",
        "hf_use_locks": "--hf-upload --hf-repo-id you/splats",
    }
    special = {"order_by": "oldest", "claims_dir": "/shared"}
    rows = {}
    for setting in fields(DatasetSettings):
        variable = setting.metadata["variable"]
        if "KEY" not in variable:
            value = special.get(setting.name) or ENVIRONMENT[variable][0].replace(" ", "")
            flag = f"--{setting.name.replace('_', '-')} {value}"
            rows[setting.name] = (f"run --input-dir in {needs.get(setting.name, '')}", flag)
    return rows


TABLE["dataset"] |= dataset_rows()
