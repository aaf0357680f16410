"""The inputs that a model is run on: ranges of sizes, samples from a file, drawn values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.artifacts import FrozenGraph, Shape, ShapeRange, Source, Tensor
from stages.errors import SplitError
from stages.samples import MOST_VERIFIED, StoredSample, draw, read, verification_samples
from stages.sizes import SizeRange, Sizes, size_ranges


def model(**inputs: tuple[str, Shape | None]) -> FrozenGraph:
    """The interface of a model; input `x` is tensor `x_node:0` of the graph."""
    tensors = tuple(Tensor(f"{name}_node:0", dtype, shape) for name, (dtype, shape) in inputs.items())
    return FrozenGraph(Path(), Source("function", None), tensors, (), tuple(inputs), ())


IMAGE = model(image=("float32", (None, 4, 4, 3)))
SEQUENCE = model(ids=("int32", (None, None)), mask=("bool", (None, None)))


def shape(name: str, *points: tuple[int, ...]) -> ShapeRange:
    return ShapeRange(name, *(points if len(points) == 3 else points * 3))


def test_an_open_batch_has_default_sizes() -> None:
    (profile,) = size_ranges(IMAGE, ())
    assert [point.shapes for point in (profile.minimum, profile.optimum, profile.maximum)] == [
        ((1, 4, 4, 3),),
        ((8, 4, 4, 3),),
        ((32, 4, 4, 3),),
    ]


@pytest.mark.parametrize("name", ["image", "image_node", "image_node:0"])
def test_an_input_is_known_by_keyword_node_and_tensor(name: str) -> None:
    (profile,) = size_ranges(IMAGE, [shape(name, (2, 4, 4, 3), (3, 4, 4, 3), (4, 4, 4, 3))])
    assert (profile.minimum.shapes, profile.maximum.shapes) == (((2, 4, 4, 3),), ((4, 4, 4, 3),))


def test_ranges_given_again_are_further_profiles_and_a_single_one_is_in_all_of_them() -> None:
    given = [shape("ids", (1, 8)), shape("mask", (1, 8)), shape("ids", (4, 8))]
    first, second = size_ranges(SEQUENCE, given)
    assert first.optimum.shapes == ((1, 8), (1, 8))
    assert second.optimum.shapes == ((4, 8), (1, 8))


def test_differing_numbers_of_ranges_are_refused() -> None:
    given = [shape("ids", (n, 8)) for n in (1, 2, 3)] + [shape("mask", (n, 8)) for n in (1, 2)]
    with pytest.raises(SplitError, match="2 shape ranges, but another input has 3"):
        size_ranges(SEQUENCE, given)


def sequences(*lengths: int, batch: int = 2) -> list[dict[str, np.ndarray]]:
    shapes = [(batch, length) for length in lengths]
    return [{"ids_node:0": np.zeros(shape, np.int32), "mask_node:0": np.zeros(shape, bool)} for shape in shapes]


def ids(profile: SizeRange) -> list[tuple[int, ...]]:
    return [point.shapes[0] for point in (profile.minimum, profile.optimum, profile.maximum)]


def test_an_open_axis_takes_the_sizes_of_the_samples() -> None:
    (profile,) = size_ranges(SEQUENCE, (), sequences(5, 9, 7), max_profiles=1)
    assert ids(profile) == [(1, 5), (2, 7), (32, 9)]


def test_samples_of_similar_size_share_a_profile_and_nothing_lies_between_profiles() -> None:
    short, long = size_ranges(SEQUENCE, (), sequences(400, 9, 7, 384, 5), max_profiles=2)
    assert ids(short) == [(1, 5), (2, 7), (32, 9)]
    assert ids(long) == [(1, 5), (2, 384), (32, 400)]


def test_there_are_no_more_profiles_than_asked_for_or_than_sizes() -> None:
    lengths = sequences(*range(1, 200))
    for most in (1, 2, 5):
        profiles = size_ranges(SEQUENCE, (), lengths, max_profiles=most)
        assert len(profiles) == most
        assert all(any(p.includes(Sizes(((2, n), (2, n)))) for p in profiles) for n in range(1, 200))
    assert len(size_ranges(SEQUENCE, (), sequences(8, 8), max_profiles=5)) == 1


def test_an_open_batch_makes_no_profiles_of_its_own() -> None:
    samples = [{"image_node:0": np.zeros((batch, 4, 4, 3), np.float32)} for batch in (1, 16, 64)]
    (profile,) = size_ranges(IMAGE, (), samples)
    assert (profile.minimum.shapes[0][0], profile.maximum.shapes[0][0]) == (1, 64)


def test_ranges_of_the_user_go_before_samples() -> None:
    given = [shape("ids", (1, 8), (2, 8), (4, 64)), shape("mask", (1, 8), (2, 8), (4, 64))]
    (profile,) = size_ranges(SEQUENCE, given, sequences(5, 500))
    assert ids(profile) == [(1, 8), (2, 8), (4, 64)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], r"input ids: shape \(\?, \?\) is open and has no range\n  try: --shape ids=MIN,OPT,MAX"),
        ([shape("nope", (1, 8))], "nope: the model has no such input\n  try: its inputs are ids, mask"),
        ([shape("ids", (1, 8, 1))], r"range 1x8x1,1x8x1,1x8x1 does not fit its shape \(\?, \?\)"),
        ([shape("ids", (2, 8), (1, 8), (3, 8))], "range 2x8,1x8,3x8 is not in order"),
    ],
)
def test_a_range_that_is_missing_or_wrong_is_named(given: list[ShapeRange], words: str) -> None:
    with pytest.raises(SplitError, match=words):
        size_ranges(SEQUENCE, given)


def test_a_fixed_axis_can_not_be_given_another_size() -> None:
    with pytest.raises(SplitError, match="does not fit"):
        size_ranges(IMAGE, [shape("image", (1, 5, 4, 3))])


def test_verification_has_two_batch_sizes_and_the_samples_of_the_user() -> None:
    given = [{"image_node:0": np.full((1, 4, 4, 3), 7, np.float32)}]
    drawn = verification_samples(IMAGE, size_ranges(IMAGE, ()), given)
    assert [sample["image_node:0"].shape[0] for sample in drawn] == [1, 1, 3]
    assert all((sample["image_node:0"] == 7).all() for sample in drawn)


def test_verification_takes_the_first_sample_of_every_size_and_not_all_of_many() -> None:
    given = sequences(*[5] * 20, 9)
    drawn = verification_samples(SEQUENCE, size_ranges(SEQUENCE, (), given), given)
    assert len(drawn) == MOST_VERIFIED + 2
    assert 9 in [sample["ids_node:0"].shape[1] for sample in drawn]


def test_verification_stays_inside_the_ranges() -> None:
    low, high = size_ranges(IMAGE, [shape("image", (2, 4, 4, 3)), shape("image", (16, 4, 4, 3))])
    drawn = verification_samples(IMAGE, (low, high), ())
    assert [sample["image_node:0"].shape[0] for sample in drawn] == [2, 16]
    (narrow,) = size_ranges(IMAGE, [shape("image", (1, 4, 4, 3), (1, 4, 4, 3), (2, 4, 4, 3))])
    assert [s["image_node:0"].shape[0] for s in verification_samples(IMAGE, (narrow,), ())] == [1, 2]


def test_drawn_values_suit_their_dtype_and_repeat() -> None:
    dtypes = ("float32", "float16", "bfloat16", "int64", "uint8", "bool", "string", "complex64")
    mixed = model(**{dtype: (dtype, (None,)) for dtype in dtypes})
    sizes = Sizes(tuple((100,) for _ in dtypes))
    first, again, other = draw(mixed, sizes, 0), draw(mixed, sizes, 0), draw(mixed, sizes, 1)
    for dtype in dtypes:
        array = first[f"{dtype}_node:0"]
        assert array.dtype.name == ("object" if dtype == "string" else dtype)
        assert np.array_equal(array, again[f"{dtype}_node:0"])
        assert not np.array_equal(array, other[f"{dtype}_node:0"])
    assert set(first["int64_node:0"]) == {0, 1}
    assert 0 <= first["float32_node:0"].min() <= first["float32_node:0"].max() < 1


def test_images_are_drawn_in_soft_patches() -> None:
    image = model(image=("uint8", (None, 64, 48, 3)))
    (drawn,) = draw(image, Sizes(((2, 64, 48, 3),)), 0).values()
    assert drawn.shape == (2, 64, 48, 3)
    assert drawn.dtype == np.uint8
    assert np.ptp(drawn) > 128
    steps = [np.abs(np.diff(drawn.astype(int), axis=axis)).max() for axis in (1, 2)]
    assert 0 < max(steps) < 32
    for shape in ((0, 64, 48, 3), (1, 1, 1, 1)):
        assert draw(image, Sizes((shape,)), 0)["image_node:0"].shape == shape


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def write(**arrays: np.ndarray) -> Path:
        np.savez(tmp_path / "samples.npz", **arrays)
        return tmp_path / "samples.npz"

    return write


def test_samples_come_from_a_file_by_keyword(npz: Callable[..., Path]) -> None:
    image = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    (sample,) = read(IMAGE, npz(image=image))
    assert np.array_equal(sample["image_node:0"], image)
    assert read(IMAGE, None) == []


def test_samples_come_from_several_files_a_folder_or_an_iterator(tmp_path: Path) -> None:
    arrays = [np.full((1, 4, 4, 3), n, np.float32) for n in range(3)]
    files = [tmp_path / f"{n}.npz" for n in range(3)]
    for file, array in zip(files, arrays, strict=True):
        np.savez(file, image=array)
    for source in (files, iter(files), tmp_path, [tmp_path], ({"image": array} for array in arrays)):
        assert [sample["image_node:0"].max() for sample in read(IMAGE, source)] == [0, 1, 2]


def test_samples_in_files_are_read_when_they_are_asked_for(npz: Callable[..., Path]) -> None:
    path = npz(image=np.zeros((1, 4, 4, 3), np.float32))
    (sample,) = read(IMAGE, path)
    np.savez(path, image=np.ones((1, 4, 4, 3), np.float32))
    assert sample["image_node:0"].max() == 1
    path.unlink()
    with pytest.raises(SplitError, match=r"samples\.npz: can't be read"):
        sample["image_node:0"]


def test_what_an_iterator_gives_once_goes_into_files(tmp_path: Path) -> None:
    stream = ({"image": np.full((1, 4, 4, 3), n, np.float32)} for n in range(3))
    found = read(IMAGE, stream, spool=tmp_path / "spool")
    assert all(isinstance(sample, StoredSample) for sample in found)
    assert [sample["image_node:0"].max() for sample in found] == [0, 1, 2]
    assert read(IMAGE, found) == found, "a second reader does not check them again"
    words = read(model(words=("string", (None,))), iter([{"words": np.array(["a"])}]), spool=tmp_path / "words")
    assert not isinstance(words[0], StoredSample), "text has another form in files"


def test_string_samples_are_written_as_text(npz: Callable[..., Path]) -> None:
    (sample,) = read(model(words=("string", (None,))), npz(words=np.array(["a", "bc"])))
    assert sample["words_node:0"].dtype == object


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no array for input image"),
        ({"nope": np.zeros(1, np.float32)}, "nope: the model has no such input"),
        ({"image": np.zeros((1, 4, 4, 3))}, "sample image: dtype float64\n  try: the model's input is float32"),
        ({"image": np.zeros((1, 4, 4), np.float32)}, r"shape \(1, 4, 4\)\n  try: .* \(\?, 4, 4, 3\)"),
        ({"image": np.full((1, 4, 4, 3), np.nan, np.float32)}, "sample image: contains NaN"),
    ],
)
def test_samples_that_do_not_fit_are_named(arrays: dict[str, np.ndarray], words: str, npz: Callable[..., Path]) -> None:
    with pytest.raises(SplitError, match=words):
        read(IMAGE, npz(**arrays))


def write_cut(path: Path) -> None:
    np.savez(path, image=np.zeros((1, 4, 4, 3), np.float32))
    path.write_bytes(path.read_bytes()[:200])


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "a missing file": lambda path: None,
    "an empty file": lambda path: path.write_bytes(b""),
    "a file that is cut off": write_cut,
    "text": lambda path: path.write_text("image"),
    "a folder": Path.mkdir,
    "pickled objects": lambda path: np.savez(path, image=np.array([{}], object)),
    "an array without a name": lambda path: np.save(path.open("wb"), np.zeros((1, 4, 4, 3), np.float32)),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_unreadable_samples_are_a_stated_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    UNREADABLE[what](path)
    with pytest.raises(SplitError, match=r"samples\.npz(.|\n)*try: write it with numpy\.savez"):
        read(IMAGE, path)
