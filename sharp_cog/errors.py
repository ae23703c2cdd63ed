"""Every error that sharp_cog raises on purpose.

    SharpError                     internal_error       500, exit 1
    +-- InputError                 invalid_input        422, exit 2: the caller's fault, message safe to show
    |   +-- ImageError             invalid_image
    |   +-- DepthError             invalid_depth
    |   +-- OptionError            invalid_option
    |   +-- SplatError             invalid_splat
    +-- SettingError               invalid_setting
    +-- CheckpointError            invalid_checkpoint
    |   +-- CheckpointMissingError checkpoint_missing
    |   +-- DownloadError          download_failed
    +-- NotInstalledError          not_installed
    +-- PredictionError            prediction_failed
    +-- OutputError                cannot_write

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


class OutputError(SharpError):
    """A result could not be written."""

    code = "cannot_write"
