"""What the command line does to its process: signals, logging, and TensorFlow's own words."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from types import FrameType

from stages.errors import BackendError


def import_tensorflow_quietly() -> None:
    """TensorFlow's libraries write to standard error before their log level is read. What they say is shown if the import
    fails, and dropped else."""
    # oneDNN's allocator never gives memory back: a large model's weights would stay when their last tensor is gone.
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    with tempfile.TemporaryFile() as words:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(words.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except Exception as error:
            words.seek(0)
            said = words.read().decode(errors="replace")
            raise BackendError(f"tensorflow: {error}" + f"\n{said}".rstrip(), "pip install tensorflow") from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM (`timeout`, a container that stops) interrupt as Ctrl-C does, and lose no Ctrl-C: Python drops one that
    falls into a destructor, of which TensorFlow has many."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def deliver_again(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, deliver_again
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def set_up_logging(verbose: int, quiet: bool) -> None:
    """Let GraftRT's loggers write to standard error as much as was asked for."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's warnings are for those who write the code that is running
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # absl and Keras advise those who train; nobody does here.
    logging.getLogger("absl").setLevel(logging.ERROR)
    for package in ("pipeline", "stages"):
        logging.getLogger(package).setLevel(level)
