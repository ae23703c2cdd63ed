"""Every error that sharp_cog raises on purpose.

    SharpError                     internal_error       500, exit 1
    +-- InputError                 invalid_input        422, exit 2: the caller's fault, message safe to show
    |   +-- ImageError             invalid_image
    |   +-- DepthError             invalid_depth
    |   +-- OptionError            invalid_option
    |   +-- SplatError             invalid_splat
    |   +-- FetchError             fetch_failed
    |   +-- UploadError            upload_failed
    |   +-- RequestTooLargeError   request_too_large    413
    |   +-- ResultTooLargeError    result_too_large
    |   +-- SlowClientError        too_slow             408
    +-- SettingError               invalid_setting
    +-- CheckpointError            invalid_checkpoint
    |   +-- CheckpointMissingError checkpoint_missing
    |   +-- DownloadError          download_failed
    +-- NotInstalledError          not_installed        422 of a service: the caller can choose another format
    +-- PredictionError            prediction_failed
    |   +-- DeviceError            device_failed        the process must be restarted
    +-- OutputError                cannot_write
    +-- BusyError                  busy                 503, with Retry-After: try again
    |   +-- RateLimitError           rate_limited         429, with Retry-After
    |   +-- NoSpaceError           no_space             507, with Retry-After
    |   +-- FailedError            code of its reason   503: the process must be restarted
    +-- DeadlineError              deadline_exceeded    504

A message names the value, the limit and the remedy. Exceptions of other libraries are translated where they enter.
"""


class SharpError(Exception):
    """Base of all errors that are raised on purpose; `code` is stable and meant for programs."""

    code = "internal_error"


class InputError(SharpError):
    """The caller's input cannot be used; the message is safe to show to the caller."""

    code = "invalid_input"


class ImageError(InputError):
    """The image cannot be used."""

    code = "invalid_image"


class DepthError(InputError):
    """The depth map cannot be used with the image."""

    code = "invalid_depth"


class OptionError(InputError):
    """An option is out of its range, or two options exclude each other."""

    code = "invalid_option"


class SplatError(InputError):
    """The splat cannot be read."""

    code = "invalid_splat"


class FetchError(InputError):
    """A URL of the caller cannot or must not be fetched."""

    code = "fetch_failed"


class UploadError(InputError):
    """The result cannot or must not be sent to the address that the caller gave."""

    code = "upload_failed"


class RequestTooLargeError(InputError):
    """The request is larger than the service accepts."""

    code = "request_too_large"


class ResultTooLargeError(InputError):
    """The result is larger than the platform returns."""

    code = "result_too_large"


class ForbiddenError(InputError):
    """The service does not answer to the request's host name, or to pages of the request's origin."""

    code = "forbidden"


class UnauthorizedError(InputError):
    """The request has no valid key."""

    code = "unauthorized"


class SlowClientError(InputError):
    """The client sends its request, or reads its answer, too slowly; `reason` is a word for metrics."""

    code = "too_slow"

    def __init__(self, message: str, *, reason: str = "slow") -> None:
        super().__init__(message)
        self.reason = reason


class SettingError(SharpError):
    """An environment variable or a setting has a bad value."""

    code = "invalid_setting"


class CheckpointError(SharpError):
    """The checkpoint is broken, or is another file than expected."""

    code = "invalid_checkpoint"


class CheckpointMissingError(CheckpointError):
    """The checkpoint is missing, and cannot or must not be downloaded."""

    code = "checkpoint_missing"


class DownloadError(CheckpointError):
    """The checkpoint could not be downloaded."""

    code = "download_failed"


class NotInstalledError(SharpError):
    """An optional package is not installed; the message holds the install command."""

    code = "not_installed"


class PredictionError(SharpError):
    """The predictor failed, or its result must not be written."""

    code = "prediction_failed"


class DeviceError(PredictionError):
    """The device failed, and works again only after a restart of the process."""

    code = "device_failed"


class OutputError(SharpError):
    """A result could not be written."""

    code = "cannot_write"


class BusyError(SharpError):
    """The service is loading or stopping, or its queue or another bound is full; `reason` is a word for metrics."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1, reason: str = "queue") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class NoSpaceError(BusyError):
    """The disk of the service has no room for the request."""

    code = "no_space"

    def __init__(self, message: str, *, retry_after_s: int = 60) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason="disk")


class FailedError(BusyError):
    """The service has failed, and works again only after a restart; `code` is that of the reason."""

    def __init__(self, message: str, *, code: str = SharpError.code, retry_after_s: int = 60) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason="failed")
        self.code = code


class RateLimitError(BusyError):
    """The caller has sent more requests than its rate allows."""

    code = "rate_limited"


class DeadlineError(SharpError):
    """The request exceeded the time limit of the service."""

    code = "deadline_exceeded"
