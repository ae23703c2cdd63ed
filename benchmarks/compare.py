"""Comparison of this package, in each precision of the device, with plain torch and with Apple's own package.

    scripts/benchmark --compare
    scripts/benchmark --compare --device cuda --repeat 10 --json compare.json
    scripts/benchmark --compare --checkpoint sharp_2572gikvuh.pt --image photo.jpg

All rows run in one process, on one image, one after the other. Without a checkpoint, the weights are synthetic, of the
released sizes: the splats are noise, but time, memory and digits are meaningful. Rows:

    float32, float16, bfloat16   this package, from the bytes of a JPEG to a .ply on disk
    plain float32                the network without folding, with torch's own layers, the same as in Apple's code;
                                 covariances by a float64 SVD on the CPU, the same as in Apple's command line
    plain, SVD on the device     the same with a float32 SVD on the device, the same as in public deployments
    apple                        Apple's package from end to end, the same as its command line, if installed

The floor is 21.5 TFLOP at the rate at which this device multiplies large matrices in that precision, measured here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.stages import MeasuredPipeline, device_name, peak_rss, reset_peak_rss, synthetic_image
from benchmarks.unproject import covariance_svd
from sharp_cog import PredictOptions, Settings
from sharp_cog.errors import SettingError
from sharp_cog.formats.ply import vertex_block
from sharp_cog.geometry.gaussians import Gaussians, NDCGaussians
from sharp_cog.imaging import images
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.device import find_device, synchronize
from sharp_cog.runtime.precision import DTYPES, choose, exact_sums
from sharp_cog.runtime.preprocess import preprocess
from tests.data.parity import synthetic

TERA_FLOP = 21.5
"""Operations of a prediction, in 10^12."""
STAGES = ("decode", "preprocess", "network", "unproject", "encode", "write")
_COLD_START = """
import time
start = time.time()
import pathlib
from sharp_cog import Settings, SharpPipeline
settings = Settings(
    checkpoint=pathlib.Path({path!r}), checkpoint_sha256=None, device={device!r}, precision={precision!r}
)
SharpPipeline.load(settings).warm_up()
print(time.time() - start)
"""


def synthetic_checkpoint(folder: Path) -> Path:
    """Write a checkpoint with the released names and shapes and synthetic weights, 2.6 GB."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Sharp(SharpConfig.released()).state_dict().items()}
    path = folder / "synthetic.pt"
    torch.save({name: torch.from_numpy(synthetic.parameter(name, shape)) for name, shape in shapes.items()}, path)
    return path


def matmul_tera_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the highest rate of products of large matrices on the device, in TFLOP a second."""
    size = 8192 if device.type == "cuda" else 2048
    # As 1x1 convolutions, because torch's float32 matrix product is slow on some CPUs.
    a = torch.randn(1, size, size, 1, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    b = torch.randn(size, size, 1, 1, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), exact_sums(device):
        seconds = [timed(lambda: torch.nn.functional.conv2d(a, b), device)[0] for _ in range(8)]
    return 2 * size**3 / min(seconds) / 1e12


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds of a call, with the device synchronized before and after, and its result."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


class Run:
    """A row of the table: the times of stages over several runs, and the peak memory."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.seconds: dict[str, list[float]] = {}
        self.cold_start_s = self.floor_s = math.nan
        self.peak_bytes = 0
        self.gaussians: Gaussians | None = None

    def measure(self, once: Callable[[], dict[str, float]], *, repeat: int) -> None:
        """Run once without counting, then `repeat` times."""
        reset_peak_rss()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        once()
        for _ in range(repeat):
            for stage, stage_s in once().items():
                self.seconds.setdefault(stage, []).append(stage_s)
        self.peak_bytes = torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else peak_rss()

    def report(self) -> dict[str, Any]:
        medians = {stage: statistics.median(values) for stage, values in self.seconds.items()}
        return {
            "name": self.name,
            "seconds": medians,
            "all_seconds": self.seconds,
            "total_s": sum(medians.values()),
            "peak_bytes": self.peak_bytes,
            "cold_start_s": self.cold_start_s,
            "floor_s": self.floor_s,
        }


def ours(path: Path, image: bytes, device: torch.device, precision: str, folder: Path, repeat: int) -> Run:
    """Measure this package, from bytes to a file."""
    run = Run(precision, device)
    settings = Settings(
        checkpoint=path, checkpoint_sha256=None, device=str(device), precision=precision, keep_encoding=False
    )
    pipeline = MeasuredPipeline.load(settings)

    def once() -> dict[str, float]:
        prediction = pipeline(image, PredictOptions())
        run.gaussians = prediction.gaussians
        encode_s, _ = timed(lambda: vertex_block(prediction.gaussians), device)
        write_s, _ = timed(lambda: prediction.write(folder / "ours.ply"), device)
        # Writing computes the rows once more.
        return {**prediction.timings, "encode": encode_s, "write": max(0.0, write_s - encode_s)}

    run.measure(once, repeat=repeat)
    run.floor_s = TERA_FLOP / matmul_tera_flops(device, DTYPES[precision])
    program = _COLD_START.format(path=str(path), device=str(device), precision=precision)
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    run.cold_start_s = float(answer.stdout.strip().splitlines()[-1])
    return run


def plain(path: Path, image: bytes, device: torch.device, repeat: int) -> list[Run]:
    """Measure the unfolded network with torch's own layers, and the SVD of covariances on the CPU and on the device."""
    runs = [Run("plain float32", device), Run("plain, SVD on the device", device)]
    state = checkpoint.load_state(path)
    with torch.device("meta"):
        model = Sharp(SharpConfig.matching({name: tuple(tensor.shape) for name, tensor in state.items()}))
    checkpoint.fill(model, state, ignore=UNUSED_PARAMETERS)
    model = model.to(device).eval().requires_grad_(False)
    on_device: list[float] = []

    @torch.inference_mode()
    def once() -> dict[str, float]:
        seconds = {}
        seconds["decode"], source = timed(lambda: images.decode(image, PredictOptions(), max_pixels=10**9), device)
        size = model.config.image_size
        seconds["preprocess"], given = timed(lambda: preprocess(source, None, size=size, device=device), device)
        with exact_sums(device):
            seconds["network"], ndc = timed(lambda: model(given.image, given.disparity_factor), device)
        camera = source.camera
        stretch = (camera.width / (2 * camera.focal_length_px), camera.height / (2 * camera.focal_length_px), 1.0)
        on_device.append(timed(lambda: by_covariances(ndc, stretch, svd_on_device=True), device)[0])
        seconds["unproject"], runs[0].gaussians = timed(
            lambda: by_covariances(ndc, stretch, svd_on_device=False), device
        )
        return seconds

    runs[0].measure(once, repeat=repeat)
    runs[1].seconds = {**runs[0].seconds, "unproject": on_device[1:]}
    runs[1].peak_bytes = runs[0].peak_bytes
    floor_s = TERA_FLOP / matmul_tera_flops(device, torch.float32)
    for run in runs:
        run.floor_s = floor_s
    return runs


def by_covariances(ndc: NDCGaussians, stretch: tuple[float, float, float], *, svd_on_device: bool) -> Gaussians:
    """Unproject by an SVD of covariances: in float64 on the CPU, or in float32 on the device."""
    scales = covariance_svd(ndc.quaternions_wxyz[0], ndc.scales[0], stretch, stays_on_device=svd_on_device)
    # The quaternions are not computed: it would take milliseconds, and the comparison does not need them.
    return Gaussians(
        means=ndc.means[0] * ndc.means.new_tensor(stretch),
        scales=scales.to(ndc.scales),
        quaternions_wxyz=ndc.quaternions_wxyz[0],
        colors_linear=ndc.colors_linear[0],
        opacities=ndc.opacities[0],
    )


def apples(path: Path, image: bytes, device: torch.device, folder: Path, repeat: int) -> Run:
    """Measure Apple's package, used in the same way as by its command line.

    Raises:
        ImportError: The package is not installed.
    """
    from sharp.cli.predict import predict_image
    from sharp.models import PredictorParams, create_predictor
    from sharp.utils import io
    from sharp.utils.gaussians import save_ply

    run = Run("apple", device)
    predictor = create_predictor(PredictorParams())
    predictor.load_state_dict(torch.load(path, weights_only=True))
    predictor.eval().to(device)
    photo = folder / "photo.jpg"
    photo.write_bytes(image)

    def once() -> dict[str, float]:
        seconds = {}
        seconds["decode"], (pixels, _, focal_length_px) = timed(lambda: io.load_rgb(photo), device)
        # This includes preprocessing and unprojection.
        seconds["network"], gaussians = timed(lambda: predict_image(predictor, pixels, focal_length_px, device), device)
        size = pixels.shape[:2]
        seconds["write"], _ = timed(lambda: save_ply(gaussians, focal_length_px, size, folder / "apple.ply"), device)
        return seconds

    run.measure(once, repeat=repeat)
    return run


def digits(run: Run, exact: Run) -> dict[str, float]:
    """Compare the splats of two rows: PSNR of sRGB colours, and shares of means and scales within 1 %."""
    assert run.gaussians is not None
    assert exact.gaussians is not None
    one, other = run.gaussians, exact.gaussians
    error = linear_to_srgb(one.colors_linear.clone()) - linear_to_srgb(other.colors_linear.clone())
    means = (one.means - other.means).norm(dim=-1) <= 0.01 * other.means.norm(dim=-1)
    scales = (one.scales / other.scales.clamp(min=1e-30) - 1).abs().amax(-1) <= 0.01
    mean_square = error.square().mean().item()
    return {
        "colours_db": -10 * math.log10(mean_square) if mean_square else math.inf,
        "means_within_1_percent": means.double().mean().item(),
        "scales_within_1_percent": scales.double().mean().item(),
    }


def precisions(device: torch.device) -> list[str]:
    """Return the precisions that the device supports."""
    found = []
    for name in DTYPES:
        try:
            choose(name, device)
        except SettingError:
            continue
        found.append(name)
    return found


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    lines = [
        f"{report['device_name']} ({report['device']}), torch {report['torch']}, {report['num_threads']} threads, "
        f"{report['date']}, {report['weights']} weights, medians of {report['repeat']}; seconds",
        "",
        "| | " + " | ".join(STAGES) + " | total | network to floor | peak GB | cold start |",
        "| --- |" + " --- |" * (len(STAGES) + 4),
    ]
    for row in report["rows"]:
        seconds = row["seconds"]
        cells = [f"{seconds[stage]:.3f}" if stage in seconds else "-" for stage in STAGES]
        floor = seconds["network"] / row["floor_s"] if row["floor_s"] == row["floor_s"] else math.nan
        cells += [
            f"{row['total_s']:.2f}",
            f"{floor:.1f} x",
            f"{row['peak_bytes'] / 1e9:.1f}",
            f"{row['cold_start_s']:.1f}",
        ]
        lines.append(
            f"| {row['name']} | " + " | ".join("-" if cell.startswith("nan") else cell for cell in cells) + " |"
        )
    lines += [
        "",
        "| against plain float32 | colours | means within 1 % | scales within 1 % |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in report["digits"].items():
        lines.append(
            f"| {name} | {found['colours_db']:.1f} dB | {found['means_within_1_percent']:.2%} | "
            f"{found['scales_within_1_percent']:.2%} |"
        )
    return "\n".join([*lines, *report["notes"]])


def main() -> int:
    """Measure, print tables, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="Apple's checkpoint (default: synthetic weights)"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image (default: a synthetic one of 12 MP)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="runs that count (default: 5)")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="default: the fastest device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args()
    device = find_device(args.device)
    image = synthetic_image() if args.image is None else args.image.read_bytes()
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = args.checkpoint or synthetic_checkpoint(folder)
        rows = []
        for precision in precisions(device):
            rows.append(ours(path, image, device, precision, folder, args.repeat))
            print(f"{precision}: done", file=sys.stderr)
        exact, other = plain(path, image, device, args.repeat)
        rows += [exact, other]
        try:
            rows.append(apples(path, image, device, folder, args.repeat))
        except ImportError as error:
            notes = ["", f"Apple's package is not installed ({error}): not measured."]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": str(device),
        "device_name": device_name(device),
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "weights": "Apple's" if args.checkpoint else "synthetic",
        "repeat": args.repeat,
        "rows": [row.report() for row in rows],
        "digits": {row.name: digits(row, exact) for row in rows if row.name in DTYPES},
        "notes": notes,
    }
    print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
