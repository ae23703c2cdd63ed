"""Loading of the predictor that the settings name."""

from __future__ import annotations

import pytest
import torch

from sharp_cog import Settings
from sharp_cog.errors import SettingError
from sharp_cog.runtime.load import load_predictor


@pytest.mark.parametrize("model", ["sharp", "ml-sharp"])
def test_a_licence_for_research_refuses_commercial_use_before_anything_is_downloaded(model: str) -> None:
    settings = Settings(model=model, commercial=True, checkpoint_url="http://127.0.0.1:9/none")
    with pytest.raises(SettingError, match="does not allow that: choose the model lift"):
        load_predictor(settings, torch.device("cpu"))


def test_a_model_without_weights_may_be_used_commercially() -> None:
    assert load_predictor(Settings(model="lift", commercial=True), torch.device("cpu")).needs_depth
