"""The dataset card: what a repository holds, where it comes from, what may be done with it."""

from __future__ import annotations


def card(repo_id: str, index_path: str) -> str:
    """The text of README.md of a repository.

    Args:
        repo_id: Of the repository.
        index_path: Its index.
    """
    return f"""---
license: other
license_name: see-the-rows
tags:
- 3d-gaussian-splatting
- image-to-3d
- sharp
configs:
- config_name: default
  data_files:
  - split: train
    path: {index_path}
---

# {repo_id.partition("/")[2] or repo_id}

Photographs and their 3D Gaussian splats, each predicted from the one photograph by Apple's
[SHARP](https://arxiv.org/abs/2512.10685), written by sharp_cog.

Each line of `{index_path}` is a photograph: `image_id`, `image_path` and `image_url`, `splat_paths` (a JSON object by
format) and `ply_url`, `spz_url`, `num_gaussians`, `focal_length_px`, `sha256` (a JSON object by format), who took it
(`user_name`, `user_username`, `user_url`), where it is from (`unsplash_url`), its licence (`license`, `license_url`),
and how it is described (`tags_text`, `topics_text`, `alt_description`, `description`). All values are strings. Lengths
in the splats are metres; the photograph's camera is the origin.

The photographs belong to who took them, under the licence that each row names. The splats were made with a model that
is for non-commercial research alone; read its licence before you use them:

> Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License Agreement.
"""
