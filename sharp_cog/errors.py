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
    +-- SettingError               invalid_setting
    +-- CheckpointError            invalid_checkpoint
    |   +-- CheckpointMissingError checkpoint_missing
    |   +-- DownloadError          download_failed
    +-- NotInstalledError          not_installed        422 of a service: the caller can choose another format
    +-- PredictionError            prediction_failed
    |   +-- DeviceError            device_failed        the process must be started anew
    +-- OutputError                cannot_write
    +-- BusyError                  busy                 503, with Retry-After: ask again
    +-- DeadlineError              deadline_exceeded    504

A message names the value, the limit and the remedy. Foreign exceptions are translated where they enter.
"""


class SharpError(Exception):
    """Base of all errors raised on purpose; `code` is stable and meant for programs."""

    code = "internal_error"


class InputError(SharpError):
    """The caller's input cannot be used; the message is safe to show to the caller."""

    code = "invalid_input"


class ImageError(InputError):
    """The bytes are not a picture that can be used."""

    code = "invalid_image"


class DepthError(InputError):
    """The bytes are not a depth map that can be used with the picture."""

    code = "invalid_depth"


class OptionError(InputError):
    """An option has a value out of its range, or two options exclude each other."""

    code = "invalid_option"


class SplatError(InputError):
    """The bytes are not a splat that can be read."""

    code = "invalid_splat"


class FetchError(InputError):
    """A URL of the caller's cannot or may not be fetched."""

    code = "fetch_failed"


class UploadError(InputError):
    """The result cannot or may not be sent to where the caller wants it."""

    code = "upload_failed"


class RequestTooLargeError(InputError):
    """The request has more bytes than the service takes."""

    code = "request_too_large"


class ResultTooLargeError(InputError):
    """The result has more bytes than the platform passes back."""

    code = "result_too_large"


class SettingError(SharpError):
    """An environment variable or setting of the service has a bad value."""

    code = "invalid_setting"


class CheckpointError(SharpError):
    """The checkpoint file is not what it should be."""

    code = "invalid_checkpoint"


class CheckpointMissingError(CheckpointError):
    """There is no checkpoint, and it may not or cannot be downloaded."""

    code = "checkpoint_missing"


class DownloadError(CheckpointError):
    """The checkpoint could not be downloaded."""

    code = "download_failed"


class NotInstalledError(SharpError):
    """An optional package is not installed; the message holds the install command."""

    code = "not_installed"


class PredictionError(SharpError):
    """The predictor produced something that must not be written."""

    code = "prediction_failed"


class DeviceError(PredictionError):
    """The device failed in a way that only a new process mends."""

    code = "device_failed"


class OutputError(SharpError):
    """A result could not be written."""

    code = "cannot_write"


class BusyError(SharpError):
    """The service cannot take the request now: it loads, stops, or has too many of them."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(SharpError):
    """The request took longer than the service allows."""

    code = "deadline_exceeded"
