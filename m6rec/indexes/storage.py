"""How indexes lie on disk: a safetensors file of vectors beside a JSON file that says what they are.

The JSON file is written last and by renaming, so a folder either holds a whole index or says that it does not. It knows
no method.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import RunError

VERSION = 1
MANIFEST, VECTORS = "index.json", "vectors.safetensors"


def write(
    folder: Path, kind: str, config: dict[str, Any], ids: NDArray[np.int64], vectors: NDArray[np.float32]
) -> None:
    """Write ids and vectors (``[n]``, ``[n, dim]``) with what is needed to read them again."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"version": VERSION, "kind": kind, "dim": vectors.shape[1], "config": config, "ids": ids.tolist()}
    (folder / MANIFEST).unlink(missing_ok=True)
    save_file({"vectors": np.ascontiguousarray(vectors)}, folder / VECTORS)
    draft = folder / (MANIFEST + ".new")
    draft.write_text(json.dumps(manifest), encoding="utf-8")
    os.replace(draft, folder / MANIFEST)


def read(folder: Path, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and vectors; any kind of index can take them in.

    Raises:
        RunError: the folder has no whole index, or one of another version or vector size.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        vectors = load_file(folder / VECTORS)["vectors"]
        ids = np.array(manifest["ids"], dtype=np.int64)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{folder} holds no whole index ({error}); save one there first") from error
    if manifest.get("version") != VERSION or vectors.shape != (len(ids), dim):
        raise RunError(
            f"{folder} holds an index of version {manifest.get('version')} with vectors {vectors.shape}, "
            f"expected version {VERSION} with ({len(ids)}, {dim}); build it again"
        )
    return ids, vectors
