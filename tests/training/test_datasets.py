import json
import pickle
import sys

import numpy as np
import PIL.Image
import pytest

from onnxeqx import DataError
from onnxeqx.training import Augmentation, ConfigError, Preprocessing, Selection, open_dataset

PLAIN = Preprocessing(4, 4)


def opened(data, classes=None, preprocess=PLAIN, **selection):
    return open_dataset(str(data), preprocess, classes=classes, selection=Selection(**selection))


def parts(dataset):
    return [[part[index] for index in range(len(part))] for part in (dataset.training, dataset.validation)]


def save_images(folder, count=5, colour=(255, 0, 0), name="image{}.png"):
    folder.mkdir(parents=True)
    for index in range(count):
        PIL.Image.new("RGB", (6, 5), colour).save(folder / name.format(index))


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "images" / "blue", colour=(0, 0, 255))
    save_images(tmp_path / "images" / "red")
    return tmp_path / "images"


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_images_are_resized_scaled_and_normalised():
    preprocess = Preprocessing(4, 6, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    image = preprocess(PIL.Image.new("RGB", (10, 10), (255, 51, 102)))
    assert image.dtype == np.float32
    assert image.shape == (3, 4, 6)
    np.testing.assert_allclose(image[:, 0, 0], [1.0, -0.05, 0.2], atol=1e-6)


def test_grey_becomes_colour_and_colour_grey():
    grey = np.full((4, 4), 51, np.uint8)
    np.testing.assert_allclose(PLAIN(grey), np.full((3, 4, 4), 0.2), atol=1e-6)
    np.testing.assert_allclose(PLAIN(grey[..., None]), np.full((3, 4, 4), 0.2), atol=1e-6)
    one_channel = Preprocessing(4, 4, channels=1)
    assert one_channel(PIL.Image.new("RGB", (4, 4), (51, 51, 51))).shape == (1, 4, 4)
    np.testing.assert_allclose(one_channel(np.full((4, 4, 3), 0.5)), np.full((1, 4, 4), 0.5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_of_image_is_taken(mode):
    image = PIL.Image.fromarray(np.full((5, 5), 51 * 257, np.uint16)) if mode == "I;16" else PIL.Image.new(mode, (5, 5))
    decoded = PLAIN(image)
    assert decoded.shape == (3, 4, 4)
    if mode == "I;16":
        np.testing.assert_allclose(decoded, 0.2, atol=1e-6)


def test_floats_are_resized_like_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(PLAIN(pixels), PLAIN(pixels / np.float32(255)), atol=0.005)


def test_mean_and_std_above_one_are_in_pixel_values():
    assert Preprocessing.unit_range((127.0,), (128.0,)) == ((127 / 255,), (128 / 255,))
    assert Preprocessing.unit_range((0.5, 0.4, 0.3), (0.2,)) == ((0.5, 0.4, 0.3), (0.2,))
    assert Preprocessing.unit_range((0.0,), (1.0,)) == ((0.0,), (1.0,))


def test_counts_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(ConfigError, match="--mean has 2 values, but must have 1 or 3"):
        Preprocessing(4, 4, mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match="--std has 3 values, but must have 1 or 1"):
        Preprocessing(4, 4, channels=1, std=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="takes 4 channels"):
        Preprocessing(4, 4, channels=4)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_split_by_share(folder):
    dataset = opened(folder, validation_share=0.4)
    assert dataset.class_names == ("blue", "red")
    training, validation = parts(dataset)
    assert sorted(label for _, label in training) == [0, 0, 0, 1, 1, 1]
    assert sorted(label for _, label in validation) == [0, 0, 1, 1]
    for image, label in training + validation:
        np.testing.assert_allclose(image[:, 0, 0], [[0, 0, 1], [1, 0, 0]][label])


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "test"), ("training", "validation")])
def test_a_folder_with_its_own_split(tmp_path, train, val):
    for name in ("a", "b", "c"):
        save_images(tmp_path / train / name, count=3)
    for name in ("b", "c"):  # a class may be missing there
        save_images(tmp_path / val / name, count=2, name="Nested {}.JPG")
    dataset = opened(tmp_path, classes=3)
    assert dataset.class_names == ("a", "b", "c")
    assert list(dataset.validation.labels) == [1, 1, 2, 2]
    assert len(dataset.training) == 9


def test_a_training_folder_alone_is_split(tmp_path):
    for name in ("a", "b"):
        save_images(tmp_path / "train" / name, count=5)
    dataset = opened(tmp_path)
    assert (len(dataset.training), len(dataset.validation)) == (8, 2)


def test_limit_holds_for_both_parts(folder):
    dataset = opened(folder, limit=2, validation_share=0.4)
    assert (len(dataset.training), len(dataset.validation)) == (2, 2)


def test_a_class_count_that_does_not_fit_lists_the_folders(folder):
    with pytest.raises(DataError, match=r"--classes is 5, but .* has 2 class folders: blue, red"):
        opened(folder, classes=5)


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"at least two; there is none"):
        opened(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"at least two; there is only cats"):
        opened(tmp_path)
    (tmp_path / "dogs").mkdir()
    with pytest.raises(DataError, match=r"folder .*cats has no images \(.bmp"):
        opened(tmp_path)


def test_a_class_that_training_does_not_know_is_refused(tmp_path):
    for part, names in (("train", "ab"), ("val", "abz")):
        for name in names:
            save_images(tmp_path / part / name, count=1)
    with pytest.raises(DataError, match=r"has classes that .* does not have: z"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"no image", None])
def test_a_corrupt_image_is_named(folder, content):
    broken = folder / "red" / "image3.png"
    broken.write_bytes(broken.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DataError, match=r"red/image3\.png cannot be decoded: .*; repair or remove it"):
        parts(opened(folder))


# --- .npz -------------------------------------------------------------------------------------------------------------


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


IMAGES = np.random.default_rng(0).integers(0, 256, (10, 5, 6)).astype(np.uint8)
LABELS = np.arange(10) % 3


@pytest.mark.parametrize(
    "names", [("x", "y"), ("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")]
)
def test_arrays_by_their_usual_names(tmp_path, names):
    dataset = opened(npz(tmp_path, **dict(zip(names, (IMAGES, LABELS[:, None]), strict=True))))
    assert dataset.class_names == ("0", "1", "2")
    assert len(dataset.training) + len(dataset.validation) == 10


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("val_images", "val_labels")])
def test_arrays_with_their_own_validation_part(tmp_path, names):
    held_out = dict(zip(names, (IMAGES[:4], LABELS[:4]), strict=True))
    dataset = opened(npz(tmp_path, x=IMAGES, y=LABELS, **held_out), classes=4)
    assert (len(dataset.training), len(dataset.validation)) == (10, 4)
    assert dataset.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.astype(np.int64),
        IMAGES.astype(np.float32),
        IMAGES / 255,
        IMAGES[..., None],
        np.repeat(IMAGES[..., None], 3, -1),
        np.repeat(IMAGES[:, None], 3, 1),
    ],
)
def test_every_layout_and_dtype_gives_the_same_images(tmp_path, images):
    expected = [image for image, _ in parts(opened(npz(tmp_path, x=IMAGES, y=LABELS)))[0]]
    found = [image for image, _ in parts(opened(npz(tmp_path, x=images, y=LABELS)))[0]]
    np.testing.assert_allclose(found, expected, atol=0.005)


def test_normalised_arrays_pass_with_mean_zero_and_std_one(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 4, 4))
    dataset = opened(npz(tmp_path, x=images, y=LABELS), preprocess=Preprocessing(4, 4, mean=(0.0,), std=(1.0,)))
    image, _ = dataset.training[0]
    np.testing.assert_allclose(image[0], images[dataset.training.indices[0]], rtol=1e-6)
    with pytest.raises(DataError, match=r"pass --mean 0 --std 1"):
        opened(npz(tmp_path, x=images, y=LABELS), preprocess=Preprocessing(4, 4, mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, r"no training arrays \(it has x\); name them x_train and y_train"),
        ({"x": IMAGES, "y": LABELS[:4]}, r"10 examples, but labels of shape \(4,\)"),
        ({"x": IMAGES, "y": np.eye(10)}, r"10 examples, but labels of shape \(10, 10\)"),
        ({"x": IMAGES, "y": LABELS + 0.5}, r"labels must be whole numbers"),
        ({"x": IMAGES, "y": LABELS.astype(object)}, r"data\.npz cannot be read as an \.npz file: Object arrays"),
        ({"x": IMAGES, "y": np.where(LABELS == 1, np.nan, 0)}, r"labels must be whole numbers"),
        ({"x": IMAGES, "y": LABELS - 1}, r"label -1 of example 0 is outside 0 to 2 \(--classes 3\)"),
        ({"x": IMAGES, "y": LABELS + 1}, r"label 3 of example 2 is outside 0 to 2"),
        ({"x": IMAGES[:, 0], "y": LABELS}, r"images of shape \(10, 6\) are not \(n, h, w\)"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, r"has no images"),
        ({"x": np.full((10, 4, 4), np.nan), "y": LABELS}, r"image 0 has values that are not finite"),
        ({"x": IMAGES.astype("U3"), "y": LABELS}, r"neither integers nor floating-point"),
        ({"x": IMAGES.astype(np.int32) * 9, "y": LABELS}, r"not in \[0, 255\]"),
        (
            {"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS + 7},
            r"\(validation part\): label 7 of example 0 is outside",
        ),
        (
            {"x": IMAGES, "y": np.array(["a", "b"] * 5), "x_test": IMAGES, "y_test": np.array(["a", "c"] * 5)},
            r"\(validation part\): label 'c' of example 1 is not among the classes a, b",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(tmp_path, arrays, message):
    normalised = Preprocessing(4, 4, mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match=message):
        opened(npz(tmp_path, **arrays), classes=3, preprocess=normalised)


def test_floats_may_exceed_one_by_a_little_and_the_training_part_decides(tmp_path):
    bright = IMAGES / 255
    bright[0, 0, 0] = 1.0000001
    expected = opened(npz(tmp_path, x=IMAGES, y=LABELS, x_test=IMAGES, y_test=LABELS)).validation[3][0]
    found = opened(npz(tmp_path, x=bright, y=LABELS, x_test=bright * 0.5, y_test=LABELS)).validation[3][0]
    np.testing.assert_allclose(found, expected * 0.5, atol=0.005)
    dark = opened(npz(tmp_path, x=IMAGES * 1.0, y=LABELS, x_test=(IMAGES > 128) * 1.0, y_test=LABELS))
    assert dark.validation[3][0].max() < 0.005  # 1 of 255, as in the training part
    with pytest.raises(
        DataError, match=r"\(validation part\): pixels lie in \[0, 255\], but those of the training part in \[0, 1\]"
    ):
        opened(npz(tmp_path, x=IMAGES / 255, y=LABELS, x_test=np.where(IMAGES > 99, 255.0, 0), y_test=LABELS))


def test_pixels_that_are_normalised_already_are_not_augmented(tmp_path):
    data = npz(tmp_path, x=np.random.default_rng(0).normal(size=(10, 4, 4)), y=LABELS)
    with pytest.raises(ConfigError, match="normalised already, which augmentation does not take"):
        open_dataset(str(data), PLAIN, classes=3, selection=Selection(), augment=Augmentation(flip=0.5))


def test_maps_of_files_go_to_worker_processes_by_their_path(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "y.npy", LABELS)
    dataset = opened(tmp_path)
    pickled = pickle.dumps(dataset.training.images)
    assert len(pickled) < 300
    np.testing.assert_array_equal(pickle.loads(pickled)[3], IMAGES[3])
    assert isinstance(dataset.training.images.array, np.memmap)


def test_images_of_a_saved_data_set(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted(folder.rglob("*.png"))
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])}
    rows = {"image": images, "label": [int(file.parent.name == "red") for file in files]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "saved")
    dataset = opened(tmp_path / "saved")
    assert dataset.class_names == ("blue", "red")
    for image, label in parts(dataset)[0]:
        np.testing.assert_allclose(image[:, 0, 0], [label, 0, 1 - label])
    rows["image"][4] = {"bytes": b"no image", "path": None}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "damaged")
    with pytest.raises(DataError, match=r"The image .*damaged.*, row 4 cannot be decoded"):
        parts(opened(tmp_path / "damaged"))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a.png", None], "row 1 .* names no file"), (["a.png", "b.png"], "row 1 .* is b.png, but there is no such file")],
)
def test_a_table_of_images_that_are_not_there(names, message, tmp_path):
    PIL.Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    lines = [json.dumps({"image": name, "label": "x"}) for name in names]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        opened(tmp_path)  # a folder with a training table is that table, whatever else is in it


def test_images_without_classes_where_the_task_needs_none(folder):
    dataset = open_dataset(str(folder), PLAIN, classes=None, selection=Selection(), labels="teacher")
    assert (len(dataset.training), len(dataset.validation)) == (8, 2)
    assert dataset.class_names == ()


def test_grey_of_32_bits_keeps_its_pixels_and_floats_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        PIL.Image.fromarray(np.full((5, 5), 51, np.int32)).save(tmp_path / name / "0.tiff")
    np.testing.assert_allclose(opened(tmp_path).training[0][0], 0.2, atol=1e-6)
    PIL.Image.fromarray(np.full((5, 5), 0.2, np.float32)).save(tmp_path / "a" / "0.tiff")
    with pytest.raises(DataError, match=r"a/0\.tiff has floating-point pixels"):
        parts(opened(tmp_path, validation_share=0.5))


def test_labels_that_are_texts_name_the_classes(tmp_path):
    dataset = opened(npz(tmp_path, x=IMAGES, y=np.array(["dog", "cat"] * 5)))
    assert dataset.class_names == ("cat", "dog")
    assert {label for _, label in parts(dataset)[0]} == {0, 1}


def test_a_class_without_examples_is_refused_unless_it_is_counted(tmp_path):
    data = npz(tmp_path, x=IMAGES, y=np.where(LABELS == 1, 2, LABELS))
    with pytest.raises(DataError, match=r"labels go up to 2, but no example has the label 1; .*--classes"):
        opened(data)
    dataset = opened(data, classes=4)
    assert dataset.class_names == ("0", "1", "2", "3")
    counts = dataset.class_counts()
    assert counts[1] == counts[3] == 0
    assert counts.sum() == len(dataset.training)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"text"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz cannot be read as an \.npz file"):
        opened(tmp_path / "data.npz")


def test_pickled_arrays_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        opened(npz(tmp_path, x=np.array([{}], object), y=LABELS))


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", IMAGES)
    with pytest.raises(DataError, match="holds a single array"):
        opened(tmp_path / "data.npy")


# --- built-in ---------------------------------------------------------------------------------------------------------


def test_digits_come_from_scikit_learn():
    dataset = opened("digits", classes=10)
    assert dataset.class_names == tuple("0123456789")
    assert len(dataset.training) + len(dataset.validation) == 1797
    image, label = dataset.training[0]
    assert image.shape == (3, 4, 4)
    assert 0 <= image.min() < image.max() <= 1
    assert 0 <= label <= 9


def test_digits_need_ten_classes():
    with pytest.raises(DataError, match=r"digits: label \d of example \d+ is outside 0 to 4 \(--classes 5\)"):
        opened("digits", classes=5)


def test_without_scikit_learn_the_command_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        opened("digits")


def test_unknown_data_lists_what_there_is():
    with pytest.raises(
        DataError, match=r"no data at nowhere: give a folder of images, an \.npz file, a table, or one of: dig"
    ):
        opened("nowhere")
