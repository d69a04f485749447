"""H.264 in and out of memory: encode frames, decode them, read what the codec knows of motion.

A file may come from anyone. So only MP4 is opened, from bytes or from a plain file and never from
an address; its size, its number of frames and their pixels are limited; and damage is an error,
not a grey frame.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.codec.context import Flags2
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from toolkit.data.motion_vectors import CHUNK, VECTOR, chosen, empty_maps, fill_maps
from toolkit.data.store import DataError

ENCODING: dict[str, Any] = {
    "preset": "veryfast",
    "crf": 23,
    "g": 12,  # frames from keyframe to keyframe
    "bf": 0,  # no B-frames: every vector points to the past
    "refs": 1,  # and to the frame before, so that vectors are pixels per frame
    "weightp": 0,
    "sc_threshold": 0,  # no further keyframes where the picture changes
    # with vector code, one clip in some twenty had other bytes in the next run (libx264 165)
    "x264-params": "asm=0",
}
"""Options of libx264 that `encode_h264` uses where it is not told otherwise."""

MAX_FILE = 2**28
"""Bytes of a file."""
MAX_FRAMES = 20_000
MAX_PIXELS = 2**22
"""Of one frame; 1920 × 1080 is half of it."""
MAX_DECODED = 2**31
"""Bytes of all decoded pictures of one file."""


@dataclass(frozen=True)
class CompressedClip:
    """What is in a compressed file: pictures, and how the codec made them."""

    rgb: UInt8[Tensor, "time 3 height width"] | None
    mv: Float32[Tensor, "time 2 rows columns"] | None
    """Forward motion since the reference frame in pixels of the file: x to the right, y down.
    Without B-frames and with one reference that is pixels per frame. Keyframes are all zero."""
    valid: Bool[Tensor, "time rows columns"] | None
    """Where the codec stored a vector. An intra block has none, which is not the same as zero."""
    pict_type: tuple[str, ...]
    """`"I"`, `"P"` or `"B"` of each frame."""
    num_bytes: Int64[Tensor, "time"]
    """Of each compressed frame."""
    fps: float


def encode_h264(
    frames: UInt8[np.ndarray, "time height width 3"] | UInt8[Tensor, "time height width 3"],
    *,
    fps: int = 25,
    **options: Any,
) -> bytes:
    """Encode frames as H.264 (libx264, yuv420p, one thread) in an MP4 file, in memory.

    The same frames and options give the same bytes.

    Args:
        frames: RGB, channels last; both sides even, since colour is stored at half resolution.
        fps: frames per second.
        options: of libx264, such as `crf=30` or `preset="ultrafast"`, in place of `ENCODING`'s.

    Raises:
        TypeError: if the frames are not bytes.
        ValueError: for no frame, another shape, an odd side or an unknown option.
    """
    pixels = np.asarray(frames)
    _check_frames(pixels)
    given = {name: str(value) for name, value in (ENCODING | options).items()}
    if unknown := set(given) - _encoder_options():
        raise ValueError(f"libx264 has no option {', '.join(sorted(unknown))}")
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="mp4", container_options={"fflags": "+bitexact"}) as out:
            stream = out.add_stream("libx264", rate=Fraction(fps), options=given)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            for picture in pixels:
                out.mux(stream.encode(_frame_of(picture)))
            out.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ValueError(f"libx264 refuses {given} ({error.strerror})") from error
    return file.getvalue()


def decode(source: bytes | str | Path) -> UInt8[Tensor, "time 3 height width"]:
    """The pictures of an MP4 file. Raises as `read_compressed`."""
    rgb = read_compressed(source, mvs=False).rgb
    assert rgb is not None
    return rgb


def read_compressed(
    source: bytes | str | Path,
    *,
    grid: int = 8,
    rgb: bool = True,
    mvs: bool = True,
    refs: Literal["past", "drop-future"] = "past",
    size: tuple[int, int] | None = None,
) -> CompressedClip:
    """Read pictures, motion vectors, kinds and bytes of all frames of an MP4 file.

    The codec does not export how far away a reference frame is. A vector is pixels per frame only
    in a file with one reference and without B-frames (as `encode_h264` makes them).

    Args:
        source: the file's content or its path.
        grid: side of a cell of the motion maps, in pixels of the file.
        rgb: whether to convert the pictures.
        mvs: whether to read motion vectors.
        refs: `"past"` refuses a file in which vectors point to a later frame; `"drop-future"`
            leaves such vectors out.
        size: height, width of the pictures; by default the file's. Vectors keep the file's pixels.

    Raises:
        ValueError: for a `grid`, `refs` or `size` that is none.
        DataError: if the file is no MP4 with video, is damaged, changes its size, is larger than
            this module's limits, or points to later frames where that is refused.
    """
    _check_reading(grid, refs, size)
    with _opened(source, mvs, rgb) as (container, stream):
        height, width, fps = stream.height, stream.width, float(stream.average_rate or 0)
        pictures = _room_for(stream, size) if rgb else None
        convert = VideoReformatter()  # one for all frames: it makes its tables once
        maps = empty_maps(stream.frames, height, width, grid) if mvs else None
        vectors, kinds, num_bytes = [], [], []
        for number, (frame, length) in enumerate(_frames(container, stream)):
            kinds.append(PictureType(frame.pict_type).name)
            num_bytes.append(length)
            if pictures is not None:
                pictures[number] = _pixels(frame, convert, size)
            if maps is not None:
                vectors.append(_vectors(frame, refs))
                if len(vectors) == CHUNK or number + 1 == stream.frames:
                    now = slice(number + 1 - len(vectors), number + 1)
                    fill_maps(vectors, grid, maps[0][now], maps[1][now])
                    vectors = []
    mv, valid = (torch.from_numpy(part) for part in maps) if maps else (None, None)
    shown = None if pictures is None else torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return CompressedClip(shown, mv, valid, tuple(kinds), torch.tensor(num_bytes), fps)


@contextmanager
def _opened(source: bytes | str | Path, mvs: bool, rgb: bool = True) -> Iterator[tuple[Any, Any]]:
    """Open the video stream of a file within the limits; whatever FFmpeg says is a `DataError`."""
    if not isinstance(source, bytes):
        _check_limit("bytes", Path(source).stat().st_size, MAX_FILE)
        source = Path(source).read_bytes()
    _check_limit("bytes", len(source), MAX_FILE)
    try:
        with av.open(io.BytesIO(source), format="mp4", metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError("the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None or stream.codec_context.name != "h264":
                raise DataError("the file's video is not H.264")
            if stream.frames < 1:
                raise DataError("the file has no frames")
            _check_limit("frames", stream.frames, MAX_FRAMES)
            _check_limit("pixels a frame", stream.height * stream.width, MAX_PIXELS)
            context = stream.codec_context
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(2 * MAX_PIXELS)}
            if not rgb:  # nobody looks at the pictures: leave their block borders alone
                context.options |= {"skip_loop_filter": "all"}
            context.flags2 |= Flags2.export_mvs if mvs else 0
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(f"the video is damaged, or no MP4 file ({error.strerror})") from error


def _room_for(stream: Any, size: tuple[int, int] | None) -> np.ndarray:
    shape = (stream.frames, *(size or (stream.height, stream.width)), 3)
    _check_limit("bytes of pictures", math.prod(shape), MAX_DECODED)
    return np.empty(shape, np.uint8)


def _frames(container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
    """Every frame in the order in which they are shown, with its compressed bytes."""
    lengths: dict[int | None, int] = {}
    height, width, count = stream.height, stream.width, 0
    for packet in container.demux(stream):
        if packet.size:
            lengths[packet.pts] = packet.size
        for frame in packet.decode():
            if (frame.height, frame.width) != (height, width):
                raise DataError(f"a frame of {frame.width}×{frame.height} after {width}×{height}")
            if frame.is_corrupt:
                raise DataError(f"frame {count} is damaged")
            count += 1
            if count > stream.frames:
                raise DataError(f"more than the {stream.frames} frames that the file declares")
            yield frame, lengths.pop(frame.pts, 0)
    if count < stream.frames:
        raise DataError(f"{count} of {stream.frames} frames could be decoded")


def _vectors(frame: Any, refs: str) -> np.ndarray:
    found = frame.side_data.get("MOTION_VECTORS")
    if found is None:
        return np.empty(0, VECTOR)
    vectors = np.frombuffer(bytes(found), VECTOR)  # a copy: a view would keep the frame alive
    past = vectors["source"] < 0
    if past.all():
        return vectors
    if refs == "past":
        raise DataError(
            f"{int((~past).sum())} vectors of a frame point to a later one; "
            'refs="drop-future" leaves them out'
        )
    return chosen(vectors, past)


def _pixels(frame: Any, convert: VideoReformatter, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or (frame.height, frame.width)
    shown = convert.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
    return shown.to_ndarray()


def _frame_of(picture: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


@cache
def _encoder_options() -> frozenset[str]:
    known = av.CodecContext.create("libx264", "w").supported_options
    return frozenset(option.name for option in (*known.generic, *known.private))


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must have shape [time, height, width, 3], got {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"both sides must be even, got {frames.shape[1]}×{frames.shape[2]}")


def _check_reading(grid: int, refs: str, size: tuple[int, int] | None) -> None:
    if grid < 1:
        raise ValueError(f"grid must be at least 1 pixel, got {grid}")
    if refs not in ("past", "drop-future"):
        raise ValueError(f"refs must be 'past' or 'drop-future', got {refs!r}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be height, width in pixels, got {size}")


def _check_limit(what: str, number: int, limit: int) -> None:
    if number > limit:
        raise DataError(f"the video has {number:,} {what}; at most {limit:,} are read")
