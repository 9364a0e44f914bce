"""Push a run to the Hub and pull it from there, through huggingface_hub alone.

Every failure becomes one typed error, and nobody waits for retries to learn that there is no network: the first request
of each transfer is one that the client does not repeat. This module knows no tensor.
"""

import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from m6rec.data.fetch import cache_folder
from m6rec.errors import HubAccessError, HubConnectionError, HubError, HubNameError
from m6rec.hub.card import check_files, read_figures, write_model_card
from m6rec.hub.staging import SUFFIXES, stage

TIMEOUT_S = 10.0
_NAME = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# Whoever publishes one of these beside an adapter wants it to be executed or unpickled.
_REFUSED = (
    ".bin", ".ckpt", ".dill", ".dll", ".h5", ".joblib", ".keras", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt",
    ".pth", ".py", ".pyc", ".sh", ".so",
)  # fmt: skip
# What an earlier push may have left; other files on the Hub are the owner's own.
_OURS = ["*.safetensors", "adapter_config.json", "task/*", "templates/*"]
logger = logging.getLogger(__name__)


def push(
    run: str | Path,
    name: str,
    *,
    base: str | None = None,
    figures: str | Path | None = None,
    catalogue: bool = True,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Put a finished run on the Hub, in one commit, and return the commit's address.

    What an earlier push left is replaced; the Hub keeps it in the history of the model.

    Args:
        run: the run folder, or the name of a run on the Hub.
        name: ``owner/name``; made where it does not exist.
        base: Hub id of the base model, where the run names a local folder.
        figures: what ``m6rec evaluate RUN --json FILE`` wrote, for the model card.
        catalogue: whether the items' titles and fields go along; without them it starts with an empty catalogue.
        private: whether a new model is private; default: as the owner's settings say.
        token: default: ``HF_TOKEN``, or what ``hf auth login`` stored.

    Raises:
        HubError: a name that cannot be, a run that cannot be published as it is, or a refusal by the Hub.
        RunError: no finished run.
    """
    from huggingface_hub import HfApi

    repo, _ = _parse(name)
    with tempfile.TemporaryDirectory(prefix="m6rec-hub-") as scratch:
        folder = Path(scratch) / "run"
        prepare(run, folder, name, base=base, figures=figures, catalogue=catalogue)
        api = HfApi(token=token, library_name="m6rec", library_version=version("m6rec"))
        with _explained(repo), warnings.catch_warnings():
            # A catalogue is no data set that somebody has put into the wrong place.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            if not _exists(api, repo):
                api.create_repo(repo, private=private)
            message = f"Push a run with m6rec {version('m6rec')}"
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=list(_OURS)
            )
    return str(commit.commit_url)


def prepare(
    run: str | Path,
    folder: Path,
    name: str,
    *,
    base: str | None = None,
    figures: str | Path | None = None,
    catalogue: bool = True,
) -> None:
    """Write into a new folder, whole or not at all, what :func:`push` would upload; the arguments are the same.

    Raises:
        HubError: the folder is taken, or as :func:`push`.
        RunError: no finished run.
    """
    (repo, _), run = _parse(name), locate(run)
    _check_free(folder)
    found = read_figures(Path(figures), run) if figures is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stage(run, folder, base, catalogue=catalogue)
        write_model_card(folder, repo, found)
        check_files(folder)
    except Exception:
        shutil.rmtree(folder)
        raise


def locate(run: str | Path) -> Path:
    """Return the folder of a run: the folder itself, or the local copy of what the Hub has under the name.

    Raises:
        HubError: there is neither.
    """
    if Path(run).exists() or not _NAME.fullmatch(str(run)):
        return Path(run)
    try:
        return pull(str(run))
    except HubError as error:
        raise type(error)(f"no run folder at {run}, and as a name on the Hub: {error}") from error


def pull(name: str, out: str | Path | None = None, token: str | None = None) -> Path:
    """Get a run from the Hub and return its folder, which appears whole or not at all.

    What has arrived when a transfer breaks off is kept beside it, and the next try goes on from there.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` (branch, tag or commit).
        out: a new folder; default: a cache, which also answers while the Hub cannot be reached.
        token: as for :func:`push`.

    Raises:
        HubError: no such name, no access, no network, or files that must not be trusted.
    """
    repo, revision = _parse(name)
    if out is not None:
        _check_free(Path(out))
    kept = cache_folder() / "hub" / repo.replace("/", "--")
    note = kept / f"{revision.replace('/', '--')}.txt"
    try:
        commit, files = _look_up(repo, revision, token)
    except HubConnectionError as error:
        if out is None and note.is_file() and (kept / note.read_text()).is_dir():
            logger.warning("%s; using the copy of %s in %s", str(error).partition(";")[0], name, kept)
            return kept / note.read_text()
        raise
    folder = kept / commit if out is None else Path(out)
    if out is not None or not folder.is_dir():
        _download(repo, commit, files, folder, token)
    if out is None:
        note.write_text(commit)
    return folder


def _look_up(repo: str, revision: str, token: str | None) -> tuple[str, list[str]]:
    """Return the commit that a revision stands for, and those of its files that a run consists of.

    Raises:
        HubError: there are files among them that could be executed, or that would land outside their folder.
    """
    from huggingface_hub import HfApi

    with _explained(repo):
        info = HfApi(token=token).model_info(repo, revision=revision, timeout=TIMEOUT_S)
    files = [str(entry.rfilename) for entry in info.siblings or ()]
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() in _REFUSED:
            raise HubError(
                f"got {file!r} in {repo}, expected nothing that is executed or unpickled to be read; do not load it, "
                "and ask its owner for safetensors"
            )
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise HubError(f"got a file called {file!r} in {repo}, which would leave its folder; do not load it")
    return str(info.sha), [file for file in files if file.endswith(SUFFIXES) and not file.startswith(".")]


def _download(repo: str, commit: str, files: list[str], folder: Path, token: str | None) -> None:
    from huggingface_hub import snapshot_download

    partial = folder.with_name(f".{folder.name}-{commit[:12]}.partial")
    with _explained(repo):
        snapshot_download(
            repo, revision=commit, local_dir=partial, allow_patterns=[escape(file) for file in files], token=token
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    try:
        check_files(partial)
    except Exception:
        shutil.rmtree(partial)  # nothing in it is worth a second look
        raise
    if folder.is_dir() and any(folder.iterdir()):  # another process was faster, and has the same
        shutil.rmtree(partial)
    else:
        os.replace(partial, folder)


def _exists(api: Any, repo: str) -> bool:
    """Ask for a model in the one way that is not repeated for half a minute where there is no network."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        api.model_info(repo, timeout=TIMEOUT_S)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return False
    return True


def _parse(name: str) -> tuple[str, str]:
    """Return the id and the revision of a name.

    >>> _parse("you/shop"), _parse("you/shop@v1")
    (('you/shop', 'main'), ('you/shop', 'v1'))
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise HubError(f"got the name {name!r}, expected OWNER/NAME (letters, digits, '-', '_' and '.')")
    return found["id"], found["revision"] or "main"


def _check_free(folder: Path) -> None:
    if not folder.name:  # it appears by renaming, and nothing can take the place that we are in
        raise HubError(f"got the folder {str(folder)!r}, expected a new one; give a name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"{folder} holds something already; give another folder, or remove it")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn any failure of the client inside into one of our errors."""
    # Transport errors come from the HTTP library that the client is built on, which is not the same in every version.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except OfflineModeIsEnabled as error:
        raise HubConnectionError(f"cannot ask the Hub for {repo}: HF_HUB_OFFLINE is set; unset it") from error
    except (HTTPError, OSError) as error:
        raise HubConnectionError(
            f"the transfer of {repo} broke off ({type(error).__name__}: {_first_line(error)}); check the network, "
            "HF_ENDPOINT and the disk, and try again: what has arrived is kept"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise HubError(f"{repo}: {_first_line(error)}") from error


def _refusal(repo: str, error: Any) -> HubError:
    """Return what the Hub's answer means for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may"
    if isinstance(error, GatedRepoError):
        return HubAccessError(f"{repo} is only for those whom its owner lets in; ask on its page, then {login}")
    if isinstance(error, RevisionNotFoundError):
        return HubNameError(f"{repo} has no such revision; look at its branches, tags and commits on the Hub")
    if isinstance(error, RepositoryNotFoundError):
        return HubNameError(f"the Hub has no model {repo}, or it is private; check the name, or {login}")
    if status in (401, 403):
        return HubAccessError(f"the Hub does not let you do this with {repo} ({status}); {login}")
    said = error.server_message or _first_line(error)
    return HubError(f"the Hub answers {status} for {repo} ({said}); try again later")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
