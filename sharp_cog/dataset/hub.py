"""A repository on the Hugging Face hub that many clients write to at once.

Every change is a compare-and-swap: look at the newest commit, decide by what it holds, commit with it as the parent.
If somebody was faster, the hub refuses, and we look again. A decision must come out the same when its own commit has
been done already, so that an answer that was lost on the way does no harm.
"""

from __future__ import annotations

import email.utils
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers

from sharp_cog.errors import SharpError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

Operation = CommitOperationAdd | CommitOperationDelete

MAX_TRIES = 30
CLOCK_SECONDS = 600.0
"""How long what we know of the hub's clock holds."""


class HubError(SharpError):
    """The hub does not do what it is asked for."""

    code = "hub_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The repository at one commit."""

    repo: HubRepo
    sha: str

    def existing(self, paths: Collection[str]) -> set[str]:
        """Which of these files there are."""
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
        """The names of the files in a folder; none where there is no folder."""
        try:
            entries = list(
                self.repo.api.list_repo_tree(
                    self.repo.repo_id, folder, repo_type=self.repo.repo_type, revision=self.sha
                )
            )
        except EntryNotFoundError:
            return set()
        return {entry.path.rpartition("/")[2] for entry in entries}

    def read(self, path: str) -> bytes | None:
        """A file's content; None where it is not."""
        kind = "" if self.repo.repo_type == "model" else f"{self.repo.repo_type}s/"
        url = f"{self.repo.api.endpoint}/{kind}{self.repo.repo_id}/resolve/{self.sha}/{path}"
        answer = get_session().get(url, headers=self.repo.headers(), follow_redirects=True, timeout=60)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return bytes(answer.content)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a decision wants committed.

    Attributes:
        operations: None of them, and nothing is committed.
        message: Of the commit.
    """

    operations: Sequence[Operation]
    message: str


class HubRepo:
    """A repository, and how it is changed.

    Attributes:
        num_commits: How many this client has made.
        lock: One change of this client's at a time: its own would only come between each other.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str,
        *,
        api: HfApi | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.repo_id, self.repo_type = repo_id, repo_type
        self.api = api or HfApi()
        self.num_commits = 0
        self.lock = threading.RLock()
        self._sleep, self._clock = sleep, clock
        self._clock_offset = 0.0
        self._clock_read = -float("inf")

    def create(self) -> None:
        """Makes the repository where it is not there."""
        self._call(lambda: self.api.create_repo(self.repo_id, repo_type=self.repo_type, exist_ok=True))

    def headers(self) -> dict[str, str]:
        """Of a request of our own."""
        return dict(build_hf_headers(token=self.api.token))

    def now(self) -> float:
        """Unix time by the hub's clock, which is the same for every client, whatever its own says."""
        if time.monotonic() - self._clock_read > CLOCK_SECONDS:
            answer = self._call(lambda: get_session().head(self.api.endpoint, timeout=30))
            date = answer.headers.get("Date")
            if date is None:
                raise HubError(f"{self.api.endpoint} does not tell the time: locks would be judged by this clock alone")
            self._clock_offset = email.utils.parsedate_to_datetime(date).timestamp() - self._clock()
            self._clock_read = time.monotonic()
        return self._clock() + self._clock_offset

    def look(self) -> View:
        """The repository as it is now."""
        info = self._call(lambda: self.api.repo_info(self.repo_id, repo_type=self.repo_type))
        assert info.sha is not None
        return View(repo=self, sha=info.sha)

    def change(self, decide: Callable[[View], tuple[Change, _T]]) -> _T:
        """Looks, decides and commits, again and again until nobody came between.

        Args:
            decide: Gives what to commit, and what to return once it is. Called anew at every try.

        Raises:
            HubError: It did not work out after many tries, or the hub refuses for another reason.
        """
        with self.lock:
            return self._change(decide)

    def _change(self, decide: Callable[[View], tuple[Change, _T]]) -> _T:
        failure: Exception | None = None
        for number in range(MAX_TRIES):
            if number:
                # Those who met would meet again if they all waited the same time.
                self._sleep(min(30.0, 0.2 * 1.6**number) * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                view = self.look()
                wanted, result = decide(view)
                if wanted.operations:
                    self.api.create_commit(
                        self.repo_id,
                        list(wanted.operations),
                        commit_message=wanted.message,
                        repo_type=self.repo_type,
                        parent_commit=view.sha,
                    )
                    self.num_commits += 1
            except Exception as error:  # noqa: BLE001 - what is not about the hub is raised again
                failure = error
                self._judge(error)
            else:
                return result
        raise HubError(f"{self.repo_id} could not be changed after {MAX_TRIES} tries: {failure}") from failure

    def _call(self, work: Callable[[], _T]) -> _T:
        """Something that changes nothing, again where the hub or the way to it fails."""
        for number in range(5):
            try:
                return work()
            except Exception as error:
                if number == 4:
                    raise HubError(
                        f"the hub cannot be reached: {type(error).__name__}: {_first_line(error)}"
                    ) from error
                self._judge(error)
                self._sleep(0.5 * 2**number)
        raise AssertionError("the last try has raised")

    def _judge(self, error: Exception) -> None:
        """Waits where the hub says so; raises what another try would not mend.

        Raises:
            HubError: The hub refuses for good.
        """
        status = (
            error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        )
        if status is None:
            # The way to the hub: whether a commit was done, the next look tells. Anything else is a fault of ours.
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "builtins"):
                raise error
            if isinstance(error, (AssertionError, TypeError, ValueError, AttributeError, KeyError, NameError)):
                raise error
            _LOG.warning("the hub: %s: %s", type(error).__name__, _first_line(error))
            return
        if status in (409, 412) or status >= 500:
            _LOG.info("the hub: %s: %s", status, _first_line(error))
            return
        if status == 429:
            assert isinstance(error, HfHubHTTPError)
            wait_s = float(error.response.headers.get("Retry-After") or 300)
            _LOG.warning("the hub: too many commits: going on in %.0f s", wait_s)
            while wait_s > 0:
                self._sleep(min(5.0, wait_s))
                wait_s -= 5.0
            return
        raise HubError(f"the hub refuses ({status}): {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
