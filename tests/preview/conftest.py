from __future__ import annotations

from pathlib import Path

import pytest

from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.pipeline.prediction import Prediction

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def prediction() -> Prediction:
    """The splat of the example image with its exact depth map."""
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    return pipeline(EXAMPLES / "room.jpg", PredictOptions(), depth=EXAMPLES / "room.depth.png")
