"""A repository on the Hugging Face hub that many clients write to at once, as a store.

Every change is one commit with the newest one that was looked at as its parent: where another client was faster, the
hub refuses it, and we look again.
"""

from __future__ import annotations

import email.utils
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from sharp_cog.dataset.store import MAX_TRIES, Change, Put
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.text import first_line, plain, read_count

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError)
"""What the hub, or the way to it, can do to a request."""
CLOCK_SECONDS = 600.0
"""How long what we know of the hub's clock holds."""
RATE_LIMIT_SECONDS = 300.0
"""How long to wait at the rate limit where the hub does not say."""
MAX_WAIT_SECONDS = 7200.0
"""The longest wait that it may ask for."""


class HubError(SharpError):
    """The hub does not do what it is asked for."""

    code = "hub_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stat:
    """What the hub knows of a file.

    Attributes:
        size: In bytes.
        hash: SHA-256 of a large file; what git names the blob of another.
        is_lfs: Whether it is a large one.
    """

    size: int
    hash: str
    is_lfs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class HubView:
    """The repository at one commit."""

    repo: HubRepo
    sha: str

    def now(self) -> float:
        """As `View.now`, by the hub's clock."""
        return self.repo.now()

    def existing(self, paths: Collection[str]) -> set[str]:
        """As `View.existing`."""
        found: set[str] = set()
        listed = sorted(paths)
        for start in range(0, len(listed), 500):
            part = listed[start : start + 500]
            infos = self.repo.api.get_paths_info(
                self.repo.repo_id, part, repo_type=self.repo.repo_type, revision=self.sha
            )
            found |= {info.path for info in infos}
        return found

    def names(self, folder: str) -> set[str]:
        """As `View.names`."""
        try:
            entries = list(
                self.repo.api.list_repo_tree(
                    self.repo.repo_id, folder, repo_type=self.repo.repo_type, revision=self.sha
                )
            )
        except EntryNotFoundError:
            return set()
        return {entry.path.rpartition("/")[2] for entry in entries}

    def stat(self, path: str) -> Stat | None:
        """What the hub knows of a file; None where it is not."""
        infos = self.repo.api.get_paths_info(
            self.repo.repo_id, [path], repo_type=self.repo.repo_type, revision=self.sha
        )
        if not infos or not isinstance(infos[0], RepoFile):
            return None
        info = infos[0]
        if info.lfs is not None:
            return Stat(size=info.size, hash=info.lfs.sha256, is_lfs=True)
        return Stat(size=info.size, hash=info.blob_id, is_lfs=False)

    def read(self, path: str, *, start: int = 0) -> bytes | None:
        """As `View.read`; from a byte on, if asked for."""
        url = f"{self.repo.url}/resolve/{self.sha}/{path}"
        headers = {**self.repo.headers(), **({"Range": f"bytes={start}-"} if start else {})}
        answer = get_session().get(url, headers=headers, follow_redirects=True, timeout=60)
        if answer.status_code == 404:
            return None
        hf_raise_for_status(answer)
        content = bytes(answer.content)
        return content[start:] if start and answer.status_code == 200 else content


class HubRepo:
    """A repository, and how it is changed.

    Attributes:
        num_commits: How many this client has made.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str,
        *,
        api: HfApi | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.repo_id, self.repo_type = repo_id, repo_type
        disable_progress_bars()  # They would break the run's own view.
        self.api = api or HfApi()
        self.num_commits = 0
        self._sleep = sleep
        # One change of this client's at a time: its own would only come between each other.
        self._lock = threading.RLock()
        self._hub_time, self._read_at = 0.0, -float("inf")
        self._additions: dict[Put, CommitOperationAdd] = {}

    @property
    def url(self) -> str:
        """The repository's address."""
        return f"{self.api.endpoint}/{'' if self.repo_type == 'model' else f'{self.repo_type}s/'}{self.repo_id}"

    def create(self) -> None:
        """Makes the repository where it is not there.

        Raises:
            HubError: The hub refuses, or cannot be reached.
            SettingError: No repository can have such a name.
        """
        try:
            # Few tries: whoever starts a run is there to see it fail.
            self._call(lambda: self.api.create_repo(self.repo_id, repo_type=self.repo_type, exist_ok=True), tries=5)
        except HFValidationError as error:
            raise SettingError(f"HF_REPO_ID is {self.repo_id!r}: {error}") from error

    def headers(self) -> dict[str, str]:
        """Of a request of our own."""
        return dict(build_hf_headers(token=self.api.token))

    def now(self) -> float:
        """Unix time by the hub's clock; in between, time goes on by a clock that nobody sets."""
        if time.monotonic() - self._read_at > CLOCK_SECONDS:
            answer = get_session().head(self.api.endpoint, timeout=30)
            date = answer.headers.get("Date")
            if date is None:
                raise HubError(f"{self.api.endpoint} does not tell the time: locks would be judged by this clock alone")
            try:
                self._hub_time = email.utils.parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError) as error:
                raise HubError(f"{self.api.endpoint} tells a time that is none: {plain(date)}") from error
            self._read_at = time.monotonic()
        return self._hub_time + time.monotonic() - self._read_at

    def look(self) -> HubView:
        """The repository as it is now."""
        info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        assert info.sha is not None
        return HubView(repo=self, sha=info.sha)

    def upload(self, files: Iterable[Put]) -> None:
        """Sends the content of large files ahead, so that the commit that is to hold them is a small one.

        Raises:
            HubError: The hub refuses, or cannot be reached.
        """
        additions = [self._addition(file) for file in files]

        def send() -> None:
            with _unwrapped():
                self.api.preupload_lfs_files(
                    self.repo_id,
                    [addition for addition in additions if not addition._is_uploaded],
                    repo_type=self.repo_type,
                    free_memory=False,
                )

        self._call(send, tries=MAX_TRIES)

    def change(self, decide: Callable[[HubView], tuple[Change, _T]]) -> _T:
        """As `Store.change`.

        Raises:
            HubError: It did not work out after many tries, or the hub refuses for another reason.
        """
        with self._lock:
            failure: Exception | None = None
            for number in range(MAX_TRIES):
                self._wait(number)
                try:
                    view = self.look()
                    wanted, result = decide(view)
                    if wanted.operations:
                        self._commit(wanted, view)
                except _FAILURES as error:
                    failure = error
                    self._judge(error)
                else:
                    return result
            raise HubError(
                f"{self.repo_id} could not be changed after {MAX_TRIES} tries: {first_line(failure)}"
            ) from failure

    def _commit(self, change: Change, view: HubView) -> None:
        puts = [operation for operation in change.operations if isinstance(operation, Put)]
        operations = [
            self._addition(operation) if isinstance(operation, Put) else CommitOperationDelete(operation.path)
            for operation in change.operations
        ]
        with _unwrapped():
            self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=change.message,
                repo_type=self.repo_type,
                parent_commit=view.sha,
            )
        self.num_commits += 1
        for put in puts:
            self._additions.pop(put, None)

    def _addition(self, put: Put) -> CommitOperationAdd:
        """The library's operation, which remembers that a large file has been sent, however often a commit is tried."""
        if isinstance(put.content, bytes):
            return CommitOperationAdd(path_in_repo=put.path, path_or_fileobj=put.content)
        if put not in self._additions:
            self._additions[put] = CommitOperationAdd(path_in_repo=put.path, path_or_fileobj=put.content)
        return self._additions[put]

    def _call(self, work: Callable[[], _T], *, tries: int) -> _T:
        """Something that does no harm when it is done twice, again where the hub or the way to it fails."""
        failure: Exception | None = None
        for number in range(tries):
            self._wait(number)
            try:
                return work()
            except _FAILURES as error:
                failure = error
                self._judge(error)
        reason = f"{type(failure).__name__}: {first_line(failure)}"
        raise HubError(f"the hub cannot be reached: {reason}: try again later") from failure

    def _wait(self, num_failures: int) -> None:
        if num_failures:
            # Those who met would meet again if they all waited the same time.
            self._sleep(min(30.0, 0.2 * 1.6**num_failures) * random.uniform(0.5, 1.5))  # noqa: S311

    def _judge(self, error: Exception) -> None:
        """Waits where the hub says so; raises what another try would not mend.

        Raises:
            HubError: The hub refuses for good.
        """
        response = error.response if isinstance(error, HfHubHTTPError) else None
        if response is None:  # The way to the hub: whether a commit was done, the next look tells.
            _LOG.warning("the hub: %s: %s", type(error).__name__, first_line(error))
            return
        status = response.status_code
        if status in (408, 409, 412) or status >= 500:
            _LOG.info("the hub: %s: %s", status, first_line(error))
            return
        if status != 429:
            raise HubError(
                f"the hub refuses ({status}): {first_line(error)}: check HF_REPO_ID, and that HF_TOKEN may write there"
            ) from error
        wait_s = _seconds(response.headers.get("Retry-After"))
        _LOG.warning("the hub's rate limit is reached: going on in %.0f s", wait_s)
        while wait_s > 0:
            self._sleep(min(5.0, wait_s))
            wait_s -= 5.0


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raises what made an upload fail: the library puts a RuntimeError around it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, _FAILURES):
            raise error.__cause__ from None
        raise


def _seconds(retry_after: str | None) -> float:
    """The time to wait that a header tells."""
    seconds = read_count((retry_after or "").strip())
    return RATE_LIMIT_SECONDS if seconds is None else min(float(seconds), MAX_WAIT_SECONDS)
