"""Files of weights: matching files are loaded, others are refused with the file and the first name that differs."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.backbones._shared import fill, image_side
from peftbench.errors import RequestError, WeightsError
from peftbench.models.hub import find_weights


def small(depth: int = 2, side: int = 32, width: int = 16) -> VisionTransformer:
    return VisionTransformer(img_size=side, patch_size=8, embed_dim=width, depth=depth, num_heads=2, num_classes=0)


def tensors(vit: VisionTransformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in vit.state_dict().items()}


def assert_equal(vit: VisionTransformer, expected: dict[str, Tensor]) -> None:
    found = tensors(vit)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_a_loaded_network_computes_the_same(file: Path) -> None:
    one, two, x = small(), small(), torch.randn(1, 3, 32, 32)
    save_file(tensors(one), file)
    fill(two, file)
    assert torch.equal(one(x), two(x))


def test_half_precision_files_become_float32(file: Path) -> None:
    save_file({name: tensor.half() for name, tensor in tensors(small()).items()}, file)
    vit = small()
    fill(vit, file)
    assert {p.dtype for p in vit.parameters()} == {torch.float32}


def test_a_classifier_in_the_file_is_left_out(file: Path) -> None:
    one, two = small(), small()
    save_file(tensors(one) | {"head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}, file)
    fill(two, file)
    assert_equal(two, tensors(one))


def test_the_position_embedding_is_resampled_to_the_image_size(file: Path) -> None:
    one, two = small(side=32), small(side=48)
    save_file(tensors(one), file)
    fill(two, file)
    before, after = tensors(one)["pos_embed"], tensors(two)["pos_embed"]
    assert torch.equal(after[:, 0], before[:, 0])  # the class token keeps its own
    assert not torch.equal(after[:, 1:17], before[:, 1:])


def test_patches_of_another_size_are_refused(file: Path) -> None:
    """timm's filter would resample the kernel to one that was never pretrained."""
    of_four = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    save_file(tensors(of_four), file)
    with pytest.raises(WeightsError, match="its patches are 4 x 4 px, but 8 x 8 px are needed"):
        fill(small(), file)


def test_depth_takes_the_first_blocks_of_a_deeper_file(file: Path) -> None:
    deep, shallow = small(depth=3), small(depth=2)
    save_file(tensors(deep), file)
    fill(shallow, file, depth=2)
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(shallow.get_parameter(name), deep.get_parameter(name))


def test_a_deeper_file_is_refused_unless_depth_was_asked_for(file: Path) -> None:
    save_file(tensors(small(depth=3)), file)
    with pytest.raises(WeightsError, match=r"weights\.safetensors .*unexpected: blocks\.2\."):
        fill(small(depth=2), file)


def test_a_file_that_lacks_a_tensor_is_refused_by_name(file: Path) -> None:
    content = tensors(small())
    del content["norm.weight"]
    save_file(content, file)
    with pytest.raises(WeightsError, match=r"weights\.safetensors .*missing: norm\.weight"):
        fill(small(), file)


def test_a_file_of_another_width_is_refused_with_both_shapes(file: Path) -> None:
    save_file(tensors(small(width=32)), file)
    with pytest.raises(WeightsError, match=r"cls_token has shape \(1, 1, 32\) instead of \(1, 1, 16\)"):
        fill(small(), file)


def test_torch_files_are_read_without_running_code(tmp_path: Path) -> None:
    one, two = small(), small()
    torch.save({"state_dict": one.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    fill(two, tmp_path / "weights.pth")
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("write", [torch.save, lambda what, to: to.write_bytes(pickle.dumps(what))])
def test_a_pickle_is_refused_and_its_code_not_run(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write({"cls_token": Trap(tmp_path / "mark")}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"weights\.pt is refused"):
        fill(small(), tmp_path / "weights.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (b"", "nothing"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n", "an HTML page"),
    ],
)
def test_a_file_of_other_content_is_refused_by_what_it_holds(
    name: str, content: bytes, holds: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} is not a file of weights but holds {holds}"):
        fill(small(), tmp_path / name)


def saved(vit: VisionTransformer, file: Path) -> bytes:
    """Return the content of a file of weights in the format of its name; `old.pt` is no ZIP archive."""
    if file.suffix == ".safetensors":
        save_file(vit.state_dict(), file)
    else:
        torch.save(vit.state_dict(), file, _use_new_zipfile_serialization=file.name != "old.pt")
    return file.read_bytes()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "old.pt"])
def test_a_cut_file_of_weights_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    file, vit, draw = tmp_path / name, small(), np.random.default_rng(0)
    whole, before = saved(small(), file), tensors(vit)
    for at in [0, 1, len(whole) - 1, *draw.integers(len(whole), size=20)]:
        file.write_bytes(whole[: int(at)])
        with pytest.raises(WeightsError, match=name):
            fill(vit, file)
    assert_equal(vit, before)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "old.pt"])
def test_a_file_with_a_changed_bit_is_refused_or_loads_finite_weights(name: str, tmp_path: Path) -> None:
    file, one, draw = tmp_path / name, small(), np.random.default_rng(0)
    whole, refused = saved(one, file), 0
    for i in range(40):
        damaged, vit = bytearray(whole), small()
        damaged[int(draw.integers(len(whole) if i % 2 else min(4000, len(whole))))] ^= 1 << int(draw.integers(8))
        file.write_bytes(bytes(damaged))
        before = tensors(vit)
        try:
            fill(vit, file)
        except WeightsError:
            refused += 1
            assert_equal(vit, before)
        else:
            found = tensors(vit)
            assert all(tensor.isfinite().all() for tensor in found.values())
            assert sum(not torch.equal(found[key], tensor) for key, tensor in tensors(one).items()) <= 1
    assert 0 < refused < 40


@pytest.mark.parametrize(
    ("value", "reason"),
    [("sparse", "has a sparse layout"), ("meta", "has no values")],
)
def test_weights_without_dense_values_are_refused(value: str, reason: str, tmp_path: Path) -> None:
    tensors = small().state_dict()
    name = "blocks.0.attn.proj.weight"
    tensors[name] = tensors[name].to_sparse() if value == "sparse" else tensors[name].to("meta")
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=f"{name} {reason}"):
        fill(small(), tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "NaN or infinite"), (math.inf, "NaN or infinite"), (None, "has type int8")]
)
def test_values_that_are_no_weights_are_refused(value: float | None, reason: str, file: Path) -> None:
    tensors = small().state_dict()
    name = "blocks.0.attn.proj.weight"
    tensors[name] = tensors[name].to(torch.int8) if value is None else tensors[name].fill_(value)
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=rf"{name} .*{reason}"):
        fill(small(), file)


def test_a_file_of_something_else_is_refused(file: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=r"missing: cls_token .* lm_head\.weight"):
        fill(small(), file)


def test_a_file_that_was_named_but_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--weights"):
        find_weights(tmp_path / "none.safetensors", "own", tmp_path / "own.safetensors", None)


def test_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"No weights of own at .*own\.safetensors\. .* --weights FILE"):
        find_weights(None, "own", tmp_path / "own.safetensors", None)


def test_an_image_size_that_patches_do_not_fill_is_refused_with_the_near_ones() -> None:
    with pytest.raises(RequestError, match=r"multiple of the patch size 14 px, got 100\. Use 98 or 112"):
        image_side(100, None, 224, 14)


def test_two_different_image_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match=r"--image-size 56 .* img_size=112"):
        image_side(56, 112, 224, 14)


def test_the_image_size_is_the_asked_or_the_written_or_the_usual_one() -> None:
    assert [image_side(56, None, 224, 14), image_side(None, 112, 224, 14), image_side(None, None, 224, 14)] == [
        56,
        112,
        224,
    ]
