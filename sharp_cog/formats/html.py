"""A web page that shows a splat offline: PlayCanvas' viewer with the splat inside, as SOG.

The viewer is the npm package `@playcanvas/supersplat-viewer`; `scripts/viewer` installs the supported version.
"""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sharp_cog.errors import NotInstalledError
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame
from sharp_cog.formats.sog import write_sog
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.transform import FOCUS_SHARE, NEAR_SHARE, depths_ahead

VIEWER_DIR = Path(__file__).parents[2] / "viewer" / "node_modules" / "@playcanvas" / "supersplat-viewer" / "public"
"""Folder into which `scripts/viewer` installs the viewer."""

PAGE_TITLE = "A photograph in 3D"
SWAY_RANGE = 0.03
"""Movement of the nearest things in the image while the camera sways, as a share of the image's diagonal."""
ORBIT_RANGE = 0.12
"""The same for a camera moved by hand; beyond it, holes appear beside things."""
FORWARD_SHARE = 0.5
"""Maximum distance that a camera moves forward by hand, as a share of the nearest depth."""

_SWAY_S = 12
"""Duration of one sway in seconds."""
_SWAY_KEYS = 24
"""Number of keyframes of one sway."""
_EFFECTS = {
    "sharpness": {"enabled": False, "amount": 0},
    "bloom": {"enabled": False, "intensity": 0.1, "blurLevel": 2},
    "grading": {"enabled": False, "brightness": 1, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
    "vignette": {"enabled": False, "intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
    "fringing": {"enabled": False, "intensity": 0.5},
}
"""Effects of the viewer, all off; it requires settings for each of them."""

# Parts of the viewer's page that occur once each and are replaced.
_TITLE = "<title>SuperSplat Viewer</title>"
_STYLESHEET = '<link rel="stylesheet" href="./index.css" />'
_BOOTSTRAP = '<script type="application/json" id="sse-bootstrap">\n            null\n        </script>'
_IMPORT = "import { createViewer } from './index.js';"

# A pose out of bounds is moved towards the photograph's own, position and rotation in the same proportion, so that an
# orbit stops at its edge. The viewer's internal pose is reset to the photograph as soon as the pointer is released;
# otherwise the way back from far outside would show no movement. Flying has no bounds: users who choose it want to see
# the edges.
_KEEP_TO_PHOTOGRAPH = """
            const { tanX, tanY, side, ahead } = %s;
            const createViewer = async (options) => {
                try {
                    // The picture first: the list of keys opens when it is asked for.
                    if (localStorage.getItem('controlsPanelOpen') === null) {
                        localStorage.setItem('controlsPanelOpen', 'false');
                    }
                } catch {
                    // A page may be denied storage; then the list is open.
                }
                const viewer = await makeViewer(options);
                const { app, events, state } = viewer;
                const camera = app.root.findByName('camera');
                let isHeld = false;
                let isReturning = false;
                let quietFrom = 0;
                addEventListener('pointerdown', () => { isHeld = true; isReturning = false; }, true);
                addEventListener('pointerup', () => { isHeld = false; }, true);
                addEventListener('pointercancel', () => { isHeld = false; }, true);
                addEventListener('wheel', () => { quietFrom = performance.now() + 300; isReturning = false; }, true);
                // Where large Gaussians reach around the camera, the viewer would fly at the first touch.
                events.on('cameraMode:changed', (mode, before) => {
                    if (mode === 'fly' && before === 'anim') queueMicrotask(() => { state.cameraMode = 'orbit'; });
                });
                app.on('update', () => {
                    if (state.xrMode) return;
                    // The whole photograph is in the window, whatever the window's shape.
                    const { width, height } = app.graphicsDevice;
                    camera.camera.horizontalFov = false;
                    camera.camera.fov = 2 * Math.atan(Math.max(tanY, tanX * height / width)) * 180 / Math.PI;
                    if (state.cameraMode === 'fly') return;
                    const at = camera.getPosition().clone();
                    const forward = camera.forward;
                    let yaw = Math.atan2(forward.x, forward.z);
                    let pitch = Math.asin(Math.max(-1, Math.min(1, forward.y)));
                    const beyond = Math.max(
                        Math.hypot(at.x / side, at.y / side, at.z / (at.z > 0 ? ahead : side)),
                        Math.abs(yaw) / Math.atan(tanX),
                        Math.abs(pitch) / Math.atan(tanY)
                    );
                    if (beyond <= 1) {
                        isReturning = false;
                        return;
                    }
                    at.mulScalar(1 / beyond);
                    yaw /= beyond;
                    pitch /= beyond;
                    camera.setPosition(at);
                    const flat = Math.cos(pitch);
                    camera.lookAt(at.x + Math.sin(yaw) * flat, at.y + Math.sin(pitch), at.z + Math.cos(yaw) * flat);
                    if (state.loaded && !isHeld && !isReturning && performance.now() > quietFrom) {
                        isReturning = true;
                        viewer.resetCamera();
                    }
                });
                return viewer;
            };
"""


def write_html(
    file: BinaryIO,
    gaussians: Gaussians,
    camera: Camera,
    frame: Frame = PHOTOGRAPH_FRAME,
    *,
    viewer_dir: Path | None = None,
) -> None:
    """Write one self-contained page, which requests nothing from any host.

    The page starts at the photograph's camera, which sways a little. Users can orbit and zoom as far as a splat from
    one image looks right.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device, OpenCV axes.
        camera: Camera of the photograph.
        frame: Must be `PHOTOGRAPH_FRAME`.
        viewer_dir: The folder `public` of the npm package; None means the one that `scripts/viewer` installs.

    Raises:
        NotInstalledError: The viewer is not installed, or has another version.
        PredictionError: A value is not finite.
    """
    assert frame == PHOTOGRAPH_FRAME
    viewer_dir = viewer_dir or VIEWER_DIR
    page, style, program = (_read(viewer_dir / name) for name in ("index.html", "index.css", "index.js"))
    sog = io.BytesIO()
    write_sog(sog, gaussians, camera)
    near_m, focus_m = depths_ahead(gaussians, NEAR_SHARE, FOCUS_SHARE)
    bootstrap = {
        "settings": _settings(camera, near_m=near_m, focus_m=focus_m),
        "contentUrl": "data:application/octet-stream;base64," + _base64(sog.getbuffer()),
        # A data URL has no suffix, so the viewer selects its reader by this name.
        "contentFilename": "scene.sog",
    }
    # The last line names the source map, which a browser's developer tools would request.
    program = program.rpartition("\n//# sourceMappingURL=")[0] or program
    replacements = {
        _TITLE: f"<title>{PAGE_TITLE}</title>",
        _STYLESHEET: f"<style>\n{style}</style>",
        # Numbers, base64 and constants cannot end the script element, so nothing is escaped.
        _BOOTSTRAP: f'<script type="application/json" id="sse-bootstrap">{json.dumps(bootstrap)}</script>',
        # A page that is opened from a disk may not import a file beside it, but it may import a data URL.
        _IMPORT: "import { createViewer as makeViewer } from 'data:text/javascript;base64,"
        f"{_base64(program.encode())}';{_KEEP_TO_PHOTOGRAPH % json.dumps(_bounds(camera, near_m))}",
    }
    # The page has the parts in this order, so each search starts behind the last one and never reads inserted text.
    for part, text in replacements.items():
        before, found, after = page.partition(part)
        if not found or part in after:
            raise NotInstalledError(
                f"{viewer_dir} holds another version of the viewer than sharp_cog supports: run scripts/viewer"
            )
        file.write(before.encode())
        file.write(text.encode())
        page = after
    file.write(page.encode())


def require_viewer(viewer_dir: Path | None = None) -> None:
    """Check that the viewer is installed.

    Raises:
        NotInstalledError: The viewer is not installed.
    """
    _read((viewer_dir or VIEWER_DIR) / "index.html")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise NotInstalledError(
            f"the viewer for pages is not installed ({path}: {reason}): run scripts/viewer, or set SHARP_VIEWER_DIR "
            "to the folder 'public' of the npm package @playcanvas/supersplat-viewer"
        ) from error


def _base64(content: bytes | memoryview) -> str:
    return base64.b64encode(content).decode("ascii")


def _sideways_m(camera: Camera, near_m: float, camera_range: float) -> float:
    """Return how far a camera moves sideways for the nearest things to move by `camera_range` of the diagonal."""
    # At depth z, a step s moves a thing by focal_length_px * s / z pixels; this is solved for s.
    return camera_range * near_m * math.hypot(camera.width, camera.height) / camera.focal_length_px


def _bounds(camera: Camera, near_m: float) -> dict[str, float]:
    """Return the tangents of half the fields of view, and how far users may move the camera, in metres."""
    return {
        "tanX": camera.width / 2 / camera.focal_length_px,
        "tanY": camera.height / 2 / camera.focal_length_px,
        "side": _sideways_m(camera, near_m, ORBIT_RANGE),
        "ahead": FORWARD_SHARE * near_m,
    }


def _settings(camera: Camera, *, near_m: float, focus_m: float) -> dict[str, Any]:
    """Return the viewer's settings.

    The viewer rotates splats by 180 degrees about z: the photograph's camera still looks along +z, and y is up.
    """
    target, fov = [0.0, 0.0, focus_m], camera.vertical_fov_degrees
    turn = 2 * np.pi * np.arange(_SWAY_KEYS) / _SWAY_KEYS
    sway_m = _sideways_m(camera, near_m, SWAY_RANGE)
    # A horizontal figure eight, which starts and ends at the photograph's camera.
    positions = np.stack([np.sin(turn), 0.3 * np.sin(2 * turn), np.zeros(_SWAY_KEYS)], axis=-1) * sway_m
    sway = {
        "name": "sway",
        "duration": _SWAY_S,
        # At one frame per second, the times of keyframes are seconds.
        "frameRate": 1,
        "loopMode": "repeat",
        "interpolation": "spline",
        "smoothness": 1,
        "keyframes": {
            "times": [index * _SWAY_S / _SWAY_KEYS for index in range(_SWAY_KEYS)],
            "values": {
                "position": positions.ravel().tolist(),
                # Python repeats the lists: x, y and z once for each keyframe.
                "target": target * _SWAY_KEYS,
                "fov": [fov] * _SWAY_KEYS,
            },
        },
    }
    return {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": [0, 0, 0]},
        "postEffectSettings": _EFFECTS,
        "animTracks": [sway],
        # With the viewer's own choice of camera, the page shows black or drifts away.
        "cameras": [{"initial": {"position": [0, 0, 0], "target": target, "fov": fov}}],
        "annotations": [],
        "startMode": "animTrack",
    }
