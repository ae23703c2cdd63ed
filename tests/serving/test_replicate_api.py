"""Replicate's own clients, and lines of curl, against the local server with Cog's real server behind it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput

from sharp_cog.serving.replicate_api import MAX_PREDICTIONS
from tests.serving.guarded_cog import IMAGE, GuardedCog, guarded_cog

KEY = "r8_a-key-of-the-operator"
JAVASCRIPT = Path(__file__).parents[1] / "data" / "replicate_js"
CONTENT = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCog]:
    with guarded_cog(tmp_path_factory.mktemp("cog") / "server", SHARP_API_KEY=KEY) as server:
        yield server


@pytest.fixture
def client(server: GuardedCog) -> Client:
    client = Client(api_token=KEY, base_url=server.url)
    client.poll_interval = 0.05
    return client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "beach.jpg"
    path.write_bytes(CONTENT)
    return path


def test_the_python_client_runs_the_model_on_an_uploaded_file(client: Client, photo: Path) -> None:
    with photo.open("rb") as file:
        output = client.run("you/sharp", input={"image": file, "times": 3})
    assert isinstance(output, FileOutput)
    assert output.read() == 3 * CONTENT


def test_the_python_client_runs_a_version_on_a_data_uri(client: Client, photo: Path) -> None:
    with photo.open("rb") as file:
        output = client.run("you/sharp:some-version", input={"image": file}, file_encoding_strategy="base64")
    assert isinstance(output, FileOutput)
    assert output.read() == CONTENT


def test_the_python_client_polls_a_prediction_to_its_end(client: Client) -> None:
    prediction = client.predictions.create(version="some-version", input={"image": IMAGE, "seconds": 0.3})
    states = [prediction.status]
    prediction.wait()
    assert [*states, prediction.status] == ["starting", "succeeded"]
    assert (prediction.version, prediction.input) == ("some-version", {"seconds": 0.3})
    assert str(prediction.output).startswith("data:application/octet-stream;base64,")
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] > 0.3
    # It can be read again, as at Replicate.
    assert client.predictions.get(prediction.id).output == prediction.output
    assert prediction.id in [each.id for each in client.predictions.list()]


def test_predictions_of_several_threads_wait_for_each_other(client: Client) -> None:
    predictions = [
        client.predictions.create(version="v", input={"image": IMAGE, "times": times, "seconds": 0.1})
        for times in (1, 2, 3, 4)
    ]
    for prediction in predictions:
        prediction.wait()
    assert [prediction.status for prediction in predictions] == ["succeeded"] * 4
    assert len({prediction.output for prediction in predictions}) == 4


def test_the_python_client_cancels_a_prediction(server: GuardedCog, client: Client) -> None:
    for delay in (0.0, 0.5):
        prediction = client.predictions.create(version="v", input={"image": IMAGE, "seconds": 60.0})
        time.sleep(delay)
        assert client.predictions.cancel(prediction.id).status == "canceled"
        server.wait_for("READY", 10)


def test_the_python_client_sees_why_a_prediction_failed(client: Client) -> None:
    with pytest.raises(ModelError, match=r"fetch_failed: the host '127\.0\.0\.1' is at a private address"):
        client.run("you/sharp", input={"image": "http://127.0.0.1:1/photo.jpg"})
    with pytest.raises(ModelError, match=r"input\.times"):
        client.run("you/sharp", input={"image": IMAGE, "times": "three"})


def test_without_the_token_the_python_client_is_refused(server: GuardedCog) -> None:
    stranger = Client(api_token="another", base_url=server.url)
    with pytest.raises(ReplicateError, match="the request has no valid key"):
        stranger.run("you/sharp", input={"image": IMAGE})


def test_finished_predictions_are_forgotten_in_the_end(server: GuardedCog, client: Client) -> None:
    inputs = {"image": IMAGE}
    created = [client.predictions.create(version="v", input=inputs, wait=5) for _ in range(MAX_PREDICTIONS + 2)]
    with pytest.raises(ReplicateError, match="no such prediction"):
        client.predictions.get(created[0].id)
    assert len([name for name in server.files() if name.endswith(".output")]) <= MAX_PREDICTIONS + 1


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    done = subprocess.run([program, "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lines_of_curl_for_cog_work(server: GuardedCog, tmp_path: Path) -> None:
    key, as_json = ("-H", f"Authorization: Bearer {KEY}"), ("-H", "Content-Type: application/json")
    (tmp_path / "request.json").write_text(json.dumps({"input": {"image": IMAGE}}), encoding="ascii")
    line = ("-d", f"@{tmp_path / 'request.json'}", f"{server.url}/predictions")
    assert json.loads(curl(*key, *as_json, *line))["output"].endswith(IMAGE.partition(",")[2])
    assert json.loads(curl(*key, *as_json, "-X", "POST", *line))["status"] == "succeeded"
    assert json.loads(curl(f"{server.url}/health-check"))["status"] == "READY"
    # Replicate's own lines.
    file = json.loads(curl(*key, "-F", f"content=@{tmp_path / 'request.json'}", f"{server.url}/v1/files"))
    body = json.dumps({"version": "v", "input": {"image": file["urls"]["get"]}})
    answer = json.loads(curl(*key, *as_json, "-H", "Prefer: wait", "-d", body, f"{server.url}/v1/predictions"))
    assert answer["status"] == "succeeded"
    assert json.loads(curl(*key, answer["urls"]["get"]))["output"] == answer["output"]


def test_an_uploaded_file_has_a_checksum_and_a_name_without_folders(server: GuardedCog) -> None:
    headers = {"X-API-Key": KEY}
    sent = {"content": ("../../evil name.jpg", b"hello", "image/jpeg")}
    answer = requests.post(f"{server.url}/v1/files", files=sent, headers=headers, timeout=20)
    assert answer.status_code == 201
    about = answer.json()
    assert (about["name"], about["size"], about["content_type"]) == ("evil_name.jpg", 5, "image/jpeg")
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256sum of `hello`
    assert about["checksums"]["sha256"] == sha256
    assert requests.get(about["urls"]["get"], headers=headers, timeout=20).json() == about
    body = {"input": {"image": about["urls"]["get"]}}
    assert requests.post(f"{server.url}/predictions", json=body, headers=headers, timeout=20).status_code == 200
    assert "evil_name.bin" in server.files()
    nothing = requests.post(f"{server.url}/v1/files", files={"other": b"x"}, headers=headers, timeout=20)
    assert (nothing.status_code, nothing.json()["code"]) == (422, "invalid_input")


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client for JavaScript, as its lock file pins it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("javascript") / "client"
    shutil.copytree(JAVASCRIPT, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the client: {done.stderr[-500:]}")
    return folder


@pytest.mark.browser
def test_the_javascript_client_runs_polls_cancels_and_sees_failures(
    server: GuardedCog, javascript: Path, photo: Path
) -> None:
    import base64

    command = ["node", "run.mjs", f"{server.url}/v1", KEY, str(photo)]
    done = subprocess.run(command, cwd=javascript, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert base64.b64decode(answers["output"]) == 2 * CONTENT
    assert base64.b64decode(answers["polled"]) == CONTENT
    assert answers["cancelled"]["status"] == "canceled"
    assert "fetch_failed: the host '127.0.0.1' is at a private address" in answers["failure"]
    server.wait_for("READY", 10)
