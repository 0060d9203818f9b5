"""The readers of files, fed what atheris makes up to reach lines that nothing reached yet: `nox -s atheris`.

    python -m tests.fuzz_atheris [TARGET ...] [options of libFuzzer] [a file that broke the target, to try it again]

Without a target, all take their turns. What breaks one is written into a file `crash-...`; the others still run.
"""

from __future__ import annotations

import gzip
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import atheris  # pyright: ignore[reportMissingModuleSource] - only its session installs it
from pydantic import TypeAdapter

CODE = ["peftbench", "tarfile", "tomllib", "zipfile"]
with atheris.instrument_imports(include=CODE):  # pyright: ignore[reportAttributeAccessIssue] - its stubs lack it
    import tarfile

    from peftbench.cli.status import describe
    from peftbench.core import catalogue_files
    from peftbench.data import audit, pixel_cache
    from peftbench.errors import CatalogueError, DeltaError, StoreError
    from peftbench.models import delta
    from peftbench.results.store import Store
    from peftbench.storage import checked_json
    from peftbench.storage.checked_tensors import cached
    from tests import test_fuzz, test_fuzz_files
    from tests.data import test_pixel_cache
    from tests.fuzzing import fresh, or_refused
    from tests.images import SMALL
    from tests.records import Fake
    from tests.results import test_damage

ROOT = Path(__file__).parents[1]
LONGER = 1000  # bytes, than what is sound
FORK = multiprocessing.get_context("fork")
Check = Callable[[bytes], None]
Target = tuple[Check, Sequence[bytes]]  # what must hold of a file of any bytes, and sound bytes to begin with

# --- what a user writes ----------------------------------------------------------------------------------------------


def study(home: Path) -> Target:
    patch("peftbench.core.spec.TypeAdapter", cache(TypeAdapter)).start()  # building one takes longer than all the rest
    names = {"methods": ["lora[r=4,sites=qkv+proj]", "bitfit"], "datasets": ["folder:a/b"], "ratios": ["1%", "100k", 9]}
    sizes = {"shots": [1, 5], "seeds": [0, 1], "splits": ["official"], "image_size": 64, "steps": 9, "lr": 1e-3}
    words = {"train_share": ["5%"], "backbone": "timm:a.b[depth=8]@random", "precision": "bf16", "baselines": False}
    sound = [test_fuzz.told(names | sizes), test_fuzz.told(names | words | {"tune": 4})]
    return lambda content: test_fuzz.assert_a_study_or_a_sentence(home / "study.toml", content), sound


def entry(home: Path) -> Target:
    file = home / "methods" / "mine.toml"
    file.parent.mkdir()

    def check(content: bytes) -> None:
        test_fuzz.assert_an_entry_or_a_sentence(file, content)
        with chdir(home), or_refused(CatalogueError):
            catalogue_files.method_variant("mine")

    own = test_fuzz.told({"title": "mine", "path": "a.csv", "group": "(.*)_", "classes": ["a"], "task": "multi_label"})
    ours = [(ROOT / name).read_bytes() for name in ("datasets/chest_xray.toml", "methods/bitfit.toml")]
    return check, [own, test_fuzz.told({"base": "lora", "r": 4, "sites": ["qkv"]}), *ours]


def table(home: Path) -> Target:
    file = test_fuzz.with_images(home) / "table.csv"
    plain = "image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(12))
    parted = 'image;label;split;group\r\n"0.png";a;train;0\r\n1.png;b;train;1\r\n2.png;a;val;2\r\n3.png;b;test;3\r\n'
    sound = [plain.encode(), parted.encode("utf-8-sig")]
    return lambda content: test_fuzz.assert_loads_or_refuses(file, content), sound


class Whatever:
    """Instead of the checksums of a header, for which nearly all changes would be refused unread."""

    def __contains__(self, checksum: object) -> bool:
        return True


def tar(home: Path) -> Target:
    lists = [[("b/a.txt", kind)] for kind in test_fuzz_files.KINDS] + [[("x" * 300, tarfile.REGTYPE)]]
    sound = [gzip.decompress(test_fuzz_files.tarred(members))[:2048] for members in lists]  # the rest is empty
    patch("tarfile.calc_chksums", lambda _: Whatever()).start()
    return within(home, "set.tar"), [test_fuzz_files.SOUND_TAR, *sound]


def packed(home: Path) -> Target:
    sound = test_fuzz_files.SOUND_ZIP
    return within(home, "set.zip"), [sound, test_fuzz_files.locked(sound)]


def within(home: Path, name: str) -> Check:
    def check(content: bytes) -> None:
        folder = fresh(home)
        test_fuzz_files.assert_stays_within(folder, name, content)
        shutil.rmtree(folder)

    return check


# --- what peftbench wrote --------------------------------------------------------------------------------------------


def record(home: Path) -> Target:
    result = test_damage.stored(home)

    def check() -> None:
        with or_refused(StoreError):
            read = Store(result.folder.parents[1]).job("abc").record()
            assert read == result.record or (read and not read.seal)

    return replacing(result.folder / "record.json", check)


def predictions(home: Path) -> Target:
    result = Fake(images=6).write(home)  # its record knows no digest, for which everything would be refused

    def check() -> None:
        with or_refused(StoreError):
            result.predictions(result.record.rule)

    return replacing(result.folder / "predictions.npz", check)


def tensors(home: Path) -> Target:
    file = home / "key" / "squares_all.safetensors"

    def check() -> None:
        assert test_damage.same(cached(file, test_damage.Maker()), test_damage.TENSORS)

    check()
    return replacing(file, check)


def checkpoint(home: Path) -> Target:
    one = test_damage.checkpoint(home)

    def check() -> None:
        read = one.read()
        assert read is None or test_damage.same(read[1], test_damage.TENSORS)

    return replacing(one.file, check)


def delta_json(home: Path) -> Target:
    return of_delta(home, "delta.json")


def delta_safetensors(home: Path) -> Target:
    return of_delta(home, "delta.safetensors")


def of_delta(home: Path, name: str) -> Target:
    test_damage.write_delta(home)
    before = delta.read(home, test_damage.BASE)

    def check() -> None:
        with or_refused(DeltaError):
            after = delta.read(home, test_damage.BASE)
            assert test_damage.same(after[1], before[1])
            assert after[2] == before[2]

    return replacing(home / name, check)


def parts(home: Path) -> Target:
    (home / "pixels.npy").write_bytes(b"abc")
    pixel_cache.seal(home, {"facts": "é"})
    before = pixel_cache.read_manifest(home)

    def check() -> None:
        assert not pixel_cache.is_whole(home) or pixel_cache.read_manifest(home) == before

    return replacing(home / "parts.json", check)


def broken(home: Path) -> Target:
    images = test_pixel_cache.break_some(home / "images")
    positions = {"train": 1, "val": 1, "test": 2}
    known = {part: {position: "damaged"} for part, position in positions.items()}
    checked_json.write(home / "broken.json", {part: {str(position): "damaged"} for part, position in positions.items()})

    def check() -> None:
        assert pixel_cache.known_broken(home, images, SMALL) in ({}, known)

    return replacing(home / "broken.json", check)


def counts(home: Path) -> Target:
    audit.save_counts(home, "abc", dict.fromkeys(audit.DESCRIPTIONS, 3))
    return replacing(audit.counts_file(home, "abc"), lambda: audit.warning(audit.load_counts(home, "abc")))


def job(home: Path) -> Target:
    store = Store(home)
    store.job("abc").path.mkdir(parents=True)
    store.job("abc").write_request({"alias": "", "method": "lora", "dataset": "busi", "seed": 0})
    return replacing(store.job("abc").request_file, lambda: describe(store.job("abc"), "interrupted", None).row)


def replacing(file: Path, check: Callable[[], object]) -> Target:
    def replace(content: bytes) -> None:
        file.write_bytes(content)
        check()

    return replace, [file.read_bytes()]


USERS = (study, entry, table, tar, packed)
OURS = (record, predictions, tensors, checkpoint, delta_json, delta_safetensors, parts, broken, counts, job)
TARGETS = {target.__name__: target for target in USERS + OURS}

# --- the program -----------------------------------------------------------------------------------------------------


def main() -> None:
    words = sys.argv[1:]
    failed = [name for name in [w for w in words if w in TARGETS] or TARGETS if not holds(name, words)]
    sys.exit(f"Broken: {', '.join(failed)}." if failed else 0)


def holds(name: str, words: Sequence[str]) -> bool:
    """In a process of its own, as libFuzzer ends the one that it runs in."""
    print(f"--- {name}", flush=True)  # noqa: T201 - what follows is libFuzzer's
    with TemporaryDirectory() as home:
        process = FORK.Process(target=fuzz, args=(name, Path(home), [w for w in words if w not in TARGETS]))
        process.start()
        process.join()
    return process.exitcode == 0


def fuzz(name: str, home: Path, words: Sequence[str]) -> None:
    files, corpus = home / "files", home / "corpus"
    files.mkdir()
    corpus.mkdir()
    check, sound = TARGETS[name](files)
    for number, content in enumerate(sound):
        check(content)
        (corpus / f"{number}").write_bytes(content)
    inputs = [] if any(not word.startswith("-") for word in words) else [f"{corpus}"]
    atheris.Setup([name, f"-max_len={LONGER + max(map(len, sound))}", *words, *inputs], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
