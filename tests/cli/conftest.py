import os

import pytest
import torch

from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie
from tests.cli.commands import StubPredictor


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SHARP_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> StubPredictor:
    """A predictor that costs nothing, in the place of whichever model a command would load."""
    predictor = StubPredictor()

    def load(settings: Settings) -> SharpPipeline:
        return SharpPipeline(predictor, device=torch.device("cpu"), settings=settings)

    monkeypatch.setattr(SharpPipeline, "load", load)
    return predictor


@pytest.fixture
def short_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews and films of a few small frames."""
    options = movie.VideoOptions(duration_s=0.1, fps=10, width=64, camera_range=0.02)
    monkeypatch.setattr(movie, "PREVIEW_OPTIONS", options)
    monkeypatch.setattr(movie, "MP4_OPTIONS", movie.VideoOptions(duration_s=0.2, fps=10, width=64))
