"""Photo files as users have them, good and bad, made anew for each test."""

import struct
import zlib
from pathlib import Path

from PIL import Image

ORIENTATION = 0x0112


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """A gradient, so that no two corners are equal."""
    red = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, red.rotate(180), Image.new("L", (width, height), 90)))


def text_named_jpg(folder: Path) -> Path:
    path = folder / "notes.jpg"
    path.write_text("milk, eggs, bread\n")
    return path


def truncated_jpeg(folder: Path) -> Path:
    path = folder / "truncated.jpg"
    picture(400, 300).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def bomb_png(folder: Path, side: int = 13_000) -> Path:
    """A black square of 169 megapixels in about 20 kB."""
    rows = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path = folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def animated_gif(folder: Path) -> Path:
    path = folder / "wave.gif"
    picture().save(path, save_all=True, append_images=[picture().rotate(90)])
    return path


def animated_webp(folder: Path) -> Path:
    path = folder / "wave.webp"
    picture().save(path, save_all=True, append_images=[picture().rotate(90)])
    return path


def cmyk_jpeg(folder: Path) -> Path:
    path = folder / "print.jpg"
    picture().convert("CMYK").save(path)
    return path


def sideways_jpeg(folder: Path) -> Path:
    """96 x 64 as stored, 64 x 96 as meant."""
    path = folder / "sideways.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(96, 64).save(path, exif=exif)
    return path


def mpo_named_jpg(folder: Path) -> Path:
    """Two pictures in one file under .jpg, as phones write them."""
    path = folder / "phone.jpg"
    picture().save(path, format="MPO", save_all=True, append_images=[picture().rotate(90)])
    return path


def heic(folder: Path) -> Path:
    """The beginning of a HEIC file, which is all that a reader without the extra looks at."""
    path = folder / "IMG_0001.HEIC"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + b"\0\0\0\0mif1heic" + b"\0" * 64)
    return path


def tiny_png(folder: Path) -> Path:
    path = folder / "icon.png"
    picture(16, 16).save(path)
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.jpg"
    path.touch()
    return path


def mask(size: tuple[int, int] = (64, 64), white: tuple[int, int, int, int] = (16, 16, 48, 48)) -> Image.Image:
    """Black, with a white box from left, upper to right, lower."""
    image = Image.new("L", size)
    image.paste(255, white)
    return image


def good_photos(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:02d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        picture(64 + number, 64).save(path)
    return paths
