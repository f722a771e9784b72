"""TFDS without its output, and with the names of files it can't read."""

import contextlib
import errno
import io
import logging
import os
from collections.abc import Iterator

from stride_jax.runtime.files import UnreadableFileError, disk_named, first_line
from stride_jax.runtime.memory import is_about_memory


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the prints, logs and bars of TFDS, which are many for a small dataset."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


@contextlib.contextmanager
def preparing(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Name the folder in errors of writing a dataset: of a full disk, TFDS raises several kinds."""
    full = os.strerror(errno.ENOSPC)
    try:
        with disk_named(folder):
            yield
    except RuntimeError as error:
        if full not in str(error):
            raise
        raise OSError(errno.ENOSPC, full, str(folder)) from error


@contextlib.contextmanager
def naming(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a damaged dataset's files, which name no file, with its folder and the remedy.

    Args:
      folder: of the prepared dataset.

    Raises:
      UnreadableFileError: in place of any error that is not ours.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # array_record, grain and TFDS raise many kinds
        if is_about_memory(error):
            raise
        raise UnreadableFileError(
            f"a file of the dataset in {folder} can't be read ({first_line(error)}): remove the "
            "folder to have it prepared again"
        ) from error
