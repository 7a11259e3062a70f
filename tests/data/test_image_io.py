import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arelu_meta.data import image_io
from arelu_meta.data.image_io import (
    Checked,
    check_files,
    choose_range,
    find_broken,
    is_candidate,
    read_image,
    to_channels,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def _photo(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def _half_red(width: int = 32, height: int = 16) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    return image


@pytest.mark.parametrize(
    ("orientation", "red_at"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"), (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)
def test_a_photograph_is_turned_the_way_its_exif_says(tmp_path: Path, orientation: int, red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _half_red().save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    width, height = found.size
    assert (width, height) == ((32, 16) if orientation < 5 else (16, 32))
    spots = {
        "left": (0, height // 2),
        "right": (width - 1, height // 2),
        "top": (width // 2, 0),
        "bottom": (width // 2, height - 1),
    }
    assert found.getpixel(spots[red_at]) == RED
    assert sum(found.getpixel(spot) == RED for spot in spots.values()) <= 3


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("odd metadata")

    _half_red().save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == RED


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    _half_red().quantize(2).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as raw:
        assert raw.mode == "P"
    found = read_image(tmp_path / "palette.png")
    assert found.mode == "RGB"
    assert (found.getpixel((0, 0)), found.getpixel((31, 0))) == (RED, (0, 0, 255))


def test_a_palette_with_a_transparent_colour_lies_over_white(tmp_path: Path) -> None:
    image = _half_red().quantize(2)
    image.save(tmp_path / "p.png", transparency=image.getpixel((0, 0)))
    found = read_image(tmp_path / "p.png")
    assert (found.getpixel((0, 0)), found.getpixel((31, 0))) == (WHITE, (0, 0, 255))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    found = read_image(tmp_path / "print.jpg")
    assert found.mode == "RGB"
    assert np.abs(_pixels(found).astype(int) - RED).max() <= 3


def test_16_bit_grey_is_scaled_down_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert _pixels(read_image(tmp_path / "deep.png", channels=1)).tolist() == [[0, 100, 255]]
    assert _pixels(read_image(tmp_path / "deep.png"))[0].tolist() == [[0, 0, 0], [100, 100, 100], [255, 255, 255]]


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint16)).save(tmp_path / "dark.png")
    assert _pixels(read_image(tmp_path / "dark.png", channels=1)).tolist() == [[0, 0]]


def test_32_bit_integers_and_floats_are_read_on_their_own_scale() -> None:
    eight_bit = Image.fromarray(np.array([[0, 200]], dtype=np.int32))
    assert _pixels(to_channels(eight_bit, 1)).tolist() == [[0, 200]]
    floats = Image.fromarray(np.array([[0, 255, 510, np.nan, -3]], dtype=np.float32))
    assert _pixels(to_channels(floats, 1)).tolist() == [[0, 63, 127, 0, 0]]
    shares = Image.fromarray(np.array([[0, 0.5, 1, np.nan, -0.01]], dtype=np.float32))
    assert _pixels(to_channels(shares, 1)).tolist() == [[0, 127, 255, 0, 0]]


def test_the_transparent_grey_of_16_bits_lies_over_white() -> None:
    image = Image.fromarray(np.array([[0, 500, 32896]], dtype=np.uint16))
    image.info["transparency"] = 500
    assert _pixels(to_channels(image, 1)).tolist() == [[0, 255, 128]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    black = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    black.putpixel((1, 0), (0, 0, 0, 0))
    black.putpixel((2, 0), (0, 0, 0, 128))
    black.convert(mode).save(tmp_path / "clear.png")
    for channels in (1, 3):
        found = _pixels(read_image(tmp_path / "clear.png", channels)).reshape(3, -1)
        assert found[:, 0].tolist() == pytest.approx([0, 255, 127], abs=1)


def test_grey_is_repeated_where_colour_is_asked_for_and_colour_averaged_where_grey_is(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert _pixels(read_image(tmp_path / "grey.png", 3)).shape == (4, 4, 3)
    assert set(_pixels(read_image(tmp_path / "grey.png", 3)).ravel()) == {77}
    Image.new("RGB", (4, 4), WHITE).save(tmp_path / "white.png")
    found = read_image(tmp_path / "white.png", 1)
    assert (found.mode, found.getpixel((0, 0))) == ("L", 255)


def test_two_tone_and_animated_images_are_read(tmp_path: Path) -> None:
    Image.new("1", (4, 4), 1).save(tmp_path / "fax.tif")
    assert read_image(tmp_path / "fax.tif").getpixel((0, 0)) == WHITE
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


def _truncate(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.fixture
def broken_files(tmp_path: Path) -> list[Path]:
    for name in ("cut.jpg", "cut-progressive.jpg", "cut.png"):
        _photo(200).save(tmp_path / name, progressive="progressive" in name)
    cut = [_truncate(tmp_path / name, 0.7) for name in ("cut.jpg", "cut-progressive.jpg", "cut.png")]
    (tmp_path / "text.jpg").write_text("a note that somebody renamed")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.html.jpg").write_text("<html>404</html>")
    return [*cut, tmp_path / "text.jpg", tmp_path / "empty.png", tmp_path / "page.html.jpg"]


def test_truncated_renamed_and_empty_files_are_broken(broken_files: list[Path]) -> None:
    assert find_broken(broken_files) == broken_files


def test_reading_a_broken_file_raises_oserror_and_nothing_else(broken_files: list[Path]) -> None:
    for path in broken_files:
        with pytest.raises(OSError, match=r"."):
            read_image(path)


def test_whole_files_of_every_common_format_are_not_broken(tmp_path: Path) -> None:
    paths = [tmp_path / f"a.{ending}" for ending in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm")]
    for path in paths:
        _photo().save(path)
    # The ending says nothing: what counts is what is inside.
    png = tmp_path / "really-a-png.jpg"
    _photo().save(png, format="png")
    assert find_broken([*paths, png]) == []


def test_broken_files_come_in_the_order_they_were_given(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "cabd"]
    for path in paths:
        path.write_text("no image")
    _photo().save(paths[1])
    assert find_broken(paths) == [paths[0], paths[2], paths[3]]


def test_a_file_is_checked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    whole, check = tmp_path / "whole.png", image_io._check

    def counted(path: Path, max_pixels: int) -> Checked:
        opened.append(path.name)
        return check(path, max_pixels)

    monkeypatch.setattr(image_io, "_check", counted)
    _photo().save(whole)
    (tmp_path / "bad.png").write_text("no image")
    paths = [whole, tmp_path / "bad.png", tmp_path / "missing.png"]
    for _ in range(2):
        assert find_broken(paths) == paths[1:]
    assert opened == ["whole.png", "bad.png", "missing.png", "bad.png", "missing.png"]
    content, times = whole.read_bytes(), whole.stat()
    whole.write_bytes(content[:-40] + bytes(40))
    os.utime(whole, ns=(times.st_atime_ns, times.st_mtime_ns))  # as tools leave it that keep a file's time
    assert find_broken([whole]) == [whole]


def test_more_files_than_are_remembered_are_checked_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_MOST_KNOWN", 2)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        _photo().save(path)
    assert find_broken(paths) == []
    assert not {str(path) for path in paths} & set(image_io._known)
    paths[1].write_text("no image")
    assert find_broken(paths) == [paths[1]]


def test_an_image_of_millions_of_empty_pixels_is_refused_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    _photo().save(tmp_path / "bomb.png")
    found = check_files([tmp_path / "bomb.png"])[tmp_path / "bomb.png"]
    assert (found.digest, found.too_large) == (None, True)
    with pytest.raises(OSError, match=r"has 4,096 pixels; at most 134,217,728 are read: give --data\.max_pixels 4096"):
        read_image(tmp_path / "bomb.png")


def test_a_decoder_that_raises_anything_at_all_makes_the_file_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __enter__(self) -> None:
            raise AttributeError("a plugin's own bug")

        def __exit__(self, *_: object) -> None: ...

    _photo().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", lambda _: Failing())
    assert find_broken([tmp_path / "a.png"]) == [tmp_path / "a.png"]
    with pytest.raises(OSError, match="AttributeError"):
        read_image(tmp_path / "a.png")


def test_lab_colours_are_converted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").convert("LAB").save(tmp_path / "lab.tif")
    found = read_image(tmp_path / "lab.tif")
    assert np.abs(_pixels(found).astype(int) - RED).max() <= 10


def test_what_a_decoder_logs_stays_off_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("PIL.TiffImagePlugin")
    propagate, logging.lastResort = logging.lastResort, logging.StreamHandler()
    root_handlers = logging.getLogger().handlers[:]
    logging.getLogger().handlers = []  # as in a program that configures no logging; pytest's own would catch it
    try:
        logger.error("More samples per pixel than can be decoded: 37")
    finally:
        logging.lastResort, logging.getLogger().handlers = propagate, root_handlers
    assert capfd.readouterr().err == ""


def test_hidden_files_and_system_litter_are_no_candidates(tmp_path: Path) -> None:
    names = [".hidden.jpg", "._photo.jpg", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini"]
    for name in [*names, "photo.jpg", "Blüte 1.JPG", "notes.txt"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.jpg").mkdir()
    found = {path.name for path in tmp_path.iterdir() if is_candidate(path)}
    assert found == {"photo.jpg", "Blüte 1.JPG"}


def test_a_jpeg_too_short_for_the_pixels_that_its_header_claims_is_refused_and_an_empty_page_is_not(
    tmp_path: Path,
) -> None:
    page, lying = tmp_path / "page.jpg", tmp_path / "lying.jpg"
    Image.new("L", (1600, 1200), "white").save(page, optimize=True, progressive=True, quality=1)
    content = bytearray(page.read_bytes())
    size = content.index(b"\xff\xc2") + 5
    content[size : size + 4] = (11_000).to_bytes(2, "big") * 2
    lying.write_bytes(content)
    assert find_broken([page, lying]) == [lying]
    assert read_image(page).size == (1600, 1200)
    with pytest.raises(OSError, match="11000 x 11000 pixels"):
        read_image(lying)


def test_images_that_no_camera_took_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    import zlib

    def lying_png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            return struct.pack(">I", len(content)) + kind + content + checksum

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + body

    files = {
        "bomb.png": lying_png(60_000, 60_000),
        "below_pillows_limit.png": lying_png(13_000, 13_000),
        "lying.png": lying_png(500, 500),
        "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (100_000, 1)).save(tmp_path / "thin.png")
    Image.new("RGB", (180, 1)).save(tmp_path / "panorama.png")
    paths = sorted(tmp_path.iterdir())
    found = check_files(paths)
    assert [path.name for path in paths if found[path].digest is not None] == ["panorama.png"]
    assert {path.name for path in paths if found[path].too_large} == {
        *("bomb.png", "below_pillows_limit.png", "thin.png")
    }
    for path in paths:
        if path.name != "panorama.png":
            with pytest.raises(OSError, match=r"\w"):
                read_image(path)


def test_equal_files_have_one_digest_whatever_their_names_and_a_changed_one_another(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.png", "b.jpg", "c.png"))
    _photo().save(first)
    copy.write_bytes(first.read_bytes())
    _photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    digests = check_files([first, copy, other])
    assert digests[first] == digests[copy] != digests[other]
    first.write_bytes(other.read_bytes())
    assert check_files([first])[first] == digests[other]


def _tiff(path: Path, pixels: NDArray[np.generic], **tags: object) -> Path:
    """Write an uncompressed TIFF of any bands and kind, which Pillow does not write."""
    height, width, bands = pixels.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    entries: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (pixels.itemsize * 8,) * bands),
        259: (3, (1,)),
        262: (3, (2 if bands > 2 else 1,)),
        273: (4, (8,)),
        277: (3, (bands,)),
        278: (4, (height,)),
        279: (4, (pixels.nbytes,)),
        339: (3, (kinds[pixels.dtype.kind],) * bands),
    }
    if "extra" in tags:
        entries[338] = (3, (int(str(tags["extra"])),) * (bands - 3))
    place = 8 + pixels.nbytes
    body, table, later = pixels.tobytes(), b"", b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            table += struct.pack("<HHII", tag, kind, len(values), after + len(later))
            later += packed
        else:
            table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    content = b"II*\0" + struct.pack("<I", place) + body + struct.pack("<H", len(entries)) + table + bytes(4) + later
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("extra", [None, 0])
def test_a_fourth_band_that_no_file_calls_transparency_is_refused_by_name(tmp_path: Path, extra: int | None) -> None:
    pixels = np.full((4, 5, 4), 200, dtype=np.uint8)
    path = _tiff(tmp_path / "infrared.tif", pixels, **({} if extra is None else {"extra": extra}))
    with pytest.raises(OSError, match=r"has 4 bands, and the last is not said to be transparency; 1 or 3 are read"):
        read_image(path)
    assert _pixels(read_image(_tiff(tmp_path / "clear.tif", pixels, extra=2))).shape == (4, 5, 3)
    assert _pixels(read_image(_tiff(tmp_path / "plain.tif", pixels[..., :3].copy()))).tolist() == [[[200] * 3] * 5] * 4


def test_a_tiff_that_pillow_does_not_read_says_its_bands_and_bits(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "hyper.tif", np.zeros((4, 5, 8), dtype=np.uint16), extra=0)
    with pytest.raises(OSError, match=r"is a TIFF of 8 bands of 16 bits, which Pillow does not read; .*tifffile"):
        read_image(path)
    assert "8 bands" in check_files([path])[path].fault


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"is HEIC, .* \(pillow-heif reads it\)"),
        ("renamed.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"is HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(40), r"is JPEG XL, .* \(pillow-jxl-plugin reads it\)"),
        ("a.dcm", bytes(128) + b"DICM" + bytes(40), r"is DICOM, .* \(pydicom reads it\)"),
        ("scan.png", bytes(128) + b"DICM" + bytes(40), r"is DICOM"),
        ("a.nef", b"II*\0" + bytes(40), r"is a camera's raw file, .* \(rawpy reads it\)"),
        ("a.svg", b"<svg/>", r"is SVG"),
    ],
)
def test_a_format_that_pillow_does_not_read_is_named_with_what_reads_it(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert is_candidate(path)
    with pytest.raises(OSError, match=says):
        read_image(path)
    assert "not a whole image" not in check_files([path])[path].fault


def test_a_limit_is_said_with_its_value_and_the_flag_that_lifts_it(tmp_path: Path) -> None:
    Image.new("L", (500, 2)).save(tmp_path / "panorama.png")
    Image.fromarray(np.zeros((60, 60), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name, most, counted in (("panorama.png", 2**27, 167_772_160), ("deep.png", 10_000, 14_400)):
        path = tmp_path / name
        says = rf"pixels, which count as {counted:,}; at most {most:,} are read: give --data\.max_pixels {counted}"
        with pytest.raises(OSError, match=says):
            read_image(path, max_pixels=most)
        assert find_broken([path], most) == []  # an image, whatever its size
        assert read_image(path, max_pixels=counted).mode == "RGB"


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [
        (0, 4012, "0-4095"),
        (0, 250, "0-255"),
        (0, 300, "0-1023"),
        (12, 40_000, "0-65535"),
        (0, 1.02, "0-1"),
        (-0.01, 0.98, "0-1"),
        (0, 0.7, "0-1"),
        (-1, 1, "-1-1"),
        (-1024, 3071, "-1024-3071"),
        (0, 3, "0-3"),
        (0, 2e5, "0-200000"),
        (0, 0, "0-255"),
        (0, 5e-8, "0-0.00000005"),
        (-5, -5, "-5--4"),
        (-1e9, 3e38, "0-3" + 38 * "0"),
        (-1e38, 3e38, "-1" + 38 * "0" + "-3" + 38 * "0"),
    ],
)
def test_the_range_of_many_images_goes_by_their_smallest_and_largest_pixel(
    low: float, high: float, chosen: str
) -> None:
    assert choose_range(low, high) == chosen
    bottom, top = image_io._limits_of(chosen) or (0.0, 0.0)
    assert bottom < top
    white = min(255, int((np.float32(high) - bottom) / (top - bottom) * 255))  # 255 only where the range ends there
    assert _pixels(to_channels(Image.new("F", (1, 1), high), 1, chosen)).tolist() == [[max(0, white)]]
