"""Facts of all networks, in one table: what they do, their size, their licence, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from sharp_cog.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A network that predicts splats or estimates depth.

    Attributes:
        name: Name that users write.
        purpose: What it does, as a phrase.
        licence: Licence of the weights; empty without weights.
        licence_url: Address of the licence or of the model's card.
        allows_commercial: Whether the licence of the weights allows commercial use.
        repository: Repository of the weights on the Hugging Face hub; empty if they are elsewhere.
        file: File of the weights in the repository.
        megabytes: Size of the download.
        estimates_focal_length: Whether it also estimates the focal length, where nothing else tells it.
    """

    name: str
    purpose: str
    licence: str = ""
    licence_url: str = ""
    allows_commercial: bool = False
    repository: str = ""
    file: str = ""
    megabytes: int = 0
    estimates_focal_length: bool = False

    @property
    def terms(self) -> str:
        """Size and licence of the weights, as a phrase; empty without weights."""
        if not self.licence:
            return ""
        use = "commercial use allowed" if self.allows_commercial else "no commercial use"
        return f"{self.megabytes / 1000:.2f} GB, {self.licence}, {use}"


SPLAT_MODELS = {
    facts.name: facts
    for facts in (
        ModelFacts(
            name="sharp",
            purpose="Apple's weights in the network of this package",
            licence="Apple Machine Learning Research Model licence",
            licence_url="https://github.com/apple/ml-sharp/blob/main/LICENSE_MODEL",
            megabytes=2809,
        ),
        ModelFacts(
            name="lift",
            purpose="no weights, but it needs a depth map, or a photograph that carries depth",
            allows_commercial=True,
        ),
        ModelFacts(
            name="ml-sharp",
            purpose="Apple's own package",
            licence="Apple Machine Learning Research Model licence",
            licence_url="https://github.com/apple/ml-sharp/blob/main/LICENSE_MODEL",
            megabytes=2809,
        ),
    )
}
"""Models that predict splats, by name."""

ESTIMATORS = {
    facts.name: facts
    for facts in (
        ModelFacts(
            name="moge-2",
            purpose="depth in metres and the focal length, by MoGe-2 (arXiv 2507.02546)",
            licence="MIT",
            licence_url="https://huggingface.co/Ruicheng/moge-2-vitl",
            allows_commercial=True,
            repository="Ruicheng/moge-2-vitl",
            file="model.pt",
            megabytes=1305,
            estimates_focal_length=True,
        ),
        ModelFacts(
            name="depth-anything-3-metric",
            purpose="depth in metres for a known focal length, by Depth Anything 3 (arXiv 2511.10647)",
            licence="Apache-2.0",
            licence_url="https://huggingface.co/depth-anything/DA3METRIC-LARGE",
            allows_commercial=True,
            repository="depth-anything/DA3METRIC-LARGE",
            file="model.safetensors",
            megabytes=1340,
        ),
        ModelFacts(
            name="depth-pro",
            purpose="depth in metres and the focal length, by Apple's Depth Pro (arXiv 2410.02073)",
            licence="Apple Machine Learning Research Model licence",
            licence_url="https://huggingface.co/apple/DepthPro-hf",
            repository="apple/DepthPro-hf",
            file="model.safetensors",
            megabytes=1904,
            estimates_focal_length=True,
        ),
        ModelFacts(
            name="depth-anything-v2-metric",
            purpose="depth in metres of indoor scenes, by Depth Anything V2 (arXiv 2406.09414)",
            licence="CC-BY-NC-4.0",
            licence_url="https://github.com/DepthAnything/Depth-Anything-V2#license",
            repository="depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
            file="model.safetensors",
            megabytes=1341,
        ),
    )
}
"""Networks other than SHARP that estimate depth, by name; free ones first. `sharp_cog.estimators` runs them."""

FREE_ESTIMATORS = tuple(facts.name for facts in ESTIMATORS.values() if facts.allows_commercial)
"""Names of the estimators whose licence allows any use, in the order of preference."""


def require_licence(facts: ModelFacts, *, commercial: bool) -> None:
    """Check that a network may be used.

    Args:
        facts: The network.
        commercial: Whether the use is commercial.

    Raises:
        SettingError: The use is commercial, and the licence does not allow that.
    """
    if commercial and not facts.allows_commercial:
        raise SettingError(
            f"the use is commercial (--commercial or SHARP_COMMERCIAL), and the licence of {facts.name} "
            f"({facts.licence}) does not allow that: choose the model lift with a depth map or with "
            f"{' or '.join(FREE_ESTIMATORS)}"
        )
