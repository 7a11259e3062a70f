"""Read image files of any kind that Pillow knows, the way a person would see them, and tell equal ones from others."""

import base64
import hashlib
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from arelu_meta.config import MOST_PIXELS, RANGE, DataConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import progress

# What cameras, systems and editors leave beside photographs; nobody means them as images.
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "#recycle", "@recycle", "__macosx", "$recycle.bin", "recycler", "system volume information"),
    *("lost+found", "__pycache__", "#snapshot", "@recently-snapshot", "@sharebin", "@appdata"),
}
# Images that Pillow does not read by itself, and what does: each is told by its name, and not passed over.
_RAW = ("a camera's raw file", "rawpy")
_FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("HEIC", "pillow-heif")),
    ".avif": ("AVIF", "a newer Pillow"),
    ".jxl": ("JPEG XL", "pillow-jxl-plugin"),
    ".dcm": ("DICOM", "pydicom"),
    ".svg": ("SVG", "cairosvg"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".orf"), _RAW),
}
_SIGNATURES = (
    *((4, b"ftyp" + brand, ".heic") for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")),
    (4, b"ftypavif", ".avif"),
    (0, b"\xff\x0a", ".jxl"),
    (0, b"\0\0\0\x0cJXL ", ".jxl"),
    (128, b"DICM", ".dcm"),
)
_TIFF_BITS, _TIFF_COLOURS, _TIFF_BANDS, _TIFF_EXTRA = 258, 262, 277, 338
_TIFF_ALPHA = {(1,), (2,), (999,)}
_NO_IMAGES = {"MPEG", "HDF5", "GRIB", "BUFR"}  # which Pillow tells from others, and does not read

THINNEST = 200  # the shorter side is scaled to the model's, and the longer with it: 100,000 x 1 would take gigabytes
_AT_ONCE = 8  # images that are decoded side by side: each may take as much memory as the largest one allowed
_PIXELS_A_BYTE = 512  # at the most in a JPEG: eight blocks of 64, each of which takes a bit or more
_RUN_BY_OTHERS = {"EPS", "WMF"}  # Pillow hands these to Ghostscript and to Windows

DIGEST_BYTES = 6  # of a SHA-256: a chance match of a million images with ten thousand others is one in 30,000

_Stamp = tuple[int, ...]
_MOST_KNOWN = 100_000  # names and stamps of millions would fill the memory
_known: dict[str, tuple[_Stamp, "Checked"]] = {}  # whole images that this process read: its next run need not

# Without a handler of the user's, Pillow would print its remarks on broken files to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@lru_cache
def _endings() -> frozenset[str]:
    """List the endings of image files, those that other packages read among them."""
    known = Image.registered_extensions().items()
    return frozenset(end for end, kind in known if kind in Image.OPEN and kind not in _NO_IMAGES) | _FOREIGN.keys()


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


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Args:
        skip_broken: leave out files that are not images.
        range: LOW-HIGH of pixels of more than 8 bits, or auto: decided once for all files.
        max_pixels: of the largest image, as `pixels_counted` counts them.
    """

    skip_broken: bool = False
    range: str = "auto"
    max_pixels: int = MOST_PIXELS

    @classmethod
    def of(cls, config: DataConfig) -> "Reading":
        """Take from a config what it says of reading.

        Args:
            config: validated.

        Raises:
            InputError: if its range is none.
        """
        _limits_of(config.range)
        return cls(config.skip_broken, config.range, config.max_pixels)


class LimitError(OSError):
    """An image is larger than what is read; the message goes on from the file's name, and says what lifts the limit."""


class FormatError(OSError):
    """An image is of a kind that is not read; the message goes on from the file's name, and says what reads it."""


def fault_of(error: BaseException) -> str:
    """Say what is wrong with an image, and what to do, to be read behind its name.

    Args:
        error: what reading it raised.
    """
    known = isinstance(error, LimitError | FormatError)
    return str(error) if known else "is not a whole image; remove it or give --data.skip_broken"


def _limits_of(text: str) -> tuple[float, float] | None:
    found = re.fullmatch(RANGE, text)
    if found is None or found[1] is None:
        return None
    low, high = float(found[1]), float(found[2])
    if low >= high:
        raise InputError(f"data.range: {text!r} is not allowed; give LOW-HIGH, the lower first, as 0-4095")
    return low, high


def choose_range(low: float, high: float) -> str:
    """Choose the range of images with more than 8 bits from their smallest and their largest pixel.

    Args:
        low: of all images, or of the one that there is.
        high: likewise.

    Returns:
        LOW-HIGH: the fewest bits, of 8, 10, 12, 14 and 16, that hold all pixels; 0-1 for shares that may go a little
        beyond; what there is where it fills less than a sixteenth of that, goes higher, or is negative.
    """
    if low < -0.05 * max(high, 0.0):
        return "-1-1" if low >= -1.1 and high <= 1.1 else f"{_written(low)}-{_written(max(high, low + 1))}"
    whole = next((top for top in (1, 255, 1023, 4095, 16383, 65535) if high <= (1.1 if top == 1 else top)), high)
    if high <= 0:
        return "0-255"
    return f"0-{_written(whole if high >= whole / 16 else high)}"


def _written(number: float) -> str:
    return np.format_float_positional(float(f"{number:.7g}"), trim="-")


def is_deep(image: Image.Image) -> bool:
    """Return True if an image has pixels of more than 8 bits, as Pillow gives them.

    Args:
        image: opened; 16 bits of colour are 8 by then.
    """
    return image.mode.startswith("I") or image.mode == "F"


def to_channels(image: Image.Image, channels: int, range: str = "auto") -> Image.Image:
    """Convert to 8-bit grey or RGB: transparency over white, more than 8 bits scaled, palette and CMYK resolved.

    Args:
        image: any mode.
        channels: 1 or 3.
        range: of pixels of more than 8 bits; auto takes 16 bits whole, and others by the image's own pixels.
    """
    if is_deep(image):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        chosen = "0-65535" if image.mode.startswith("I;16") else choose_range(values.min(), values.max())
        low, high = _limits_of(range) or _limits_of(chosen) or (0.0, 255.0)
        clear = image.info.get("transparency")  # a single grey of PNG's, which stands for none
        image = Image.fromarray(np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if "A" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image.convert("L" if channels == 1 else "RGB")


def pixels_counted(image: Image.Image) -> int:
    """Count an image's pixels as its decoding and scaling take memory.

    Args:
        image: opened, not decoded.
    """
    width, height = image.size
    held = width * height * (4 if is_deep(image) else 1)  # eight bytes a pixel, and as many again to scale them
    longer, shorter = max(width, height), max(min(width, height), 1)
    return max(held, longer * MOST_PIXELS // (THINNEST * shorter) if longer > THINNEST * shorter else 0)


def check_readable(image: Image.Image, max_pixels: int = MOST_PIXELS) -> None:
    """Refuse an image before any of it is decoded, so that memory stays bounded, and none is read as something else.

    Args:
        image: opened, not decoded.
        max_pixels: see `Reading`.

    Raises:
        OSError: if it has more pixels than are read, or bands that are no colours, or another program would have to
            decode it.
    """
    if image.format in _RUN_BY_OTHERS:
        raise FormatError(f"is {image.format}, a program's code, which is not run; convert it to PNG or JPEG")
    width, height = image.size
    if (counted := pixels_counted(image)) > max_pixels:
        as_many = "" if counted == width * height else f", which count as {counted:,}"
        raise LimitError(
            f"has {width:,} x {height:,} pixels{as_many}; at most {max_pixels:,} are read: give "
            f"--data.max_pixels {counted}"
        )
    # Its decoder makes up what is missing: gigabytes of grey, of a header of a few bytes.
    if image.format in {"JPEG", "MPO"} and width * height > _PIXELS_A_BYTE * _bytes_of(image):
        raise OSError(f"{width} x {height} pixels, of which it cannot hold as many")
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bands, extra = tags.get(_TIFF_BANDS, 1), tags.get(_TIFF_EXTRA, ())
        colours = {0: 1, 1: 1, 2: 3, 3: 1}.get(tags.get(_TIFF_COLOURS), 4)
        if bands > colours and not (bands == colours + 1 and tuple(extra)[:1] in _TIFF_ALPHA):
            raise FormatError(_words_on_bands(bands))


def _words_on_bands(bands: int) -> str:
    return f"has {bands} bands, and the last is not said to be transparency; 1 or 3 are read: write those that you mean"


def _bytes_of(image: Image.Image) -> int:
    """Count the bytes of the file that an image was opened from."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    length = int(file.seek(0, os.SEEK_END))
    file.seek(place)
    return length


def _open(path: Path, file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open an image that is read; what Pillow does not know is told by its name."""
    if path.suffix.lower() in _FOREIGN and path.suffix.lower() not in Image.registered_extensions():
        raise FormatError(_words_on_format(*_FOREIGN[path.suffix.lower()]))
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > MOST_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)  # Pillow's own limit, for all of the process
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        assert pixels is not None
        raise LimitError(
            f"has {int(pixels[0]):,} pixels; at most {max_pixels:,} are read: give --data.max_pixels {pixels[0]}"
        ) from error
    except UnidentifiedImageError as error:
        if (words := _words_on(file)) is not None:
            raise FormatError(words) from error
        raise
    check_readable(image, max_pixels)
    return image


def _words_on(file: IO[bytes]) -> str | None:
    """Say what a file is that Pillow does not know, by its first bytes; None where nobody knows."""
    file.seek(0)
    head = file.read(132)
    for place, first, ending in _SIGNATURES:
        if head[place : place + len(first)] == first:
            return _words_on_format(*_FOREIGN[ending])
    if head[:4] in (b"II*\0", b"MM\0*"):
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(_TIFF_BITS, (1,))
        kind = f"is a TIFF of {tags.get(_TIFF_BANDS, 1)} bands of {bits[0] if isinstance(bits, tuple) else bits} bits"
        return f"{kind}, which Pillow does not read; write 1 or 3 of them, of 8 or 16 bits (tifffile reads it)"
    return None


def _words_on_format(name: str, package: str) -> str:
    return f"is {name}, which Pillow does not read; convert it to PNG or JPEG ({package} reads it)"


def read_image(path: Path, channels: int = 3, range: str = "auto", max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Read one image upright (EXIF), in 8-bit grey or RGB.

    Args:
        path: any file that Pillow reads.
        channels: 1 or 3.
        range: of pixels of more than 8 bits.
        max_pixels: see `Reading`.

    Returns:
        The decoded image.

    Raises:
        OSError: if it is not a whole image, or none that is read; `fault_of` has words for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to speak; a broken image raises
        try:
            with path.open("rb") as file, _open(path, file, max_pixels) as image:
                image.load()
                return to_channels(_upright(image), channels, range)
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


@dataclass(frozen=True)
class Checked:
    """What was found of a file when it was read to its end.

    Args:
        digest: of its bytes; None where it is not read.
        fault: what is wrong with it, and what to do, to be read behind its name.
        too_large: whether it is an image beyond the limit: never left out as if it were none.
        size: width and height.
        extremes: smallest and largest pixel of one of more than 8 bits.
    """

    digest: int | None = None
    fault: str = ""
    too_large: bool = False
    size: tuple[int, int] = (0, 0)
    extremes: tuple[float, float] | None = None


def _check(path: Path, max_pixels: int) -> Checked:
    """Read a file to its end."""
    try:
        with path.open("rb") as file:
            with _open(path, file, max_pixels) as image:
                size = image.size
                # Decoding to a small size reads the file to its end, at a fraction of the cost.
                image.draft("RGB", (64, 64))
                image.load()
                extremes = _extremes(image) if is_deep(image) else None
            file.seek(0)
            return Checked(shorten(hashlib.file_digest(file, "sha256").digest()), size=size, extremes=extremes)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        return Checked(fault=fault_of(error), too_large=isinstance(error, LimitError))


def _extremes(image: Image.Image) -> tuple[float, float] | None:
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else None


def _stamp(path: Path) -> _Stamp | None:
    """Tell a file's content from any other that it had; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_files(paths: Sequence[Path], max_pixels: int = MOST_PIXELS) -> dict[Path, Checked]:
    """Read files to their end, and tell equal ones from different ones.

    Args:
        paths: files; each is decoded once a process, at reduced size where the format allows, and again if it changes.
        max_pixels: see `Reading`.

    Returns:
        What was found of each.
    """
    stamps = {path: _stamp(path) for path in paths} if len(paths) <= _MOST_KNOWN else {}
    found: dict[Path, Checked] = {}
    for path, stamp in stamps.items():
        known = _known.get(str(path))
        if stamp is not None and known is not None and known[0] == (*stamp, max_pixels):
            found[path] = known[1]
    unknown = [path for path in dict.fromkeys(paths) if path not in found]
    if not unknown:
        return found
    with warnings.catch_warnings(), ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        with progress("checking images", len(unknown), "images") as bar:
            broken = 0
            for path, one in zip(unknown, pool.map(partial(_check, max_pixels=max_pixels), unknown), strict=True):
                found[path] = one
                bar.advance(1, broken=broken)
                broken += one.digest is None
    for path in unknown:
        stamp, one = stamps.get(path), found[path]
        if stamp is not None and one.digest is not None and len(_known) < _MOST_KNOWN:
            _known[str(path)] = (*stamp, max_pixels), one
    return found


def find_broken(paths: Sequence[Path], max_pixels: int = MOST_PIXELS) -> list[Path]:
    """List the files that are not whole images.

    Args:
        paths: files.
        max_pixels: larger ones are images all the same, and not listed.

    Returns:
        Those that Pillow cannot read to the end, in the order given.
    """
    found = check_files(paths, max_pixels)
    return [path for path in paths if found[path].digest is None and not found[path].too_large]


Digests = NDArray[np.uint64]


def digest_pixels(images: Iterable[Image.Image | NDArray[Any]]) -> Digests:
    """Compute a number an image, the same for equal pixels.

    Args:
        images: decoded.
    """
    pixels = (np.ascontiguousarray(image) for image in images)
    found = (shorten(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()) for array in pixels)
    return np.fromiter(found, dtype=np.uint64)


def digest_texts(texts: Iterable[str]) -> Digests:
    """Compute a number an image from what tells it apart from all others, where decoding it would take long.

    Args:
        texts: such as a set's name, a part's, and the image's place in it.
    """
    return np.fromiter((shorten(hashlib.sha256(text.encode()).digest()) for text in texts), dtype=np.uint64)


def encode(digests: Digests) -> str:
    """Write digests as text, 8 characters each.

    Args:
        digests: in the order to keep.
    """
    parts = digests.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :DIGEST_BYTES]
    return base64.b64encode(parts.tobytes()).decode()


def decode(text: str) -> Digests:
    """Read what `encode` wrote.

    Args:
        text: which anyone may have written.

    Raises:
        ValueError: if it is none; TypeError likewise.
    """
    parts = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    whole = np.zeros((len(parts), 8), dtype=np.uint8)
    whole[:, :DIGEST_BYTES] = parts
    return whole.view("<u8").ravel().astype(np.uint64)


def compose(name: str) -> str:
    """Write a name with composed letters: a file system may have taken them apart.

    Args:
        name: of a class or a file.
    """
    return unicodedata.normalize("NFC", name)
