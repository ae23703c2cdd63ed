"""A predictor without a model, for tests of Cog's real server: it returns its input again and again."""

import tempfile
import time
from pathlib import Path as LocalPath

from cog import BaseRunner, Input, Path

from sharp_cog.config.services import ServiceSettings
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.serving.cog_worker import Watchdog


class Predictor(BaseRunner):  # type: ignore[misc]  # cog carries no types
    def setup(self) -> None:
        self.folder = ScratchFolder()
        tempfile.tempdir = str(self.folder.path)
        self.watchdog = Watchdog(ServiceSettings.from_environment().request_seconds)
        self.watchdog.start()

    def run(
        self,
        image: Path = Input(description="A file."),
        times: int = Input(default=1, description="How often the output repeats the file."),
        seconds: float = Input(default=0.0, description="Time to take."),
    ) -> Path:
        content = image.read_bytes()
        for path in self.folder.path.iterdir():  # As the real predictor does when it begins.
            path.unlink()
        self.watchdog.begin()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:  # A cancellation arrives between two steps of Python.
                time.sleep(0.01)
        finally:
            self.watchdog.end()
        output = self.folder.path / f"{LocalPath(image.name).stem[11:] or 'output'}.bin"
        output.write_bytes(content * times)
        return Path(output)
