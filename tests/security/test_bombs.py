"""Small files that claim, or unpack to, far more than they are: refused, in little time and memory."""

import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import seeds
from PIL import Image

from jaxcnn import UserError
from jaxcnn.configfile import from_json
from jaxcnn.data.images.decode import decode, read_image
from jaxcnn.data.prepare.idx import read_idx
from jaxcnn.data.prepare.tfds import _check_archives
from jaxcnn.data.sources.packed import read_manifest
from jaxcnn.safe_files import MAX_JSON, read_json
from jaxcnn.training.run_files import read_metrics
from jaxcnn.weights.files import read_state_dict

IMAGES = seeds.images()
SIDE = 65_535


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg_of(side: int, kind: str) -> bytes:
    data, marker = IMAGES[kind], b"\xff\xc2" if "progressive" in kind else b"\xff\xc0"
    at = data.index(marker) + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def webp_canvas() -> bytes:
    still = IMAGES["webp"][12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + (16_382).to_bytes(3, "little") * 2
    frame = bytes(6) + (23).to_bytes(3, "little") + (19).to_bytes(3, "little") + b"\1\0\0\0" + still
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(count: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


BOMB = zlib.compress(bytes(2**28), 9)
BOMBS = {
    "jpeg": (jpeg_of(SIDE, "jpeg"), "65535×65535 pixels: more than 100,000,000 are refused"),
    "jpeg, progressive": (jpeg_of(SIDE, "jpeg, progressive"), "more than 100,000,000"),
    "jpeg, CMYK": (jpeg_of(SIDE, "jpeg, CMYK"), "more than 100,000,000 pixels"),
    "jpeg, scans": (many_scans(5000), "scans: more than 100 are refused"),
    "png": (png(SIDE, SIDE), "more than 100,000,000 pixels"),
    "png, just above": (png(10_001, 10_000), "10001×10000 pixels: more than 100,000,000"),
    "png, 2³¹": (png(2**31 - 1, 2**31 - 1), "more than 100,000,000 pixels"),
    "gif": (IMAGES["gif"][:6] + b"\xff\xff\xff\xff" + IMAGES["gif"][10:], "more than 100,000,000 pixels"),
    "bmp": (IMAGES["bmp"][:18] + struct.pack("<ii", SIDE, SIDE) + IMAGES["bmp"][26:], "more than 100,000,000 pixels"),
    "ppm": (b"P6 65535 65535 255\n", "more than 100,000,000 pixels"),
    "webp": (webp_canvas(), "more than 100,000,000 pixels"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image of a known format"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_claims_too_much_is_refused_in_words(name):
    data, words = BOMBS[name]
    with pytest.raises(ValueError, match=words):
        decode(data, 3)


PASSED_OVER = [png(4, 4, chunk(kind, b"a\0\0" + BOMB), data=bytes(52)) for kind in (b"zTXt", b"iCCP")]


@pytest.mark.parametrize("data", PASSED_OVER)
def test_a_bomb_in_a_comment_is_passed_over(data):
    assert decode(data, 3).shape == (4, 4, 3)


READ = """
import resource, sys
from pathlib import Path
from jaxcnn.data.images.decode import decode
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes(), 3)
    except ValueError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) // 1024)
"""


def test_bombs_take_little_time_and_memory(tmp_path):
    for number, data in enumerate([*(data for data, _ in BOMBS.values()), *PASSED_OVER]):
        seeds.write(tmp_path / str(number), data)
    seeds.write(tmp_path / "pixels", png(4, 4, data=bytes(2**28)))  # more than its header says: not unpacked
    frame = IMAGES["gif"][IMAGES["gif"].rindex(b"\0,") + 1 : -1]
    seeds.write(tmp_path / "frames", IMAGES["gif"][:-1] + frame * 100_000 + b";")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 300, "MB"


def test_a_jpeg_may_have_as_many_scans_as_encoders_write():
    assert decode(many_scans(0), 3).shape == (2000, 2000, 3)


def test_a_file_that_is_none_is_refused_at_once(tmp_path):
    """A pipe would block for ever, and a device has no end."""
    pipe = tmp_path / "manifest.json"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        for read in (from_json, read_state_dict, lambda path: read_image(path, (8, 8, 3))):
            with pytest.raises(UserError, match=r"not a file|no regular file"):
                read(path)
        with pytest.raises(UserError, match="no regular file"):
            read_metrics(path)
    with pytest.raises(UserError, match="no regular file"):
        read_manifest(f"packed:{tmp_path}")


def test_a_file_larger_than_its_kind_is_refused_unread(tmp_path):
    (tmp_path / "manifest.json").touch()
    os.truncate(tmp_path / "manifest.json", 10 * 2**30)  # of holes: it takes no room
    with pytest.raises(UserError, match="10,737,418,240 bytes, more than 1,048,576"):
        from_json(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="10,737,418,240 bytes"):
        read_manifest(f"packed:{tmp_path}")
    with pytest.raises(UserError, match="10,737,418,240 bytes"):
        read_image(tmp_path / "manifest.json", (8, 8, 3))
    assert MAX_JSON < 10 * 2**30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": 1, "seed": 2}', "'seed' twice"),
        (b'{"epochs": NaN}', "NaN is no number"),
        (b'{"epochs": -Infinity}', "-Infinity is no number"),
        (b'{"data.name": "\\ud800"}', "surrogates not allowed"),
        (b'{"data.name": "\xff"}', "utf-8"),
        ('{"seed": 1}'.encode("utf-16"), "utf-8"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
)
def test_json_means_one_thing_or_nothing(tmp_path, text, words):
    path = seeds.write(tmp_path / "config.json", text)
    with pytest.raises(ValueError, match=words):
        read_json(path)
    with pytest.raises(UserError, match=rf"config\.json is not a run's config\.json: .*{words}"):
        from_json(path)


def test_what_unpacks_to_more_than_a_data_set_is_not_unpacked(tmp_path):
    packed = gzip.compress(struct.pack(">4I", 0x803, 2**22, 28, 28)) + gzip.compress(bytes(2**28))
    seeds.write(tmp_path / "t-images-idx3-ubyte.gz", packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="holds more than"):
        read_idx(tmp_path, "t")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "kB"


def test_compressed_weights_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    with pytest.raises(UserError, match="compressed entries"):
        read_state_dict(tmp_path / "weights.pth")


class Builder:
    name = "imagenet2012"


def test_an_archive_is_walked_and_nothing_of_it_written_wherever_its_members_point(tmp_path):
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.addfile(tarfile.TarInfo("../../outside"), io.BytesIO())
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    before = sorted(tmp_path.parent.rglob("*"))
    _check_archives("imagenet2012", tmp_path, Builder)
    assert sorted(tmp_path.parent.rglob("*")) == before
    header = bytearray((tmp_path / "ILSVRC2012_img_val.tar").read_bytes())
    header[124:136] = b"\x80" + b"\xff" * 11  # a size of 2⁸⁸
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])  # with its checksum right
    seeds.write(tmp_path / "ILSVRC2012_img_val.tar", bytes(header))
    with pytest.raises(UserError, match="is damaged"):
        _check_archives("imagenet2012", tmp_path, Builder)
