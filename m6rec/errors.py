"""The one tree of errors that m6rec raises on purpose.

::

    M6RecError
    ├── ConfigError          a recipe, flag or setting is wrong
    │   └── UnknownNameError     a name that no shelf or field has
    ├── DataError            a log, catalogue or dataset folder is wrong
    │   ├── RowError             one row is wrong: names file, row and field
    │   ├── ItemTakenError       an item is to be added under an id that another one has
    │   └── ItemUnknownError     an item is to be changed or removed that is not on offer
    ├── TemplateError        a template or prompt file is wrong
    ├── BackboneError        a backbone cannot be found or is of an unknown family
    ├── TunerError           an adapter does not fit, or a tuner cannot do what was asked
    │   └── SharedWeightsError   a tuner would change weights that others share
    ├── RunError             a run folder is missing, incomplete or of another version
    ├── HubError             what is on the Hub cannot be used, or the Hub refuses what is sent
    │   ├── HubNameError         no such model or revision there
    │   ├── HubAccessError       no token, or one that may not do this
    │   └── HubConnectionError   the Hub cannot be reached
    ├── CheckpointError      a checkpoint cannot be written or read
    ├── CacheError           a segment cache is damaged, too small or of other weights
    ├── ServingError         a request cannot be answered now, whatever it asks
    │   ├── OverloadedError      refused at admission: says when to come again
    │   ├── DeadlineError        not answered within its time
    │   └── StageError           a stage of the pipeline failed or hangs
    ├── JournalError         a change of the catalogue cannot be kept: the disk is full, or its log is damaged
    ├── DistillationError    a teacher is missing, does not fit its student, or gave labels that cannot be used
    └── MissingExtraError    an optional dependency is not installed

Every message says what was got, what was expected, and what to do. This module knows nothing else of the package.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class M6RecError(Exception):
    """Root of every error that m6rec raises on purpose."""


class ConfigError(M6RecError):
    """A recipe, flag or setting is wrong."""


class UnknownNameError(ConfigError):
    """A name that no table has; the message offers the nearest ones.

    Args:
        kind: what was looked up, e.g. ``"tuner"``.
        name: the name that was given.
        known: every name that would have been right.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}{nearest(name, self.known)}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Without it, an error with arguments of its own cannot leave a worker process, and its pool hangs.
        return type(self), (self.kind, self.name, self.known)


class DataError(M6RecError):
    """A log, catalogue or dataset folder is wrong."""


class RowError(DataError):
    """One row of an input file is wrong.

    Args:
        path: the file.
        row: 1-based data row (a header does not count).
        field: the column or key.
        problem: got and expected, in words.
    """

    def __init__(self, path: object, row: int, field: str, problem: str) -> None:
        self.path, self.row, self.field, self.problem = str(path), row, field, problem
        super().__init__(f"{path}, row {row}, field {field!r}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.row, self.field, self.problem)


class ItemTakenError(DataError):
    """An item is to be added under an id that another one has."""


class ItemUnknownError(DataError):
    """An item is to be changed or removed that is not on offer."""


class TemplateError(M6RecError):
    """A data template or prompt file is wrong."""


class BackboneError(M6RecError):
    """A backbone cannot be found, or is of a family that the walk does not know."""


class TunerError(M6RecError):
    """An adapter does not fit its backbone, or a tuner cannot do what was asked."""


class SharedWeightsError(TunerError):
    """A tuner would change the pretrained weights that other adapters share."""


class RunError(M6RecError):
    """A run folder is missing, incomplete or of another version."""


class HubError(M6RecError):
    """What is on the Hub cannot be used, or the Hub refuses what is sent."""


class HubNameError(HubError):
    """There is no such model or revision on the Hub."""


class HubAccessError(HubError):
    """There is no token, or it may not do this."""


class HubConnectionError(HubError):
    """The Hub cannot be reached."""


class CheckpointError(M6RecError):
    """A checkpoint cannot be written or read."""


class CacheError(M6RecError):
    """A segment cache is damaged, too small, or of other weights than those that ask."""


class JournalError(M6RecError):
    """A change of the catalogue cannot be kept, or what was kept is damaged."""


class ServingError(M6RecError):
    """A request cannot be answered now, whatever it asks."""


class OverloadedError(ServingError):
    """A request is refused at admission.

    Args:
        reason: what is full, in words.
        retry_after_s: seconds after which it is worth coming again.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.reason, self.retry_after_s = reason, retry_after_s
        super().__init__(f"overloaded: {reason}; come again in {retry_after_s:.1f} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.retry_after_s)


class DeadlineError(ServingError):
    """A request was not answered within its time.

    Args:
        limit_ms: how long it had.
    """

    def __init__(self, limit_ms: float) -> None:
        self.limit_ms = limit_ms
        super().__init__(f"not answered within {limit_ms:.0f} ms; ask for less, or allow more with deadline_ms")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit_ms,)


class StageError(ServingError):
    """A stage of the pipeline failed or hangs.

    Args:
        stage: its name.
        problem: what happened, in words.
    """

    def __init__(self, stage: str, problem: str) -> None:
        self.stage, self.problem = stage, problem
        super().__init__(f"stage {stage!r} {problem}; the log has the details, other requests go on")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.problem)


class DistillationError(M6RecError):
    """A teacher is missing, does not fit its student, or gave labels that cannot be used."""


class MissingExtraError(M6RecError):
    """An optional dependency is not installed.

    Args:
        package: the import that failed.
        extra: the extra of m6rec that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f'{package} is not installed; do: pip install "m6rec[{extra}]"')

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.package, self.extra)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what an extra brings: ``with needs("edge"): import onnxruntime``.

    Raises:
        MissingExtraError: it is not installed, and the message says how to.

    >>> with needs("edge"): import no_such_module
    Traceback (most recent call last):
    m6rec.errors.MissingExtraError: no_such_module is not installed; do: pip install "m6rec[edge]"
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError((error.name or str(error)).partition(".")[0], extra) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message that names what would have been right.

    >>> nearest("lorra", ["lora", "prompt"])
    '; did you mean lora? (known: lora, prompt)'
    """
    names = sorted(known)
    if not names:
        return "; none is known"
    plain = {each.casefold(): each for each in reversed(names)}
    close = [plain[each] for each in difflib.get_close_matches(str(name).casefold(), plain, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{hint} (known: {', '.join(names)})"
