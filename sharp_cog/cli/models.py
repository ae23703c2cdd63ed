"""`sharp-cog models`: list all networks with their size, their licence, and whether they are on this disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict

from sharp_cog.cli.settings import settings_from
from sharp_cog.config.models import ESTIMATORS, SPLAT_MODELS, ModelFacts
from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointMissingError
from sharp_cog.estimators import is_on_disk
from sharp_cog.runtime import checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    settings = settings_from(arguments)
    networks = (*SPLAT_MODELS.values(), *ESTIMATORS.values())
    states = {facts.name: _state(facts, settings) for facts in networks}
    if arguments.json:
        print(json.dumps([{**asdict(facts), "state": states[facts.name]} for facts in networks], indent=2))
        return 0
    print("Models that predict splats (--model):")
    _print(SPLAT_MODELS.values(), states)
    print("\nNetworks that estimate a depth map, for --depth-from:")
    _print(ESTIMATORS.values(), states)
    return 0


def _print(networks: Iterable[ModelFacts], states: dict[str, str]) -> None:
    for facts in networks:
        print(f"  {facts.name}: {facts.purpose}")
        if facts.licence:
            print(f"      {facts.terms}; {states[facts.name]}")
            print(f"      {facts.licence_url}")


def _state(facts: ModelFacts, settings: Settings) -> str:
    """Return where the weights of a network are."""
    if not facts.licence:
        return "nothing to download"
    if facts.repository:
        return "on this disk" if is_on_disk(facts) else "not downloaded"
    try:
        file = checkpoint.locate(settings)
    except CheckpointMissingError:  # The listing says so, in place of the error that a prediction gives.
        return f"missing: {settings.checkpoint}"
    return "not downloaded" if file is None else f"on this disk, {file}"
