"""Libraries that come along with transformers and ModelOpt and that calibrating never calls.

Importing ModelOpt imports transformers' Trainer and its assisted generation, and these import `datasets` and
scikit-learn where they are installed; lm-eval installs both. With pandas and Arrow behind them they are 100 of the
622 MB that a child holds before it has read a weight, and those decide the peak of a calibration block by block. Both
are optional there, so they are said not to be installed while the import lasts. Afterwards they can be imported again:
calibration text from the hub is read with `datasets`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NEVER_CALLED = ("datasets", "sklearn")


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, NEVER_CALLED cannot be found; what is imported already stays.

    None in `sys.modules` is Python's own word for that: an import raises ModuleNotFoundError, `find_spec` sees nothing.
    """
    absent = [name for name in NEVER_CALLED if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
