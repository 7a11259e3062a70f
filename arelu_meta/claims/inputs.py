"""What the runs of a study were made from: folders that change between two starts must not be mixed into one study."""

import hashlib
import json
from pathlib import Path

from arelu_meta.claims.transfer_data import backbone_config, read_pairs
from arelu_meta.config import ClaimsConfig
from arelu_meta.data.images import class_holders, find_candidates, find_root
from arelu_meta.errors import InputError
from arelu_meta.runs.checkpoints import digest_of


def inputs_of(config: ClaimsConfig) -> dict[str, str]:
    """Digest the folders and files that a study reads and its runs are not named by: a path stays, its content may not.

    Args:
        config: resolved, and planned without an error.

    Returns:
        By flag and value a digest; of a folder by its images' paths and sizes.
    """
    given = {f"focus.{name}": getattr(config.focus, name) for name in ("images", "boxes", "masks")}
    paths = {f"{flag}: {value!r}": Path(value).expanduser() for flag, value in given.items() if value is not None}
    if config.data.root is not None and config.data.name in (None, "folder") and config.study != "transfer":
        paths[f"data.root: {config.data.root!r}"] = find_root(config.data.root)
    if config.study == "transfer":
        for pair, (_, target) in read_pairs(config.pairs).items():
            if (root := backbone_config(config, target).data.root) == target:
                paths[f"pairs: {pair!r}"] = find_root(root)
    return {flag: _digest(path) for flag, path in paths.items()}


def image_folders(config: ClaimsConfig) -> list[Path]:
    """List the folders in which a study looks for images: what is written there would be taken for some of them.

    Args:
        config: resolved, and planned without an error.
    """
    given = [Path(one).expanduser() for one in (config.focus.images, config.focus.masks) if one is not None]
    if config.study != "transfer":
        return [*class_holders(config.data), *given]
    targets = [target for _, target in read_pairs(config.pairs).values()]
    return [place for target in targets for place in class_holders(backbone_config(config, target).data)]


def _digest(path: Path) -> str:
    if path.is_file():
        return digest_of(path)
    listed = sorted((one.relative_to(path).as_posix(), one.stat().st_size) for one in find_candidates(path))
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def check_inputs(now: dict[str, str], folder: Path) -> dict[str, str]:
    """Refuse to go on where a folder or file holds something else than when the study's runs were made.

    Args:
        now: as `inputs_of` gives it.
        folder: of the study, which holds finished runs.

    Returns:
        What is to be remembered: of before and of now.

    Raises:
        InputError: naming the flag that has other content behind it.
    """
    try:
        before = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        known = {str(flag): str(digest) for flag, digest in before.items()}
    except (OSError, ValueError, AttributeError):
        known = {}  # of a study begun before this was noted
    for flag, digest in now.items():
        if known.get(flag, digest) != digest:
            raise InputError(
                f"{flag} does not hold what it held when the runs in {str(folder)!r} were made; give another run.folder"
            )
    return known | now
