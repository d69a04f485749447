import contextlib
import io
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from toolkit.data import (
    decode,
    encode_h264,
    load_clips,
    load_photos,
    motion_vectors,
    read_compressed,
    video,
)
from toolkit.data.motion_vectors import VECTOR, rasterize_mvs
from toolkit.data.store import DataError

STEP = (2, -1)
"""How far the picture of `panned` moves in a frame: x to the right, y down."""


@pytest.fixture(scope="module")
def panned():
    """30 frames of 96×128 of a photograph that moves by `STEP`."""
    tile = load_photos().images[30].permute(1, 2, 0).numpy()
    starts = [(40 - STEP[1] * t, 70 - STEP[0] * t) for t in range(30)]
    return np.stack([tile[top : top + 96, left : left + 128] for top, left in starts])


@pytest.fixture(scope="module")
def mp4(panned):
    return encode_h264(panned)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b.astype(float)).mean())


def test_what_is_encoded_is_decoded(panned, mp4):
    pictures = decode(mp4)
    assert pictures.shape == (30, 3, 96, 128)
    assert psnr(pictures.permute(0, 2, 3, 1).numpy(), panned) > 32
    finer = decode(encode_h264(panned, crf=12)).permute(0, 2, 3, 1).numpy()
    assert psnr(finer, panned) > 38


def test_same_frames_give_the_same_bytes(panned, mp4):
    assert encode_h264(panned) == mp4
    assert encode_h264(torch.from_numpy(panned)) == mp4
    assert encode_h264(panned[:, :, ::-1]) != mp4


def test_keyframe_every_twelve_and_no_other_kind_than_p(mp4):
    clip = read_compressed(mp4, rgb=False, mvs=False)
    assert clip.pict_type == tuple("I" if t % 12 == 0 else "P" for t in range(30))
    assert clip.rgb is clip.mv is clip.valid is None
    assert clip.fps == 25


def test_bytes_of_frames_add_up_to_the_file(mp4):
    num_bytes = read_compressed(mp4).num_bytes
    assert num_bytes.shape == (30,)
    assert (num_bytes > 0).all()
    assert len(mp4) - 1500 < num_bytes.sum() < len(mp4)
    assert num_bytes[12] > 3 * num_bytes[11]


def test_a_path_reads_as_its_content_does(mp4, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4)
    assert torch.equal(decode(path), decode(mp4))
    assert torch.equal(decode(str(path)), decode(mp4))


def test_vectors_are_the_motion_of_the_picture(mp4):
    clip = read_compressed(mp4)
    assert clip.mv.shape == (30, 2, 12, 16)
    assert clip.valid.shape == (30, 12, 16)
    assert not clip.valid[::12].any()
    assert (clip.mv[::12] == 0).all()
    moving = [t for t in range(30) if t % 12]
    assert clip.valid[moving].float().mean() > 0.95
    for axis, step in enumerate(STEP):
        found = clip.mv[moving, axis][clip.valid[moving]]
        assert found.median() == step
        assert (found - step).abs().lt(0.5).float().mean() > 0.95


def test_pictures_may_be_made_smaller_while_vectors_keep_their_pixels(mp4):
    small = read_compressed(mp4, size=(48, 64))
    assert small.rgb.shape == (30, 3, 48, 64)
    assert torch.equal(small.mv, read_compressed(mp4).mv)
    halved = torch.nn.functional.avg_pool2d(decode(mp4).float(), 2)
    assert (small.rgb.float() - halved).abs().mean() < 2


def test_future_references_are_refused_or_dropped(panned):
    forth_and_back = encode_h264(np.concatenate([panned, panned[::-1]]), bf=2, refs=2, crf=18)
    with pytest.raises(DataError, match=r"point to a later one; refs=\"drop-future\""):
        read_compressed(forth_and_back)
    clip = read_compressed(forth_and_back, refs="drop-future")
    assert "B" in clip.pict_type
    assert (clip.num_bytes > 0).all()


def vectors_of(*rows):
    """Vectors (source, w, h, dst_x, dst_y, motion_x, motion_y) in quarters of a pixel."""
    vectors = np.zeros(len(rows), VECTOR)
    names = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y")
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        vectors[name] = column
    vectors["motion_scale"] = 4
    return vectors


def test_blocks_fill_their_cells_with_forward_motion():
    blocks = vectors_of(
        (-1, 16, 16, 8, 8, -7, 0), (-1, 16, 8, 24, 4, 4, -8), (-1, 8, 8, 20, 12, 0, 1)
    )
    mv, valid = rasterize_mvs([blocks[:0], blocks], 16, 32)
    assert not valid[0].any()
    assert mv[1, 0].tolist() == [[1.75, 1.75, -1, -1], [1.75, 1.75, 0, 0]]
    assert mv[1, 1].tolist() == [[0, 0, 2, 2], [0, 0, -0.25, 0]]
    assert valid[1].tolist() == [[True] * 4, [True, True, True, False]]


def test_blocks_that_leave_the_frame_are_cut_off():
    mv, valid = rasterize_mvs([vectors_of((-1, 16, 16, 24, 8, 4, 4))], 12, 28)
    assert mv.shape == (1, 2, 2, 4)
    assert valid[0].tolist() == [[False, False, True, True]] * 2


def random_blocks(rng):
    """Half of the macroblocks of a frame of 72×56, each in blocks of one of four shapes."""
    rows = []
    for left, top in np.ndindex(5, 4):
        w, h = [(16, 16), (16, 8), (8, 16), (8, 8)][rng.integers(4)]
        for x, y in np.ndindex(16 // w, 16 // h) if rng.random() < 0.5 else ():
            middle = 16 * left + x * w + w // 2, 16 * top + y * h + h // 2
            rows.append((-1, w, h, *middle, *rng.integers(-40, 40, 2)))
    return vectors_of(*rows)


@pytest.mark.parametrize("grid", [4, 8, 16, 5])
def test_rasters_equal_a_loop_over_cells(grid):
    rng = np.random.default_rng(grid)
    frames = [random_blocks(rng) for _ in range(3)]
    mv, valid = rasterize_mvs(frames, 56, 72, grid)
    for time, blocks in enumerate(frames):
        for row, column in np.ndindex(mv.shape[2:]):
            x, y = (column + 0.5) * grid, (row + 0.5) * grid
            hit = [
                (-one["motion_x"] / 4, -one["motion_y"] / 4)
                for one in blocks
                if 0 <= x - (one["dst_x"] - one["w"] // 2) < one["w"]
                and 0 <= y - (one["dst_y"] - one["h"] // 2) < one["h"]
            ]
            assert bool(valid[time, row, column]) == bool(hit)
            assert tuple(mv[time, :, row, column].tolist()) == (hit[0] if hit else (0, 0))


def test_h264s_own_blocks_and_the_general_way_give_the_same_bits(mp4):
    """Also where blocks of 16 stick out of a frame whose sides are 12 and 20."""
    rng = np.random.default_rng(5)
    frames = [random_blocks(rng) for _ in range(2 * motion_vectors.CHUNK + 1)]
    for height, width in ((56, 72), (64, 80), (52, 76)):
        fast = rasterize_mvs(frames, height, width)
        maps = motion_vectors.empty_maps(len(frames), height, width, 8)
        every = np.concatenate(frames)
        frame = np.repeat(np.arange(len(frames)), [len(some) for some in frames])
        motion_vectors._fill_blocks(every, frame, 8, *maps)
        for one, other in zip(fast, maps, strict=True):
            assert one.numpy().tobytes() == other.tobytes()


def test_vectors_in_other_units_or_sizes_take_the_general_way():
    eighths = vectors_of((-1, 8, 8, 4, 4, 3, 0))
    eighths["motion_scale"] = 8
    assert rasterize_mvs([eighths], 8, 8)[0].flatten().tolist() == [-0.375, 0]
    odd = vectors_of((-1, 4, 4, 6, 6, 4, 0), (-1, 8, 8, 12, 4, 4, 8))
    mv, valid = rasterize_mvs([odd], 8, 16)
    assert valid.tolist() == [[[True, True]]]
    assert mv[0].tolist() == [[[-1, -1]], [[0, -2]]]


def test_leaving_pictures_out_changes_no_vector(mp4):
    with_rgb, without = read_compressed(mp4), read_compressed(mp4, rgb=False)
    assert torch.equal(with_rgb.mv, without.mv)
    assert torch.equal(with_rgb.valid, without.valid)
    assert without.rgb is None


def test_no_frames_make_empty_maps():
    mv, valid = rasterize_mvs([], 16, 16)
    assert mv.shape == (0, 2, 2, 2)
    assert valid.shape == (0, 2, 2)


def test_real_clips_have_as_many_vectors_as_other_readers_count():
    clip = load_clips()["bigbuckbunny"]
    with video._opened(clip.path, True) as (container, stream):
        counts = [len(video._vectors(one, "past")) for one, _ in video._frames(container, stream)]
    assert len(counts) == clip.frames
    assert sum(counts) == 528_955  # what motion-vector-extractor 2.0 finds in this file


@pytest.mark.parametrize("name", ["bikes", "bigbuckbunny", "carphone_pristine"])
def test_real_clips_are_read_whole(name):
    clip = load_clips()[name]
    read = read_compressed(clip.path, refs="drop-future", size=(36, 64))
    assert len(read.rgb) == len(read.mv) == len(read.pict_type) == clip.frames
    assert read.mv.shape[2:] == (-(-clip.height // 8), -(-clip.width // 8))
    assert read.pict_type[0] == "I"
    assert read.fps == pytest.approx(clip.fps, rel=1e-5)


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("cut", [0, 40, 600, -300])
def test_files_cut_short_are_refused(mp4, cut):
    with pytest.raises(DataError, match=r"damaged|no frames"):
        read_compressed(mp4[:cut])


def test_damage_inside_is_refused(mp4):
    middle = len(mp4) // 3
    with pytest.raises(DataError, match=r"damaged|could be decoded"):
        read_compressed(mp4[:middle] + b"\xff" * 200 + mp4[middle + 200 :])


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_ends_in_another_error(mp4, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(mp4)
    for place in rng.integers(0, len(mp4), 20):
        content[place] = rng.integers(256)
    with contextlib.suppress(DataError):
        assert decode(bytes(content)).shape[0] <= video.MAX_FRAMES


@pytest.mark.parametrize("content", [b"RIFF....AVI LIST", b"#EXTM3U\nhttp://a.example/1.ts\n"])
def test_other_formats_are_refused(content):
    with pytest.raises(DataError, match="no MP4 file"):
        read_compressed(content)


def test_addresses_are_not_opened():
    with pytest.raises(FileNotFoundError):
        read_compressed("http://a.example/clip.mp4")


def test_sound_alone_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 16_000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video stream"):
        read_compressed(file.getvalue())


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_FILE", 1000, r"bytes; at most 1,000 are read"),
        ("MAX_FRAMES", 29, "30 frames; at most 29"),
        ("MAX_PIXELS", 96 * 128 - 1, "12,288 pixels a frame; at most 12,287"),
        ("MAX_DECODED", 10**6, "1,105,920 bytes of pictures; at most 1,000,000"),
    ],
)
def test_limits_are_checked_before_anything_is_decoded(mp4, monkeypatch, limit, value, message):
    monkeypatch.setattr(video, limit, value)
    monkeypatch.setattr(video, "_frames", None)
    with pytest.raises(DataError, match=message):
        read_compressed(mp4)


def frames_of(sizes, corrupt=False, declared=None):
    """What `_frames` makes of a made-up stream, one frame a packet."""
    shown = [
        SimpleNamespace(height=h, width=w, pts=t, is_corrupt=corrupt)
        for t, (h, w) in enumerate(sizes)
    ]
    packets = [SimpleNamespace(size=9, pts=one.pts, decode=lambda one=one: [one]) for one in shown]
    container = SimpleNamespace(demux=lambda stream: packets)
    stream = SimpleNamespace(height=8, width=8, frames=declared or len(sizes))
    return list(video._frames(container, stream))


def test_frames_must_keep_their_size_and_number():
    assert len(frames_of([(8, 8), (8, 8)])) == 2
    with pytest.raises(DataError, match="a frame of 6×8 after 8×8"):
        frames_of([(8, 8), (8, 6)])
    with pytest.raises(DataError, match="frame 0 is damaged"):
        frames_of([(8, 8)], corrupt=True)
    with pytest.raises(DataError, match="more than the 1 frames"):
        frames_of([(8, 8), (8, 8)], declared=1)
    with pytest.raises(DataError, match="2 of 3 frames"):
        frames_of([(8, 8), (8, 8)], declared=3)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (np.zeros((2, 15, 16, 3), np.uint8), ValueError, "both sides must be even, got 15×16"),
        (np.zeros((0, 16, 16, 3), np.uint8), ValueError, "must have shape"),
    ],
)
def test_frames_that_h264_cannot_hold_are_refused(frames, error, message):
    with pytest.raises(error, match=message):
        encode_h264(frames)


def test_wrong_options_are_refused(panned, mp4):
    with pytest.raises(ValueError, match="libx264 has no option speed"):
        encode_h264(panned, speed="high")
    with pytest.raises(ValueError, match=r"libx264 refuses .*'preset': 'quick'"):
        encode_h264(panned, preset="quick")
    with pytest.raises(ValueError, match="grid must be at least 1"):
        read_compressed(mp4, grid=0)
    with pytest.raises(ValueError, match="size must be height, width"):
        read_compressed(mp4, size=(0, 16))
