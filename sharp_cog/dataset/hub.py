"""A repository on the Hugging Face hub as a store that many clients write to at once.

Every change is one commit whose parent is the newest commit that was looked at. If another client committed meanwhile,
the hub refuses the commit, and we look again.
"""

from __future__ import annotations

import email.utils
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from sharp_cog.dataset.store import MAX_TRIES, Change, Put
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.files.retry import RetryPolicy, TransientError
from sharp_cog.text import first_line, plain, read_count

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError)
"""Errors of a request, by the hub or on the way to it."""
_CREATE_TRIES = 5
"""Maximum tries of creating the repository; few, because the user who starts a run watches it."""
CLOCK_S = 600.0
"""Seconds after which the hub's clock is read again."""
RATE_LIMIT_S = 300.0
"""Wait at the rate limit if the hub does not name one."""
MAX_RATE_LIMIT_S = 7200.0
"""Longest wait that the hub may ask for."""
_PATHS_PER_REQUEST = 500
"""Maximum paths of one request for the hub's records of files."""


class HubError(SharpError):
    """The hub refuses a request, or cannot be reached."""

    code = "hub_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stat:
    """The hub's record of a file.

    Attributes:
        size: Number of bytes.
        hash: SHA-256 of a large file, or git's blob id of another one.
        is_lfs: Whether it is a large file.
    """

    size: int
    hash: str
    is_lfs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class HubView:
    """The repository at one commit; see `sharp_cog.dataset.store.View`."""

    repo: HubRepo
    sha: str

    @property
    def _revision(self) -> dict[str, Any]:
        return {"repo_type": self.repo.repo_type, "revision": self.sha}

    def now(self) -> float:
        """Return Unix time by the hub's clock."""
        return self.repo.now()

    def existing(self, paths: Collection[str]) -> set[str]:
        """Return those of the paths that exist."""
        found: set[str] = set()
        listed = sorted(paths)
        for start in range(0, len(listed), _PATHS_PER_REQUEST):
            part = listed[start : start + _PATHS_PER_REQUEST]
            infos = self.repo.api.get_paths_info(self.repo.repo_id, part, **self._revision)
            found |= {info.path for info in infos}
        return found

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; none if the folder does not exist."""
        try:
            # The pages of the answer are requested one by one: hence the list inside `try`.
            entries = list(self.repo.api.list_repo_tree(self.repo.repo_id, folder, **self._revision))
        except EntryNotFoundError:
            return set()
        return {entry.path.rpartition("/")[2] for entry in entries}

    def stat(self, path: str) -> Stat | None:
        """Return the hub's record of a file, or None if it does not exist."""
        infos = self.repo.api.get_paths_info(self.repo.repo_id, [path], **self._revision)
        if not infos or not isinstance(infos[0], RepoFile):
            return None
        info = infos[0]
        if info.lfs is not None:
            return Stat(size=info.size, hash=info.lfs.sha256, is_lfs=True)
        return Stat(size=info.size, hash=info.blob_id, is_lfs=False)

    def read(self, path: str, *, start: int = 0) -> bytes | None:
        """Return the content of a file from a byte on, or None if the file does not exist."""
        # The library's own download fetches whole files, and of an index of many megabytes only the end is needed.
        url = f"{self.repo.url}/resolve/{self.sha}/{path}"
        headers = build_hf_headers(token=self.repo.api.token)
        if start:
            headers["Range"] = f"bytes={start}-"
        answer = get_session().get(url, headers=headers, follow_redirects=True, timeout=60)
        if answer.status_code == 404:
            return None
        hf_raise_for_status(answer)
        content = bytes(answer.content)
        # A server may ignore the range and send the whole file, with status 200.
        return content[start:] if start and answer.status_code == 200 else content


class HubRepo:
    """A repository; see `sharp_cog.dataset.store.Store`."""

    def __init__(
        self,
        repo_id: str,
        repo_type: str,
        *,
        api: HfApi | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Create the client; nothing is requested yet.

        Args:
            repo_id: Owner and name.
            repo_type: `dataset` or `model`.
            api: Client of the hub; None takes endpoint and token from the environment.
            sleep: Waits for a number of seconds.
        """
        self.repo_id, self.repo_type = repo_id, repo_type
        disable_progress_bars()  # They would garble the live view of the run.
        self.api = api or HfApi()
        self._sleep = sleep
        # One change at a time: two of this client's own would only conflict with each other.
        self._lock = threading.Lock()
        self._hub_time, self._read_at = 0.0, -float("inf")
        self._additions: dict[Put, CommitOperationAdd] = {}

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"{self.api.endpoint}/{'' if self.repo_type == 'model' else f'{self.repo_type}s/'}{self.repo_id}"

    def create(self) -> None:
        """Create the repository unless it exists.

        Raises:
            HubError: The hub refuses, or cannot be reached.
            SettingError: The hub does not allow such a name.
        """
        try:
            self._retry(
                lambda: self.api.create_repo(self.repo_id, repo_type=self.repo_type, exist_ok=True),
                max_tries=_CREATE_TRIES,
            )
        except HFValidationError as error:
            raise SettingError(f"HF_REPO_ID is {self.repo_id!r}: {error}") from error

    def now(self) -> float:
        """Return Unix time by the hub's clock, which is read now and then and continued by a monotonic clock.

        Raises:
            HubError: The hub sends no time that can be read.
        """
        # Leases hold times that other clients have written, and a machine's clock may be wrong by hours.
        if time.monotonic() - self._read_at > CLOCK_S:
            # Any answer will do, even a refusal, since only its Date header is read.
            answer = get_session().head(self.api.endpoint, timeout=30)
            date = answer.headers.get("Date")
            if date is None:
                raise HubError(f"{self.api.endpoint} sends no Date header, which leases need: check HF_ENDPOINT")
            try:
                self._hub_time = email.utils.parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError) as error:
                raise HubError(f"{self.api.endpoint} sends an invalid Date header: {plain(date)}") from error
            self._read_at = time.monotonic()
        return self._hub_time + time.monotonic() - self._read_at

    def look(self) -> HubView:
        """Return the repository at its newest commit."""
        info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        assert info.sha is not None
        return HubView(repo=self, sha=info.sha)

    def upload(self, files: Iterable[Put]) -> None:
        """Upload the content of large files in advance, so that the commit that adds them is small.

        Raises:
            HubError: The hub refuses, or cannot be reached.
        """
        # The library skips operations that are marked as uploaded, so another attempt sends only missing files.
        additions = [self._addition(file) for file in files]

        def send() -> None:
            with _unwrap_errors():
                self.api.preupload_lfs_files(self.repo_id, additions, repo_type=self.repo_type, free_memory=False)

        self._retry(send, max_tries=MAX_TRIES)

    def change(self, decide: Callable[[HubView], tuple[Change, _T]]) -> _T:
        """Look, decide and commit, until no other client committed in between; see `Store.change`.

        Raises:
            HubError: Too many tries failed, or the hub refuses.
        """

        def attempt() -> _T:
            view = self.look()
            change, result = decide(view)
            if change.operations:
                self._commit(change, view)
            return result

        with self._lock:
            return self._retry(attempt, max_tries=MAX_TRIES)

    def _commit(self, change: Change, view: HubView) -> None:
        operations = [
            self._addition(operation) if isinstance(operation, Put) else CommitOperationDelete(operation.path)
            for operation in change.operations
        ]
        with _unwrap_errors():
            self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=change.message,
                repo_type=self.repo_type,
                # The compare-and-swap: the hub answers 412 if the branch has moved on from this commit.
                parent_commit=view.sha,
            )
        # A committed operation cannot be used again, and keeping it would add up over a run.
        for operation in change.operations:
            if isinstance(operation, Put):
                self._additions.pop(operation, None)

    def _addition(self, put: Put) -> CommitOperationAdd:
        """Return the library's operation, which remembers across tries that a large file has been uploaded."""
        # Small content is a part of the commit itself, so that nothing of it is worth remembering.
        if isinstance(put.content, bytes):
            return CommitOperationAdd(path_in_repo=put.path, path_or_fileobj=put.content)
        if put not in self._additions:
            self._additions[put] = CommitOperationAdd(path_in_repo=put.path, path_or_fileobj=put.content)
        return self._additions[put]

    def _retry(self, attempt: Callable[[], _T], *, max_tries: int) -> _T:
        """Repeat an attempt, which must do no harm when it is repeated, while another try may succeed.

        Raises:
            HubError: Too many tries failed, or the hub refuses.
        """

        def translated() -> _T:
            try:
                return attempt()
            except _FAILURES as error:
                raise _transient(error) from error

        # Short first waits, as most failures are commits of other clients. With `MAX_TRIES`, all waits together last
        # about ten minutes, so that a run outlives an outage of some minutes.
        policy = RetryPolicy(
            max_tries=max_tries, first_wait_s=0.3, factor=1.6, max_wait_s=30.0, max_retry_after_s=MAX_RATE_LIMIT_S
        )
        try:
            return policy.call(translated, sleep=self._sleep, on_retry=_log)
        except TransientError as error:
            raise HubError(
                f"the hub failed {error.num_tries} times for {self.repo_id}: {error}: try again later"
            ) from error.__cause__


def _transient(error: Exception) -> TransientError:
    """Return the error as one that another try may not meet.

    Raises:
        HubError: The hub refuses for good.
    """
    reason = f"{type(error).__name__}: {first_line(error)}"
    # Errors of the connection and of the file system have no response; both may pass.
    response = error.response if isinstance(error, HfHubHTTPError) else None
    # 412 refuses a commit whose parent is no longer the newest. A connection may break after the hub has made the
    # commit: the next look shows whether it has.
    if response is None or response.status_code in (408, 409, 412) or response.status_code >= 500:
        return TransientError(reason)
    if response.status_code == 429:
        return TransientError(reason, retry_after_s=_retry_after_s(response.headers.get("Retry-After")))
    raise HubError(
        f"the hub refuses ({response.status_code}): {first_line(error)}: check HF_REPO_ID, and that HF_TOKEN may write "
        "there"
    ) from error


def _log(error: TransientError, wait_s: float) -> None:
    # Clients that commit at once are routine; a rate limit is worth telling the user.
    level = logging.WARNING if error.retry_after_s else logging.INFO
    _LOG.log(level, "the hub: %s: next try in %.1f s", error, wait_s)


@contextmanager
def _unwrap_errors() -> Iterator[None]:
    """Raise the cause of a failed upload, which the library wraps in a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, _FAILURES):
            raise error.__cause__ from None
        raise


def _retry_after_s(header: str | None) -> float:
    """Return the seconds to wait at the rate limit, by the header Retry-After."""
    seconds = read_count((header or "").strip())
    return RATE_LIMIT_S if seconds is None else min(float(seconds), MAX_RATE_LIMIT_S)
