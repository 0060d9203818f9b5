"""Make `mini`: distil a large pretrained ViT into a small one, on natural images.

The student sees views of 64 px and learns to predict the teacher's tokens after its eighth, ninth and tenth block for
the same views at 112 px: both divide an image into 8 x 8 patches, so every patch token has its own target. Every view
is drawn once (crop, flip, grey levels, contrast, CutMix), passes the teacher once and is used for `passes` epochs.

    python tools/distil.py --teacher vit_small_patch14_dinov2.safetensors --images natural64.tar

The images are for research only; so are the weights, which serve demonstration and tests.
"""

from __future__ import annotations

import argparse
import io
import math
import tarfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from peftbench.models.backbone import choose_attention, locate

SIDE, PATCH = 64, 8  # pixels
FILE = Path("peftbench/backbones/mini.safetensors")
TEACHER = "vit_small_patch14_dinov2"
TEACHER_SIDE = 112  # 8 x 8 patches of 14, as the student's 8 x 8 patches of 8
TEACHER_BLOCKS = (7, 8, 9)  # counted from 0; those whose frozen features tell medical images apart best
TARGET = 384 * len(TEACHER_BLOCKS)  # channels
MATRIX = 2  # dimensions; biases, norms, tokens and the patch convolution get no weight decay
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_images(archive: Path) -> Tensor:
    """Return every JPEG file of a tar archive, sorted by name, as one uint8 tensor (n, 3, SIDE, SIDE)."""
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        files = [tar.extractfile(m) for m in members if m.name.lower().endswith((".jpg", ".jpeg"))]
        pictures = [Image.open(io.BytesIO(f.read())).convert("RGB").resize((SIDE, SIDE)) for f in files if f]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def draw_view(images: Tensor) -> Tensor:
    """Return one random view of every image: uint8 (n, 3, SIDE, SIDE) -> the same shape."""
    change = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(0.1),
            v2.ColorJitter(0.3, 0.3, 0.2),
            v2.RandomGrayscale(0.5),  # most medical images are grey
            v2.RandomInvert(0.05),
        ]
    )
    view = torch.stack([change(image) for image in images])
    return cut_mix(view, share=0.2)


def cut_mix(view: Tensor, share: float) -> Tensor:
    """Paste a random rectangle of another image into a `share` of the images, for more variety."""
    mixed, other = view.clone(), view[torch.randperm(len(view))]
    for i in torch.randperm(len(view))[: int(share * len(view))].tolist():
        high, wide = (int(n) for n in torch.randint(SIDE // 4, SIDE // 2 + 1, (2,)))
        top, left = int(torch.randint(SIDE - high, (1,))), int(torch.randint(SIDE - wide, (1,)))
        mixed[i, :, top : top + high, left : left + wide] = other[i, :, top : top + high, left : left + wide]
    return mixed


def pixels(images: Tensor, side: int) -> Tensor:
    """Return normalized float pixels at `side` px."""
    shown = images.float() / 255
    if side != SIDE:
        shown = F.interpolate(shown, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (shown - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def load_teacher(weights: Path) -> VisionTransformer:
    """Return the teacher for images of TEACHER_SIDE px."""
    overlay = {"file": str(weights)}
    whole = timm.create_model(
        TEACHER, pretrained=True, pretrained_cfg_overlay=overlay, img_size=TEACHER_SIDE, num_classes=0
    )
    return cast("VisionTransformer", whole).eval()


@torch.inference_mode()
def look(teacher: VisionTransformer, view: Tensor, batch: int) -> Tensor:
    """Return the teacher's tokens for a view, those of its blocks concatenated: float16 (n, 65, 3 x 384)."""
    seen = torch.empty(len(view), 1 + (SIDE // PATCH) ** 2, TARGET, dtype=torch.float16)
    for part, out in zip(view.split(batch), seen.split(batch), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            found = teacher.forward_intermediates(
                pixels(part, TEACHER_SIDE),
                indices=list(TEACHER_BLOCKS),
                return_prefix_tokens=True,
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        blocks = cast("list[tuple[Tensor, Tensor]]", found)  # patches, class token
        out.copy_(torch.cat([torch.cat([first, patches], 1).half() for patches, first in blocks], -1))
    return seen


class Student(nn.Module):
    """The small network and, for training only, one linear map for the class token and one for the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = locate("mini@random").build(torch.initial_seed())
        choose_attention(self.vit, "cpu", torch.bfloat16)
        width = self.vit.num_features
        self.of_class, self.of_patch = nn.Linear(width, TARGET), nn.Linear(width, TARGET)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, 3, H, W) -> (B, 1, T), (B, 64, T)
        tokens = self.vit.forward_features(x)
        return self.of_class(tokens[:, :1]), self.of_patch(tokens[:, 1:])


class Scale:
    """Channel-wise mean and spread of class and patch tokens, measured on the first view."""

    def __init__(self, tokens: Tensor) -> None:
        some = tokens[:: max(1, len(tokens) // 4000)].float()
        self.parts = [(p.mean((0, 1)), p.std((0, 1)) + 1e-6) for p in (some[:, :1], some[:, 1:])]

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        (cm, cs), (pm, ps) = self.parts
        return (tokens[:, :1].float() - cm) / cs, (tokens[:, 1:].float() - pm) / ps


def distil(images: Tensor, teacher: VisionTransformer, asked: argparse.Namespace) -> None:
    """Train the student; print a line and save its weights after every view."""
    views, passes, batch, lr = asked.views, asked.passes, asked.batch, asked.lr
    student = Student()
    if asked.init:
        student.vit.load_state_dict({n: t.float() for n, t in load_file(asked.init).items()})
    matrices = [p for p in student.parameters() if p.dim() == MATRIX]
    others = [p for p in student.parameters() if p.dim() != MATRIX]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    steps, step, scale, started = views * passes * (len(images) // batch), 0, None, time.time()
    for number in range(views):
        view = draw_view(images)
        tokens = look(teacher, view, 64)
        scale = scale or Scale(tokens)
        for _ in range(passes):
            total = 0.0
            for index in torch.randperm(len(view))[: len(view) // batch * batch].split(batch):
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1, step / 300) * 0.5 * (1 + math.cos(math.pi * step / steps))
                total += train_step(student, optimizer, pixels(view[index], SIDE), scale(tokens[index]))
                step += 1
            print(
                f"view {number + 1}/{views} loss {total / (len(view) // batch):.4f} {time.time() - started:.0f} s",
                flush=True,
            )
        save_file({n: t.half().contiguous() for n, t in student.vit.state_dict().items()}, asked.out)


def train_step(student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: tuple[Tensor, Tensor]) -> float:
    """Take one step on the mean smooth-L1 distance, with equal weight for class token and patches."""
    with torch.autocast("cpu", torch.bfloat16):
        of_class, of_patch = student(x)
    loss = F.smooth_l1_loss(of_class.float(), target[0]) + F.smooth_l1_loss(of_patch.float(), target[1])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def main() -> None:
    """Distil with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--init", type=Path, help="start from these weights, with new random heads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--limit", type=int, default=None, help="use only the first images, to try the script out")
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    images = read_images(asked.images)
    if asked.limit:
        images = images[:: len(images) // asked.limit][: asked.limit]
    distil(images, load_teacher(asked.teacher), asked)
    print(f"wrote {asked.out}, {asked.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
