"""Read image files of any kind that Pillow knows, the way a person would see them."""

import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from arelu_meta.runs.progress import progress

# What cameras, systems and editors leave beside photographs; nobody means them as images.
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "#recycle", "@recycle", "__macosx", "$recycle.bin", "recycler", "system volume information"),
    *("lost+found", "__pycache__"),
}
# Images that Pillow does not read by itself: each is told by its name, and not passed over.
_FOREIGN_ENDINGS = {".heic", ".heif", ".hif", ".jxl", ".dcm", ".svg", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf"}
_NO_IMAGES = {"MPEG", "HDF5", "GRIB", "BUFR"}  # which Pillow tells from others, and does not read

MOST_PIXELS = 2**27  # half a gigabyte decoded; the largest cameras and telephones take some 108 million
THINNEST = 200  # the shorter side is scaled to the model's, and the longer with it: 100,000 x 1 would take gigabytes
_AT_ONCE = 8  # images that are decoded side by side: each may take as much memory as the largest one allowed
_PIXELS_A_BYTE = 512  # at the most in a JPEG: eight blocks of 64, each of which takes a bit or more
_RUN_BY_OTHERS = {"EPS", "WMF"}  # Pillow hands these to Ghostscript and to Windows

DIGEST_BYTES = 6  # of a SHA-256: a chance match of a million images with ten thousand others is one in 30,000

_Stamp = tuple[int, int, int, int]
_MOST_KNOWN = 100_000  # names and stamps of millions would fill the memory
_known: dict[str, tuple[_Stamp, int]] = {}  # digests of whole images that this process read: its next run need not

# Without a handler of the user's, Pillow would print its remarks on broken files to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@lru_cache
def _endings() -> frozenset[str]:
    """List the endings of image files, those that other packages read among them."""
    known = Image.registered_extensions().items()
    return frozenset(end for end, kind in known if kind in Image.OPEN and kind not in _NO_IMAGES) | _FOREIGN_ENDINGS


def is_of_a_system(name: str) -> bool:
    """Return True for hidden files and folders, and for what systems and network drives leave beside a person's.

    Args:
        name: of a file or a folder.
    """
    return name.startswith(".") or name.lower() in _SYSTEM_FILES | _SYSTEM_FOLDERS


def is_candidate(path: Path) -> bool:
    """Return True if a file is meant as an image: by its ending, or by its first bytes where it has none.

    Args:
        path: a file.
    """
    if is_of_a_system(path.name) or not path.is_file():
        return False
    return path.suffix.lower() in _endings() if path.suffix else _opens(path)


def _opens(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path).close()
    except Exception:  # Pillow's decoders raise whatever they meet
        return False
    return True


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8-bit grey or RGB: transparency over white, 16 bits scaled down, palette and CMYK resolved.

    Args:
        image: any mode.
        channels: 1 or 3.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # 32-bit integers mostly hold 8 or 16 bits; floats shares of 1, 8 bits or more, which is squeezed to fit.
        sixteen = image.mode.startswith("I;16") or (image.mode == "I" and values.max() > 255)
        shares = image.mode == "F" and 0 < values.max() <= 1
        high = 65535.0 if sixteen else 1.0 if shares else max(values.max(), 255.0)
        clear = image.info.get("transparency")  # a single grey of PNG's, which stands for none
        image = Image.fromarray(np.clip(values / high * 255, 0, 255).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if "A" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image.convert("L" if channels == 1 else "RGB")


def check_size(image: Image.Image) -> None:
    """Refuse what no photograph is before any of it is decoded, so that memory stays bounded.

    Args:
        image: opened, not decoded.

    Raises:
        OSError: if it has more pixels or a thinner shape than is read, or another program would have to decode it.
    """
    if image.format in _RUN_BY_OTHERS:
        raise OSError(f"{image.format} is a program's code, which is not run")
    width, height = image.size
    deep = image.mode.startswith("I") or image.mode == "F"  # decoded in eight bytes a pixel
    most = MOST_PIXELS // 4 if deep else MOST_PIXELS
    if width * height > most or max(width, height) > THINNEST * min(width, height):
        raise OSError(
            f"{width} x {height} pixels; at most {most:,} are read, and no side may be {THINNEST} times the other"
        )
    # Its decoder makes up what is missing: gigabytes of grey, of a header of a few bytes.
    if image.format in {"JPEG", "MPO"} and width * height > _PIXELS_A_BYTE * _bytes_of(image):
        raise OSError(f"{width} x {height} pixels, of which it cannot hold as many")


def _bytes_of(image: Image.Image) -> int:
    """Count the bytes of the file that an image was opened from."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    length = int(file.seek(0, os.SEEK_END))
    file.seek(place)
    return length


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """Read one image upright (EXIF), in 8-bit grey or RGB.

    Args:
        path: any file that Pillow reads.
        channels: 1 or 3.

    Returns:
        The decoded image.

    Raises:
        OSError: if it is not a whole image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to speak; a broken image raises
        try:
            with Image.open(path) as image:
                check_size(image)
                image.load()
                return to_channels(_upright(image), channels)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
            raise OSError(f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # metadata that cannot be read says nothing of the image's direction
        return image


def shorten(digest: bytes) -> int:
    """Keep the first bytes of a SHA-256 as a number.

    Args:
        digest: of a file's bytes, or of an image's pixels.
    """
    return int.from_bytes(digest[:DIGEST_BYTES], "little")


def _digest_if_whole(path: Path) -> int | None:
    """Read a file to its end and return its digest; None where it is no whole image."""
    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                check_size(image)
                # Decoding to a small size reads the file to its end, at a fraction of the cost.
                image.draft("RGB", (64, 64))
                image.load()
            file.seek(0)
            return shorten(hashlib.file_digest(file, "sha256").digest())
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders raise whatever they meet in a damaged file
        return None


def _stamp(path: Path) -> _Stamp | None:
    """Tell a file's content from any other that it had; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_files(paths: Sequence[Path]) -> dict[Path, int | None]:
    """Read files to their end, and tell equal ones from different ones.

    Args:
        paths: files; each is decoded once a process, at reduced size where the format allows, and again if it changes.

    Returns:
        A digest of each file's bytes; None for one that Pillow cannot read to the end.
    """
    stamps = {path: _stamp(path) for path in paths} if len(paths) <= _MOST_KNOWN else {}
    digests: dict[Path, int | None] = {}
    for path, stamp in stamps.items():
        known = _known.get(str(path))
        if stamp is not None and known is not None and known[0] == stamp:
            digests[path] = known[1]
    unknown = [path for path in dict.fromkeys(paths) if path not in digests]
    if not unknown:
        return digests
    with warnings.catch_warnings(), ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        with progress("checking images", len(unknown), "images") as bar:
            broken = 0
            for path, digest in zip(unknown, pool.map(_digest_if_whole, unknown), strict=True):
                digests[path] = digest
                bar.advance(1, broken=broken)
                broken += digest is None
    for path in unknown:
        stamp, digest = stamps.get(path), digests[path]
        if stamp is not None and digest is not None and len(_known) < _MOST_KNOWN:
            _known[str(path)] = stamp, digest
    return digests


def find_broken(paths: Sequence[Path]) -> list[Path]:
    """List the files that are not whole images.

    Args:
        paths: files.

    Returns:
        Those that Pillow cannot read to the end, in the order given.
    """
    digests = check_files(paths)
    return [path for path in paths if digests[path] is None]
