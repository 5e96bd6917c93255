"""What the data modules hold and hand out: order, shards, split, noise, batches, augmentation, errors."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from lit_sphere.data import CIFAR10, CIFAR100, Digits, ResidentDataModule, ResidentLoader
from lit_sphere.data.augment import Augmentation, shift_and_flip
from lit_sphere.data.order import EpochOrder, FileOrder, evaluation_bounds, training_bounds
from lit_sphere.data.split import redraw_labels, split_indices

REAL = os.environ.get("LIT_SPHERE_CIFAR10", "")
needs_cifar = pytest.mark.skipif(not REAL, reason="LIT_SPHERE_CIFAR10 names no folder with CIFAR-10")


def ready(data: ResidentDataModule, rank: int = 0, world_size: int = 1) -> ResidentDataModule:
    """Set a data module up, on a rank of an imagined distributed run."""
    if world_size > 1:
        device = SimpleNamespace(root_device=torch.device("cpu"))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(restarting=False))
        fake = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=device, fit_loop=loop)
        data.trainer = cast(Any, fake)
    data.setup("fit")
    return data


def epoch_of(loader: ResidentLoader, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Collect a whole epoch."""
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


# Order and shards


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_ranks_share_each_training_batch_equally(size: int, per_rank: int, world_size: int, epoch: int) -> None:
    batch_size = per_rank * world_size
    order = EpochOrder(size, seed=3)
    order.set_epoch(epoch)
    indices, seen = order.indices(), []
    bounds = training_bounds(size, batch_size, world_size)
    for number, (start, stop) in enumerate(bounds):
        shards = [indices[start:stop][rank::world_size].tolist() for rank in range(world_size)]
        assert len({len(shard) for shard in shards}) == 1
        assert shards[0]
        assert stop - start == batch_size or number == len(bounds) - 1
        assert stop - start <= batch_size + world_size
        # Batch norm cannot train on one image.
        assert len(shards[0]) > 1 or per_rank == 1 or len(bounds) == 1
        seen += [index for shard in shards for index in shard]
    assert len(set(seen)) == len(seen)
    assert set(seen) == set(indices.tolist()[: len(seen)])
    assert 0 <= size - len(seen) < world_size


@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 5))
def test_evaluation_drops_and_repeats_nothing(size: int, batch_size: int, world_size: int) -> None:
    if size < world_size:
        size = world_size
    bounds = evaluation_bounds(size, batch_size, world_size)
    assert [index for start, stop in bounds for index in range(start, stop)] == list(range(size))
    sizes = [stop - start for start, stop in bounds]
    assert min(sizes) >= world_size
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 2 * world_size - 1)


def test_order_is_given_by_seed_and_epoch_alone() -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            torch.manual_seed(epoch + 17)
            first, second = EpochOrder(500, seed), EpochOrder(500, seed)
            first.set_epoch(epoch)
            list(second)  # what was iterated before does not matter
            second.set_epoch(epoch)
            assert torch.equal(first.indices(), second.indices())
            assert sorted(first) == list(range(500))
            orders[seed, epoch] = tuple(first)
    assert len(set(orders.values())) == 6
    assert list(FileOrder(5)) == [0, 1, 2, 3, 4]


def test_two_runs_see_the_same_batches_and_the_model_seed_is_left_alone() -> None:
    before = torch.get_rng_state()
    one = epoch_of(ready(Digits(augment=True, label_noise=0.3)).train_dataloader(), 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    two = epoch_of(ready(Digits(augment=True, label_noise=0.3)).train_dataloader(), 4)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    for other in (Digits(augment=True, label_noise=0.3, seed=1), Digits(label_noise=0.3)):
        assert not torch.equal(one[0], epoch_of(ready(other).train_dataloader(), 4)[0])


@pytest.mark.parametrize("augment", [False, True])
def test_ranks_together_make_the_global_batch(augment: bool) -> None:
    settings: dict[str, Any] = {"batch_size": 90, "train_size": 200, "augment": augment}
    whole = ready(Digits(**settings)).train_dataloader()
    parts = [ready(Digits(**settings), rank, 3).train_dataloader() for rank in range(3)]
    for loader in (whole, *parts):
        loader.sampler.set_epoch(2)
    sizes = []
    for (images, labels), *shards in zip(whole, *parts, strict=True):
        for rank, (some, their) in enumerate(shards):
            sizes.append(len(their))
            assert torch.equal(some, images[rank::3][: len(some)])
            assert torch.equal(their, labels[rank::3][: len(their)])
    assert sizes == [30] * 6 + [6] * 3  # of the last 20 images, 18 are shared


def test_rank_indices_tell_which_images_come() -> None:
    data = ready(Digits(train_size=200, batch_size=60), 1, 2)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    for batch, (_, labels) in enumerate(loader):
        assert torch.equal(labels, data.train_set.labels[loader.rank_indices(batch)])


# Sets


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 5))
def test_split_is_a_partition_and_nested(train: int, val: int, rest: int, seed: int) -> None:
    total = train + val + rest
    parts = split_indices(total, train, val, seed)
    assert [len(part) for part in parts] == [train, val, rest]
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    assert all(torch.equal(part, part.sort().values) for part in parts)
    fewer = split_indices(total, train - 1, val, seed)
    assert set(fewer[0].tolist()) < set(parts[0].tolist())
    assert torch.equal(fewer[1], parts[1])


def test_digits_sets() -> None:
    from sklearn.datasets import load_digits

    data = Digits()
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, 8)
    ready(data)
    assert data.train_set.pixels.shape == (1500, 1, 8, 8)
    assert data.test_set.pixels.shape == (297, 1, 8, 8)
    assert data.val_set.pixels is data.test_set.pixels
    assert data.validates_on == "test"
    train, _, test = split_indices(1797, 1500, 0, 0)
    source = load_digits()
    for images, indices in ((data.train_set, train), (data.test_set, test)):
        assert np.array_equal(images.pixels[:, 0].numpy(), source.images[indices])
        assert np.array_equal(images.labels.numpy(), source.target[indices])
    assert set(data.train_set.labels.tolist()) == set(range(10))


def test_held_out_images_are_clean_and_never_trained_on() -> None:
    data = ready(Digits(val_size=100, label_noise=0.99))
    train, val, test = split_indices(1797, 1500, 100, 0)
    assert [len(images.labels) for images in (data.train_set, data.val_set, data.test_set)] == [
        1500,
        100,
        197,
    ]
    assert data.validates_on == "held-out train"
    clean = ready(Digits(train_size=1697, val_size=0, seed=0)).read()[0]
    assert torch.equal(data.val_set.labels, clean.labels[val])
    assert torch.equal(data.test_set.labels, clean.labels[test])
    assert not torch.equal(data.train_set.labels, clean.labels[train])
    assert torch.equal(epoch_of(data.val_dataloader())[1], data.val_set.labels)


@pytest.mark.parametrize(("fraction", "classes"), [(0.2, 10), (0.5, 100), (1.0, 10)])
def test_noise_makes_the_predicted_fraction_wrong(fraction: float, classes: int) -> None:
    labels = torch.arange(40_000) % classes
    noisy = redraw_labels(labels, fraction, classes, seed=1)
    expected = fraction * (1 - 1 / classes)
    spread = (expected * (1 - expected) / len(labels)) ** 0.5
    assert abs((noisy != labels).double().mean().item() - expected) < 4 * spread
    counts = torch.bincount(noisy[noisy != labels], minlength=classes).double()
    assert (counts / counts.mean() - 1).abs().max() < 5 / counts.mean().sqrt()
    assert torch.equal(noisy, redraw_labels(labels, fraction, classes, seed=1))
    assert not torch.equal(noisy, redraw_labels(labels, fraction, classes, seed=2))
    less = redraw_labels(labels, fraction / 2, classes, seed=1)
    changed = less != labels
    assert 0 < changed.sum() < (noisy != labels).sum()
    assert torch.equal(less[changed], noisy[changed])


def test_corrupted_marks_the_wrong_labels() -> None:
    clean, noisy = ready(Digits()), ready(Digits(label_noise=0.4))
    assert not clean.corrupted.any()
    assert torch.equal(noisy.corrupted, noisy.train_set.labels != clean.train_set.labels)
    assert 0.3 < noisy.corrupted.double().mean() < 0.42
    assert torch.equal(noisy.test_set.labels, clean.test_set.labels)


# Batches


def test_pixels_stay_uint8_and_batches_are_normalised_floats() -> None:
    data = ready(Digits())
    assert data.train_set.pixels.dtype is data.test_set.pixels.dtype is torch.uint8
    images, labels = epoch_of(data.train_dataloader())
    assert images.dtype is torch.float32
    assert labels.dtype is torch.int64
    assert images.shape == (1500, 1, 8, 8)
    assert abs(images.mean().item()) < 1e-6
    assert abs(images.std(correction=0).item() - 1) < 1e-6
    in_order = epoch_of(data.train_pass_dataloader(), 3)
    pixels = data.train_set.pixels.double()
    expected = (pixels - pixels.mean()) / pixels.std(correction=0)
    assert torch.allclose(in_order[0].double(), expected, atol=1e-6)
    assert torch.equal(in_order[1], data.train_set.labels)


def test_batches_have_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        images, _ = epoch_of(ready(Digits()).train_dataloader())
    finally:
        torch.set_default_dtype(torch.float32)
    assert images.dtype is torch.float64
    assert abs(images.mean().item()) < 1e-14


def test_lengths_and_full_batch() -> None:
    data = ready(Digits(batch_size=128))
    assert [len(labels) for _, labels in data.train_dataloader()] == [128] * 11 + [92]
    assert len(data.train_dataloader()) == len(data.train_pass_dataloader()) == 12
    assert [len(labels) for _, labels in data.val_dataloader()] == [297]
    whole = ready(Digits(full_batch=True, train_size=50)).train_dataloader()  # smaller than batch_size
    assert [len(labels) for _, labels in whole] == [50]
    assert torch.equal(epoch_of(whole, 0)[1], epoch_of(whole, 1)[1])


def test_evaluation_shards_hold_every_image_once() -> None:
    shards = [epoch_of(ready(Digits(eval_batch_size=8), rank, 4).test_dataloader()) for rank in range(4)]
    whole = epoch_of(ready(Digits()).test_dataloader())
    assert [len(labels) for _, labels in shards] == [len(shards[0][1])] * 4 or len(whole[1]) % 4
    flat = sorted(image.flatten().tolist() for images, _ in shards for image in images)
    assert flat == sorted(image.flatten().tolist() for image in whole[0])


def test_loader_state_is_for_the_next_pass_of_that_epoch() -> None:
    data = ready(Digits(batch_size=500))
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    batches = list(loader)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 2, "batches": 1}
    for epoch, expected in ((2, 2), (3, 3)):
        again = data.train_dataloader()
        again.load_state_dict(state)
        again.sampler.set_epoch(epoch)
        assert len(rest := list(again)) == expected
        assert len(list(again)) == 3
        assert torch.equal(rest[-1][1], batches[-1][1]) == (epoch == 2)


# Augmentation


@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
def test_augmentation_against_a_slow_reference(seed: int, pad: int, flip: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(1, 256, (7, 6, 5, 3), dtype=torch.uint8, generator=generator)
    shifts, flips = Augmentation(pad, flip, seed).draw(7, epoch=1, batch=2)
    changed = shift_and_flip(pixels, shifts, flips, pad)
    for image, (down, right), mirrored, result in zip(pixels, shifts.tolist(), flips, changed, strict=True):
        expected = torch.zeros_like(image)
        for row in range(6):
            for column in range(5):
                there = (row + down - pad, (4 - column if mirrored else column) + right - pad)
                if 0 <= there[0] < 6 and 0 <= there[1] < 5:
                    expected[row, column] = image[there]
        assert torch.equal(result, expected)


def test_augmentation_draws_are_uniform_and_keyed() -> None:
    change = Augmentation(pad=4, flip=True, seed=0)
    shifts, flips = change.draw(20_000, 0, 0)
    counts = torch.stack([torch.bincount(shifts[:, axis], minlength=9) for axis in (0, 1)])
    assert counts.shape == (2, 9)
    assert (counts / (20_000 / 9) - 1).abs().max() < 0.1
    assert abs(flips.double().mean().item() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([shifts[:, 0], shifts[:, 1], flips]).double())[0, 1]) < 0.03
    assert torch.equal(change.draw(10, 0, 0)[0], shifts[:10])  # whatever the size of the batch
    for epoch, batch in ((1, 0), (0, 1)):
        assert not torch.equal(change.draw(20_000, epoch, batch)[0], shifts)
    assert not Augmentation(pad=1, flip=False).draw(1000, 0, 0)[1].any()


def test_digits_augmentation_shifts_by_one_pixel_at_most() -> None:
    data = ready(Digits(augment=True, batch_size=1500))
    plain = ready(Digits(batch_size=1500)).train_dataloader()
    loader = data.train_dataloader()
    (before, _), (after, _), (later, _) = epoch_of(plain), epoch_of(loader), epoch_of(loader, 1)
    background = before.min()
    padded = torch.nn.functional.pad(before, (1, 1, 1, 1), value=background.item())
    candidates = torch.stack([padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    matches = (candidates == after).all(dim=(2, 3, 4))
    assert matches.any(dim=0).all()
    assert matches.any(dim=1).all()  # all nine shifts occur
    assert not torch.equal(after, epoch_of(plain, 1)[0])
    assert not torch.equal(after.sum(), later.sum())
    assert torch.equal(epoch_of(data.train_pass_dataloader())[0], epoch_of(data.train_pass_dataloader(), 1)[0])
    assert torch.equal(epoch_of(data.val_dataloader())[0], epoch_of(ready(Digits()).val_dataloader())[0])


# CIFAR, read by torchvision's own code out of tiny files


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Write both sets with 40 training and 12 test images; their MD5 sums replace the official ones."""
    random = np.random.default_rng(0)
    truth: dict[Any, Any] = {"root": str(tmp_path)}
    monkeypatch.setattr(CIFAR10, "available", 40)
    for source, key in (
        (torchvision.datasets.CIFAR10, "labels"),
        (torchvision.datasets.CIFAR100, "fine_labels"),
    ):
        classes = 10 if key == "labels" else 100
        folder = tmp_path / source.base_folder
        folder.mkdir()

        def write(name: str, content: Any, folder: Path = folder) -> str:
            (folder / name).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / name).read_bytes()).hexdigest()

        for kind, total in (("train", 40), ("test", 12)):
            names = [name for name, _ in getattr(source, f"{kind}_list")]
            pixels = random.integers(0, 256, (total, 3072), dtype=np.uint8)
            labels = random.integers(0, classes, total)
            truth[source.base_folder, kind] = pixels.reshape(-1, 3, 32, 32), labels
            sums = [
                [name, write(name, {"data": part, key: label.tolist()})]
                for name, part, label in zip(
                    names, np.split(pixels, len(names)), np.split(labels, len(names)), strict=True
                )
            ]
            monkeypatch.setattr(source, f"{kind}_list", sums)
        meta = write(source.meta["filename"], {source.meta["key"]: [str(i) for i in range(classes)]})
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": meta})
    return truth


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_cifar_reads_pixels_and_labels(tiny: dict[Any, Any], cls: type[CIFAR10]) -> None:
    data = cls(tiny["root"], batch_size=16, augment=True)
    assert (data.num_classes, data.in_channels, data.image_size) == (10 if cls is CIFAR10 else 100, 3, 32)
    data.prepare_data()
    ready(data)
    folder = "cifar-10-batches-py" if cls is CIFAR10 else "cifar-100-python"
    for images, kind in ((data.train_set, "train"), (data.test_set, "test")):
        pixels, labels = tiny[folder, kind]
        assert np.array_equal(images.pixels.numpy(), pixels)
        assert np.array_equal(images.labels.numpy(), labels)
        assert images.pixels.dtype is torch.uint8
        assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    for loader in (data.train_dataloader(), data.train_pass_dataloader(), data.test_dataloader()):
        for images_, _ in loader:
            assert images_.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_cifar_normalisation(tiny: dict[Any, Any], cls: type[CIFAR10]) -> None:
    papers = (
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    )  # for both sets: the papers' code has one constant
    for normalisation, (means, std) in (("dataset", (cls.mean, cls.std)), ("papers", papers)):
        data = ready(cls(tiny["root"], batch_size=16, normalisation=cast(Any, normalisation)))
        images, _ = epoch_of(data.train_pass_dataloader())
        pixels = data.train_set.pixels.double() / 255
        mean = torch.tensor(means).view(3, 1, 1)
        assert torch.allclose(images.double(), (pixels - mean) / torch.tensor(std).view(3, 1, 1), atol=1e-5)


def test_cifar_subset_and_validation(tiny: dict[Any, Any]) -> None:
    data = ready(CIFAR10(tiny["root"], batch_size=4, train_size=10, val_size=7))
    train, val, _ = split_indices(40, 10, 7, 0)
    pixels, labels = tiny["cifar-10-batches-py", "train"]
    assert np.array_equal(data.train_set.pixels.numpy(), pixels[train])
    assert np.array_equal(data.val_set.labels.numpy(), labels[val])
    assert data.train_set.pixels.is_contiguous(memory_format=torch.channels_last)
    assert len(data.test_set.labels) == 12
    assert len(ready(CIFAR10(tiny["root"], batch_size=4, val_size=7)).train_set.labels) == 33


def test_setup_reads_once(tiny: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(CIFAR10(tiny["root"], batch_size=4))
    monkeypatch.setattr(CIFAR10, "read", lambda self: pytest.fail("read again"))
    data.setup("test")


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -5}, "eval_batch_size must be at least 1, got -5"),
        ({"train_size": 0}, "train_size must be at least 1, got 0"),
        ({"val_size": -1}, "val_size must not be negative, got -1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"label_noise": 1.5}, "label_noise is a fraction from 0 to below 1, got 1.5"),
        ({"label_noise": 1.0}, "label_noise is a fraction from 0 to below 1, got 1.0"),
        ({"label_noise": float("nan")}, "label_noise is a fraction from 0 to below 1, got nan"),
        ({"train_size": 1798}, r"ask for 1798 \+ 0 images, but Digits has 1797 for both"),
        ({"train_size": 1700, "val_size": 100}, r"ask for 1700 \+ 100 images, but Digits has 1797 for both"),
        ({"train_size": 1700, "val_size": 97}, "leave none of the 1797 digits to test on"),
        (
            {"train_size": 100},
            "batch_size 128 is larger than the train set of 100 images: use batch_size 100",
        ),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**options)


def test_bad_values_of_cifar() -> None:
    with pytest.raises(ValueError, match="ask for 50000 images, but CIFAR100 has 50000 for both, at least 1"):
        CIFAR100(val_size=50_000)
    with pytest.raises(ValueError, match='normalisation must be "dataset" or "papers", got \'own\''):
        CIFAR10(normalisation=cast(Any, "own"))


def test_numbers_of_devices() -> None:
    with pytest.raises(ValueError, match="of all 3 devices together and must be a multiple of 3: use 126"):
        ready(Digits(batch_size=128), 0, 3)
    with pytest.raises(ValueError, match="3 val images cannot be shared by 4 devices"):
        ready(Digits(val_size=3), 0, 4)
    ready(Digits(full_batch=True), 0, 7)


def test_use_before_setup() -> None:
    for use in ("train_dataloader", "train_pass_dataloader", "val_dataloader", "test_dataloader"):
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) of Digits before'):
            getattr(Digits(), use)()
    with pytest.raises(RuntimeError, match=r'call setup\("fit"\)'):
        _ = Digits().corrupted


def test_missing_folder(tmp_path: Path) -> None:
    message = r"no CIFAR-100 under '.*': give --data.root DIR that holds cifar-100-python, or --data.download true$"
    with pytest.raises(FileNotFoundError, match=message):
        CIFAR100(str(tmp_path)).setup("fit")


def test_root_that_is_the_inner_folder(tiny: dict[Any, Any]) -> None:
    inner = f"{tiny['root']}/cifar-10-batches-py"
    with pytest.raises(FileNotFoundError, match=f"it is that folder itself: give '{tiny['root']}'"):
        CIFAR10(inner, batch_size=4).setup("fit")
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 under"):
        CIFAR10(f"{inner}/test_batch", batch_size=4).setup("fit")


@pytest.mark.parametrize(("name", "damage"), [("data_batch_3", b"x"), ("test_batch", None), ("batches.meta", b"")])
def test_damaged_files(tiny: dict[Any, Any], name: str, damage: bytes | None) -> None:
    path = Path(tiny["root"]) / "cifar-10-batches-py" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    reason = "missing" if damage is None else "damaged"
    message = f"CIFAR-10 under '{tiny['root']}' cannot be read: '{name}' is {reason}.*Delete .* fetch it anew"
    with pytest.raises(ValueError, match=message):
        CIFAR10(tiny["root"], batch_size=4).setup("fit")


def test_download(tiny: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "elsewhere"

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    def copy(url: str, root: Path, **kwargs: Any) -> None:
        target.mkdir()
        (Path(tiny["root"]) / "cifar-10-batches-py").rename(Path(root) / "cifar-10-batches-py")

    data = CIFAR10(str(target), batch_size=4, download=True)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(FileNotFoundError, match=r"could not download CIFAR-10 into .*no route to host.*https://"):
        data.prepare_data()
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", copy)
    data.prepare_data()
    assert len(ready(data).train_set.labels) == 40


# The command line


@pytest.mark.parametrize("cls", [Digits, CIFAR10, CIFAR100])
def test_every_option_has_its_help(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "data")
    parsed = parser.parse_args(["--data.train_size=500", "--data.batch_size=10", "--data.augment=true"])
    assert (parsed.data.train_size, parsed.data.augment, parsed.data.seed) == (500, True, 0)
    actions = [action for action in parser._actions if action.dest.startswith("data.")]
    assert len(actions) == (10 if cls is Digits else 13)
    assert all(action.help and len(action.help) > 20 for action in actions)


# The real CIFAR-10


@needs_cifar
def test_real_cifar_is_normalised() -> None:
    data = ready(CIFAR10(REAL, batch_size=1000))
    assert len(data.train_set.labels) == 50_000
    assert len(data.test_set.labels) == 10_000
    assert torch.bincount(data.train_set.labels).tolist() == [5000] * 10
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for images, _ in data.train_pass_dataloader():
        total += images.double().sum(dim=(0, 2, 3))
        squares += images.double().square().sum(dim=(0, 2, 3))
    count = 50_000 * 1024
    assert (total / count).abs().max() < 3e-4
    assert ((squares / count - (total / count) ** 2).sqrt() - 1).abs().max() < 3e-4


@pytest.mark.slow
@needs_cifar
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_real_cifar_fits_into_600_megabytes() -> None:
    """Peak memory of reading everything and making a few batches, above what the imports take."""
    script = """
import sys, torchvision
from lit_sphere.data import CIFAR10
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
start = peak()
data = CIFAR10(sys.argv[1], augment=True)
data.prepare_data()
data.setup("fit")
for _, batch in zip(range(20), data.train_dataloader()):
    pass
print(peak() - start)
"""
    command = [sys.executable, "-c", script, REAL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 150 < float(done.stdout) < 600
