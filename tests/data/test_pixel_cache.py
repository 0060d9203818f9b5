"""From image files of every kind to standardized batches, by way of a cache that two processes may fill at once."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from peftbench.core.contract import Part, Splits
from peftbench.data import pixel_cache
from peftbench.data.decode import decode
from peftbench.data.pixel_cache import is_whole, open_prepared, prepare
from peftbench.errors import BrokenImagesError, DataError
from tests.images import CARD, SMALL, photo, splits

ROOT = Path(__file__).parents[2]


# --- other parts of the same images ----------------------------------------------------------------------------------


def shuffled(whole: Splits, order: Sequence[int] = (8, 0, 3, 6, 1, 7, 2, 5, 4)) -> Splits:
    """Return other parts of the same images, as another seed cuts them."""
    every = whole.train.joined(whole.val).joined(whole.test)
    return Splits(every.take(order[:4]), every.take(order[4:6]), every.take(order[6:]), "as shuffled")


def test_another_seeds_parts_copy_the_pixels_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = splits(tmp_path / "d")
    other = shuffled(whole)
    decoded = {part: decode(images, SMALL)[0] for part, images in other.parts.items()}
    prepare(CARD, whole, SMALL, tmp_path / "c")
    seen: list[int] = []

    def counted(part: Part, *_: Any, **__: Any) -> tuple[NDArray[np.uint8], dict[int, str]]:
        seen.append(len(part))
        return decode(part, SMALL)

    monkeypatch.setattr(pixel_cache, "decode", counted)
    data = prepare(CARD, other, SMALL, tmp_path / "c")
    assert sum(seen) == 0
    assert all(np.array_equal(data.pixels(part), pixels) for part, pixels in decoded.items())


def test_a_changed_image_is_decoded_and_a_damaged_entry_is_not_copied(tmp_path: Path) -> None:
    whole = splits(tmp_path / "d")
    other = shuffled(whole)
    first = prepare(CARD, whole, SMALL, tmp_path / "c")
    Image.fromarray(photo(77)).save(tmp_path / "d/4.png")
    data = prepare(CARD, other, SMALL, tmp_path / "c")
    assert all(np.array_equal(data.pixels(part), decode(images, SMALL)[0]) for part, images in other.parts.items())
    for one in (first, data):
        (one.folder / "pixels.npy").write_bytes(b"damaged")
    third = shuffled(whole, range(8, -1, -1))
    again = prepare(CARD, third, SMALL, tmp_path / "c")
    assert all(np.array_equal(again.pixels(part), decode(images, SMALL)[0]) for part, images in third.parts.items())


# --- broken images ---------------------------------------------------------------------------------------------------


def break_some(folder: Path) -> Splits:
    found = splits(folder)
    (folder / "1.png").write_bytes(b"no image")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])  # cut short
    (folder / "8.png").unlink()
    (folder / "8.png").write_bytes(b"")
    return found


def test_broken_images_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImagesError) as raised:
        prepare(CARD, break_some(tmp_path / "d"), SMALL, tmp_path / "c")
    assert str(raised.value) == (
        "Cannot decode 3 images: 1.png (not an image: text); 5.png (truncated at byte 60); 8.png (empty file). "
        "Fix or remove them, or pass --skip-broken."
    )


def test_broken_images_are_left_out_on_wish_and_that_is_noted(tmp_path: Path) -> None:
    whole = break_some(tmp_path / "d")
    data = prepare(CARD, whole, SMALL, tmp_path / "c", skip_broken=True)
    assert data.sizes == {"train": 3, "val": 1, "test": 2}
    assert data.names["train"] == ["0.png", "2.png", "3.png"]
    assert data.labels["train"].tolist() == [0, 0, 1]
    assert data.notes == (
        "a note",
        "Images left out because they cannot be decoded: 3.",
        "No image of class 'b' in val.",
    )
    assert np.array_equal(data.pixels("test")[1], photo(7).transpose(2, 0, 1))
    assert open_prepared(data.fingerprint, SMALL, tmp_path / "c").sizes == data.sizes


def test_broken_images_are_tried_again_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = break_some(tmp_path / "d")
    first = prepare(CARD, whole, SMALL, tmp_path / "c", skip_broken=True)
    tried: list[int] = []

    def watched(part: Part, *rest: Any) -> tuple[NDArray[np.uint8], dict[int, str]]:
        tried.append(len(part))
        return decode(part, *rest)

    monkeypatch.setattr(pixel_cache, "decode", watched)
    assert prepare(CARD, whole, SMALL, tmp_path / "c", skip_broken=True).folder == first.folder
    assert tried == [1, 1, 1]
    with pytest.raises(BrokenImagesError, match="Cannot decode 3 images"):
        prepare(CARD, whole, SMALL, tmp_path / "c")
    assert tried == [1, 1, 1] * 2


def test_what_opens_after_all_is_no_longer_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a reader of the format has been installed since."""
    whole, real = break_some(tmp_path / "d"), decode
    with monkeypatch.context() as patch:
        patch.setattr(
            pixel_cache,
            "decode",
            lambda part, how, out=None, tick=None: (real(part, how, out, tick)[0], {0: "a fault"}),
        )
        assert prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c", skip_broken=True).sizes["train"] == 3
    assert len(whole.train) == prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c").sizes["train"] == 4


@pytest.mark.parametrize(
    "content", [b"5", b'{"train": 1}', b'{"train": [-3]}', b'{"test": [1]}', 200_000 * b"["], ids=range(5)
)
def test_a_list_of_broken_images_that_was_changed_is_made_again(content: bytes, tmp_path: Path) -> None:
    whole = break_some(tmp_path / "d")
    with pytest.raises(BrokenImagesError):
        prepare(CARD, whole, SMALL, tmp_path / "c")
    (given,) = (tmp_path / "c").rglob("broken.json")
    given.write_bytes(content)
    with pytest.raises(BrokenImagesError, match="Cannot decode 3 images"):
        prepare(CARD, whole, SMALL, tmp_path / "c")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_that_would_be_empty_is_not_left_out(part: str, tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    for file in found.parts[part].images:
        Path(file).write_bytes(b"")
    with pytest.raises(BrokenImagesError, match=rf"--skip-broken would leave no image in {part}\. Cannot decode"):
        prepare(CARD, found, SMALL, tmp_path / "c", skip_broken=True)


def test_a_class_that_loses_its_training_images_is_refused(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    for file, label in zip(found.train.images, found.train.labels, strict=True):
        Path(file).write_bytes(b"" if label else Path(file).read_bytes())
    with pytest.raises(BrokenImagesError, match=r"Drawn: --skip-broken would leave no image in class 'b' of train"):
        prepare(CARD, found, SMALL, tmp_path / "c", skip_broken=True)


def test_where_no_image_opens_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    whole = splits(tmp_path / "d")
    for file in (tmp_path / "d").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(BrokenImagesError, match="Cannot decode 9 images"):
        prepare(CARD, whole, SMALL, tmp_path / "c", skip_broken=True)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_every_part_holds_its_own_images(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    for name, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 9))):
        assert np.array_equal(data.pixels(name), [photo(i).transpose(2, 0, 1) for i in numbers])
        assert data.names[name] == [f"{i}.png" for i in numbers]
    assert (data.card, data.rule, data.notes) == (CARD, "as drawn", ("a note",))
    assert isinstance(data.pixels("val"), np.memmap)


def test_a_part_may_be_empty(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d", (4, 0, 2)), SMALL, tmp_path / "c")
    assert data.sizes == {"train": 4, "val": 0, "test": 2}
    assert data.pixels("val").shape == (0, 3, 8, 8)
    assert np.array_equal(data.pixels("test")[1], photo(5).transpose(2, 0, 1))


def test_what_was_decoded_once_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    monkeypatch.setattr(pixel_cache, "decode", None)
    second = prepare(CARD, found, SMALL, tmp_path / "c")
    assert first.folder == second.folder
    assert np.array_equal(first.pixels("train"), second.pixels("train"))


@pytest.mark.parametrize("change", [{"size": 16}, {"interpolation": "bilinear"}, {"fit": "crop"}])
def test_another_way_of_decoding_has_a_place_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    assert prepare(CARD, found, replace(SMALL, **change), tmp_path / "c").folder != first.folder


def test_mean_and_spread_share_the_pixels(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    assert prepare(CARD, found, replace(SMALL, mean=(0.0, 0.0, 0.0)), tmp_path / "c").folder == first.folder


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    before = prepare(CARD, found, SMALL, tmp_path / "c")
    Image.fromarray(photo(99)).save(tmp_path / "d/0.png")
    after = prepare(CARD, found, SMALL, tmp_path / "c")
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.pixels("train")[0], photo(99).transpose(2, 0, 1))


def test_a_corrected_card_is_used_at_once(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    prepare(CARD, found, SMALL, tmp_path / "c")
    mended = prepare(replace(CARD, licence="CC0"), replace(found, notes=()), SMALL, tmp_path / "c")
    assert (mended.card.licence, mended.notes) == ("CC0", ())


def test_only_the_owner_may_read_names_and_pixels(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    assert stat.S_IMODE(data.folder.stat().st_mode) == 0o700


def test_decoded_images_that_are_gone_are_missed_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Run the study again"):
        open_prepared("0" * 64, SMALL, tmp_path)


def test_progress_is_reported_image_by_image(tmp_path: Path) -> None:
    given: list[tuple[int, int]] = []
    prepare(
        CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c", progress=lambda done, total: given.append((done, total))
    )
    assert given == [(4, 9), (6, 9), (9, 9)]


@pytest.mark.parametrize("name", ["pixels.npy", "parts.json"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "gone"])
def test_a_damaged_entry_is_noticed_and_decoded_again(name: str, damage: str, tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    file, whole = first.folder / name, (first.folder / name).read_bytes()
    changed = whole[:-9] if damage == "truncated" else whole[:-9] + bytes(b ^ 1 for b in whole[-9:])
    file.unlink() if damage == "gone" else file.write_bytes(changed)
    with pytest.raises(DataError, match=r"missing or damaged\. Run the study again"):
        open_prepared(first.fingerprint, SMALL, tmp_path / "c")
    again = prepare(CARD, found, SMALL, tmp_path / "c")
    assert again.folder == first.folder
    assert (again.folder / "pixels.npy").read_bytes()[-192:] == photo(8).transpose(2, 0, 1).tobytes()


def test_a_change_that_keeps_the_time_is_found_by_a_thorough_look(tmp_path: Path) -> None:
    folder = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c").folder
    file = folder / "pixels.npy"
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_whole(folder)
    assert not is_whole(folder, thorough=True)


def test_a_copied_entry_is_still_whole(tmp_path: Path) -> None:
    folder = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c").folder
    os.utime(folder / "pixels.npy", ns=(1, 1))
    assert is_whole(folder)


def test_a_process_that_died_while_decoding_leaves_nothing(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")

    def die(_done: int, _total: int) -> None:
        os._exit(9)

    child = os.fork()
    if not child:
        prepare(CARD, found, SMALL, tmp_path / "c", progress=die)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [*(tmp_path / "c/pixels").glob(".*.draft")] != []
    data = prepare(CARD, found, SMALL, tmp_path / "c")
    left = [file for file in data.folder.parent.iterdir() if file.suffix != ".lock"]
    assert [file.name for file in left if not file.name.startswith(".")] == [data.folder.name]
    assert sorted(file.suffix for file in left if file.name.startswith(".")) == [".lease", ".names"]  # of this process
    assert np.array_equal(data.pixels("val")[0], photo(4).transpose(2, 0, 1))


def test_a_full_disk_is_reported_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="make room"):
        prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system sets no room aside")
def test_room_that_others_took_meanwhile_is_missed_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="make room"):
        prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    assert [file for file in (tmp_path / "c/pixels").iterdir() if file.suffix != ".lock"] == []


def test_a_limit_on_file_sizes_is_reported_with_the_folder(tmp_path: Path) -> None:
    parts = splits(tmp_path / "d")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match=r"into .*/c/pixels/.* \(File too large; .* free\); make room"):
            prepare(CARD, parts, SMALL, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "c").rglob("pixels.npy")) == []


TWO = """
import sys
from pathlib import Path
from tests.images import CARD, SMALL, part
from peftbench.core.contract import Splits
from peftbench.data.pixel_cache import prepare
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
files = sorted(folder.iterdir())
print("ready", flush=True)
sys.stdin.readline()
data = prepare(CARD, Splits(part(files[:40]), part(files[40:50]), part(files[50:]), "x"), SMALL, cache)
print(data.folder, int(data.pixels("train").sum()), int(data.pixels("test").sum()))
"""


def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    splits(tmp_path / "d", (40, 10, 14))
    command = [sys.executable, "-c", TWO, str(tmp_path / "d"), str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    shown = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert shown[0] == shown[1] != ""
    assert [file.name for file in (tmp_path / "c/pixels").iterdir() if file.is_dir()] == [
        Path(shown[0].split()[0]).name
    ]


def test_pixels_changed_with_their_time_put_back_are_decoded_again(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    file, before = data.folder / "pixels.npy", np.array(data.pixels("test"))
    now = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes(100))
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns))
    again = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    assert np.array_equal(again.pixels("test"), before)
    assert is_whole(again.folder, thorough=True)


@pytest.mark.parametrize("text", ['{"train": 5}', '{"train": [["a"]]}', "[]"])
def test_a_list_of_broken_images_that_is_none_is_no_list(text: str, tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    (data.folder / "broken.json").write_text(text)
    assert prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c").sizes == data.sizes
