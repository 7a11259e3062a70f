"""Pictures inside the page: small enough, and never more than a page can carry."""

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from arelu_meta.report.blocks import Paragraph, Picture

_WIDEST, _HIGHEST = 1600, 4000
_QUALITY = 85
_DRAWN = 400_000  # bytes of a PNG, up to which it stays as it is


@dataclass
class Budget:
    """How many bytes of pictures a page may still take.

    Args:
        left: bytes.
    """

    left: int = 7_000_000


def picture(path: Path, title: str, alt: str, budget: Budget) -> Picture | Paragraph:
    """Take a picture into the page.

    Args:
        path: any image file.
        title: what stands above it.
        alt: what it shows, in words.
        budget: what the page may still take; made smaller.

    Returns:
        The picture, or a sentence that says why it is not there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as an image too large to be one
            content, kind, width, height = _encoded(path)
    except Exception as error:  # Pillow raises whatever a damaged file makes it meet
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read as a picture"
        return Paragraph(f"{title}: {path.name} {reason} and is left out.", warning=True)
    if len(content) > budget.left:
        return Paragraph(f"{title}: left out, the page would become too large; it lies in {path.name}.", warning=True)
    budget.left -= len(content)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(title, alt, source, width, height, path.name)


def _encoded(path: Path) -> tuple[bytes, str, int, int]:
    """Read a picture; one of photographs, which PNG writes large, becomes WebP."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        width, height = image.size
        if image.format == "PNG" and path.stat().st_size <= _DRAWN and width <= _WIDEST and height <= _HIGHEST:
            return path.read_bytes(), "png", width, height
        small = image.convert("RGB")
    small.thumbnail((_WIDEST, _HIGHEST))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue(), "webp", *small.size
